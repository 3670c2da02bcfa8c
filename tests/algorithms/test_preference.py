"""Losses of comparisons and demonstrations, and what standardises scores: golden values and directions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.algorithms.preference import bradley_terry_loss, standardisation

LN2, LN3 = math.log(2), math.log(3)


def _loss(chosen: Any, rejected: Any, *, margin: Any = None, ties: Any = None, num_pairs: float = 1.0) -> Tensor:
    count = len(chosen)
    return bradley_terry_loss(
        chosen=torch.as_tensor(chosen),
        rejected=torch.as_tensor(rejected),
        margin=torch.zeros(count) if margin is None else torch.tensor(margin),
        is_tie=torch.zeros(count, dtype=torch.bool) if ties is None else torch.tensor(ties),
        num_pairs=num_pairs,
    )


def test_the_loss_of_comparisons_by_hand() -> None:
    # sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4; of the four pairs of a step two are here.
    loss = _loss([LN3, 0.0], [0.0, LN3], num_pairs=4.0)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 4)
    assert _loss([1.0], [1.0]).item() == pytest.approx(LN2)
    assert _loss([5.0], [-5.0]).item() < 0.001 < 9.0 < _loss([-5.0], [5.0]).item()


@pytest.mark.parametrize(("tie", "gradient"), [(False, -0.25), (True, 0.25)])
def test_learning_raises_the_chosen_score_and_draws_the_scores_of_a_tie_together(tie: bool, gradient: float) -> None:
    # With chosen - rejected = ln 3, p = 3/4: the derivative is p - 1 for a choice and p - 1/2 for a tie.
    chosen, rejected = torch.tensor([LN3], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    _loss(chosen, rejected, ties=[tie]).backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(gradient)
    assert rejected.grad.item() == pytest.approx(-gradient)


def test_a_margin_is_what_the_chosen_score_must_be_larger_by() -> None:
    # ln 3 - ln 3 = 0, and ln 3 + ln 3 = ln 9: sigmoid is 9/10.
    assert _loss([LN3], [0.0], margin=[LN3]).item() == pytest.approx(LN2)
    assert _loss([LN3], [0.0], margin=[-LN3]).item() == pytest.approx(math.log(10 / 9))


def test_a_tie_costs_half_of_either_choice_whichever_comes_first() -> None:
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert _loss([LN3], [0.0], ties=[True]).item() == pytest.approx(expected)
    assert _loss([0.0], [LN3], ties=[True]).item() == pytest.approx(expected)
    assert _loss([0.0, LN3], [0.0, 0.0], ties=[True, False]).item() == pytest.approx(LN2 + math.log(4 / 3))


def test_parts_of_a_step_add_up() -> None:
    whole = _loss([0.5, -1.0, 2.0], [1.5, 0.0, 0.0], margin=[0.0, 1.0, 0.0], ties=[True, False, False], num_pairs=3)
    parts = [
        _loss([0.5], [1.5], ties=[True], num_pairs=3),
        _loss([-1.0, 2.0], [0.0, 0.0], margin=[1.0, 0.0], num_pairs=3),
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_large_differences_stay_finite() -> None:
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = _loss(chosen, [0.0, 0.0], ties=[True, False])
    loss.backward()
    assert chosen.grad is not None
    assert loss.item() == pytest.approx(1.5e4) and chosen.grad.tolist() == pytest.approx([0.5, -1.0])


def test_scores_are_standardised_by_mean_and_sample_deviation() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0])
    mean, std = standardisation(scores)
    assert (mean, std) == (3.0, 2.0)
    assert ((scores - mean) / std).tolist() == [-1.0, 0.0, 1.0]
    assert standardisation(torch.tensor([7.0, 7.0])) == (7.0, 1e-6)


@pytest.mark.parametrize(("scores", "message"), [([1.0], "no spread"), ([1.0, math.nan, 2.0], "1 of 3 .*diverged")])
def test_scores_that_say_nothing_are_an_error(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        standardisation(torch.tensor(scores))


def test_the_loss_of_demonstrations_by_hand_and_learning_raises_their_probability() -> None:
    # Two answers of two tokens and one, of a step of four: (ln 2 + ln 4 + ln 8) / 4 = 6/4 ln 2.
    logprobs = torch.tensor([[-LN2, -2 * LN2], [-3 * LN2, 0.0]], requires_grad=True)
    loss = negative_log_likelihood(logprobs=logprobs, num_tokens=4.0)
    assert loss.item() == pytest.approx(1.5 * LN2)
    loss.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[-0.25, -0.25], [-0.25, -0.25]]


def test_a_step_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_pairs=0"):
        _loss([1.0], [0.0], num_pairs=0)
    with pytest.raises(ValueError, match="num_tokens=0"):
        negative_log_likelihood(logprobs=torch.zeros(1, 1), num_tokens=0)
