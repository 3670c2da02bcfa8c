"""Losses of comparisons, rankings, ratings and demonstrations, and what standardises scores: by hand, and where to."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.algorithms.preference import bradley_terry_loss, plackett_luce_loss, rating_loss, standardisation

LN2, LN3 = math.log(2), math.log(3)


def _loss(
    chosen: Any, rejected: Any, *, margin: Any = None, ties: Any = None, weight: Any = None, total: float = 1.0
) -> Tensor:
    count = len(chosen)
    return bradley_terry_loss(
        chosen=torch.as_tensor(chosen),
        rejected=torch.as_tensor(rejected),
        margin=torch.zeros(count) if margin is None else torch.tensor(margin),
        is_tie=torch.zeros(count, dtype=torch.bool) if ties is None else torch.tensor(ties),
        weight=torch.ones(count) if weight is None else torch.tensor(weight),
        total_weight=total,
    )


def test_the_loss_of_comparisons_by_hand() -> None:
    # sigmoid(ln 3) = 3/4 and sigmoid(-ln 3) = 1/4; of the four pairs of a step two are here.
    loss = _loss([LN3, 0.0], [0.0, LN3], total=4.0)
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
    whole = _loss([0.5, -1.0, 2.0], [1.5, 0.0, 0.0], margin=[0.0, 1.0, 0.0], ties=[True, False, False], total=3)
    parts = [
        _loss([0.5], [1.5], ties=[True], total=3),
        _loss([-1.0, 2.0], [0.0, 0.0], margin=[1.0, 0.0], total=3),
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_large_differences_stay_finite() -> None:
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = _loss(chosen, [0.0, 0.0], ties=[True, False])
    loss.backward()
    assert chosen.grad is not None
    assert loss.item() == pytest.approx(1.5e4) and chosen.grad.tolist() == pytest.approx([0.5, -1.0])


def test_a_weight_multiplies_what_a_pair_costs() -> None:
    loss = _loss([LN3, 0.0], [0.0, LN3], weight=[0.2, 3.0], total=3.2)
    assert loss.item() == pytest.approx((0.2 * math.log(4 / 3) + 3 * math.log(4)) / 3.2)


def _ranked(scores: Any, ranks: Any, *, weight: Any = None, total: float = 1.0) -> Tensor:
    return plackett_luce_loss(
        scores=torch.as_tensor(scores),
        ranks=torch.tensor(ranks),
        weight=torch.ones(len(ranks)) if weight is None else torch.tensor(weight),
        total_weight=total,
    )


def test_the_loss_of_a_ranking_by_hand_and_its_gradient() -> None:
    # Strengths 1, 2, 3 by exp: the first is chosen of all with 1/6, then the second of the others with 2/5.
    scores = torch.tensor([[0.0, LN2, LN3]], requires_grad=True)
    loss = _ranked(scores, [[1, 2, 3]])
    assert loss.item() == pytest.approx(math.log(6) + math.log(5 / 2))
    loss.backward()
    assert scores.grad is not None
    # The probability of being chosen, summed over the choices, less one where chosen.
    expected = [1 / 6 - 1, 2 / 6 + 2 / 5 - 1, 3 / 6 + 3 / 5]
    assert scores.grad[0].tolist() == pytest.approx(expected)
    # The other way round 3/6, then 2/3; only the order of the ranks counts.
    assert _ranked([[0.0, LN2, LN3]], [[9, 4, 1]]).item() == pytest.approx(math.log(2) + math.log(3 / 2))


def test_a_ranking_of_two_is_a_pair_and_its_tie_a_tie() -> None:
    assert _ranked([[LN3, 0.0]], [[1, 2]]).item() == pytest.approx(_loss([LN3], [0.0]).item())
    assert _ranked([[LN3, 0.0]], [[1, 1]]).item() == pytest.approx(_loss([LN3], [0.0], ties=[True]).item())


@pytest.mark.parametrize("ranks", [(1, 1, 2, 3), (1, 2, 2, 2), (2, 1, 2, 1), (1, 1, 1, 1), (3, 1, 2, 1)])
def test_a_tie_costs_the_mean_over_the_orders_that_agree_with_it(ranks: tuple[int, ...]) -> None:
    scores = [[0.3, -1.2, 0.9, 2.0]]
    orders = [
        [[order.index(place) + 1 for place in range(4)]]
        for order in permutations(range(4))
        if [ranks[place] for place in order] == sorted(ranks)
    ]
    expected = sum(_ranked(scores, order).item() for order in orders) / len(orders)
    assert _ranked(scores, [ranks]).item() == pytest.approx(expected, rel=1e-5)


def test_rankings_of_different_length_weigh_and_add_up_whatever_stands_where_there_is_none() -> None:
    scores = [[0.5, -1.0, 2.0], [1.5, 0.0, 1e3]]
    whole = _ranked(scores, [[2, 1, 3], [1, 2, 0]], weight=[0.2, 3.0], total=5.0)
    first, second = _ranked(scores[:1], [[2, 1, 3]]), _ranked([[1.5, 0.0]], [[1, 2]])
    torch.testing.assert_close(whole, (0.2 * first + 3 * second) / 5)


def test_a_fit_to_a_ranking_ranks_as_told_and_draws_ties_together() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        _ranked(scores, [[2, 1, 3, 2]]).backward()
        optimizer.step()
    first, second, third, fourth = scores.detach()[0].tolist()
    assert second - 1 > first > third + 1 and first == pytest.approx(fourth, abs=1e-3)


def _rated(scores: Any, values: Any, *, weight: Any = None, total: float = 1.0) -> Tensor:
    return rating_loss(
        scores=torch.as_tensor(scores),
        values=torch.tensor(values),
        weight=torch.ones(len(values)) if weight is None else torch.tensor(weight),
        total_weight=total,
    )


def test_the_loss_of_ratings_and_labels_by_hand() -> None:
    # sigmoid(ln 3) = 3/4. A label, good and bad, and three stars of five (1/2).
    scores = torch.full((3,), LN3, requires_grad=True)
    loss = _rated(scores, [1.0, 0.0, 0.5], weight=[1.0, 0.2, 2.0], total=4.0)
    costs = [math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2]
    assert loss.item() == pytest.approx((costs[0] + 0.2 * costs[1] + 2 * costs[2]) / 4)
    loss.backward()
    assert scores.grad is not None
    # weight * (3/4 - value) / total: what is good rises, what is bad falls.
    assert scores.grad.tolist() == pytest.approx([-0.25 / 4, 0.2 * 0.75 / 4, 2 * 0.25 / 4])


def test_ratings_are_fitted_by_their_mean() -> None:
    score = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([score], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        _rated(score.expand(3), [0.25, 0.75, 1.0], total=3.0).backward()
        optimizer.step()
    assert torch.sigmoid(score).item() == pytest.approx(2 / 3, abs=1e-3)


def test_scores_are_standardised_by_means_and_sample_covariances() -> None:
    scores = torch.tensor([[1.0, 0.0], [3.0, 1.0], [5.0, -1.0]])
    means, covariances = standardisation(scores)
    assert (means.tolist(), covariances.tolist()) == ([3.0, 0.0], [[4.0, -1.0], [-1.0, 1.0]])
    # Of any mean of both they give its own mean and variance.
    weights = torch.tensor([0.25, 0.75])
    combined = scores @ weights
    assert (weights.double() @ means).item() == pytest.approx(combined.mean().item())
    assert (weights.double() @ covariances @ weights.double()).item() == pytest.approx(combined.var().item())


@pytest.mark.parametrize(("scores", "message"), [([1.0], "no spread"), ([1.0, math.nan, 2.0], "1 of 3 .*diverged")])
def test_scores_that_say_nothing_are_an_error(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        standardisation(torch.tensor(scores)[:, None])


def test_the_loss_of_demonstrations_by_hand_and_learning_raises_their_probability() -> None:
    # Two answers of two tokens and one, of a step of four: (ln 2 + ln 4 + ln 8) / 4 = 6/4 ln 2.
    logprobs = torch.tensor([[-LN2, -2 * LN2], [-3 * LN2, 0.0]], requires_grad=True)
    loss = negative_log_likelihood(logprobs=logprobs, num_tokens=4.0)
    assert loss.item() == pytest.approx(1.5 * LN2)
    loss.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[-0.25, -0.25], [-0.25, -0.25]]


def test_a_step_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="total_weight=0"):
        _loss([1.0], [0.0], total=0)
    with pytest.raises(ValueError, match="total_weight=0"):
        _ranked([[1.0, 0.0]], [[1, 2]], total=0)
    with pytest.raises(ValueError, match="total_weight=-1"):
        _rated([1.0], [0.0], total=-1)
    with pytest.raises(ValueError, match="num_tokens=0"):
        negative_log_likelihood(logprobs=torch.zeros(1, 1), num_tokens=0)
