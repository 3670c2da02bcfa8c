"""Importance weights and mismatch: golden values by hand, and what padding and splitting must not change."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.off_policy import ImportanceWeights, importance_weights, mismatch
from pipeline.config import ImportanceCorrection

NAN = math.nan
# Ratios of proximal to behaviour: 4, 0.25, 1.5 in one completion, 0.5 and 2 in another.
RATIOS = torch.tensor([[4.0, 0.25, 1.5], [0.5, 2.0, NAN]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def _weights(correction: ImportanceCorrection, **changes: Any) -> ImportanceWeights:
    arguments: dict[str, Any] = {
        "proximal_logprobs": RATIOS.log(),
        "behaviour_logprobs": torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, NAN]]),
        "mask": MASK,
        "cap": 2.0,
        "low": 0.5,
        "high": 2.0,
        **changes,
    }
    return importance_weights(correction=correction, **arguments)


def _check(actual: ImportanceWeights, weights: list[list[float]], limited: list[list[int]]) -> None:
    torch.testing.assert_close(actual.weights, torch.tensor(weights, dtype=torch.float32))
    assert actual.limited.tolist() == [[bool(entry) for entry in row] for row in limited]


def test_without_a_correction_every_real_token_weighs_one() -> None:
    _check(_weights(ImportanceCorrection.NONE), [[1, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]])


def test_token_weights_by_hand() -> None:
    actual = _weights(ImportanceCorrection.TOKEN)
    _check(actual, [[2, 0.25, 1.5], [0.5, 2, 0]], [[1, 0, 0], [0, 0, 0]])
    assert actual.limited.sum() == 1


def test_sequence_weights_by_hand() -> None:
    # Products 4 * 0.25 * 1.5 = 1.5 and 0.5 * 2 = 1.
    _check(_weights(ImportanceCorrection.SEQUENCE), [[1.5] * 3, [1, 1, 0]], [[0, 0, 0], [0, 0, 0]])
    _check(_weights(ImportanceCorrection.SEQUENCE, cap=1.2), [[1.2] * 3, [1, 1, 0]], [[1, 1, 1], [0, 0, 0]])


def test_icepop_by_hand() -> None:
    # Bounds 0.5 and 2 belong to what is kept.
    _check(_weights(ImportanceCorrection.ICEPOP), [[0, 0, 1.5], [0.5, 2, 0]], [[1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_on_policy_samples_weigh_one(correction: ImportanceCorrection) -> None:
    same = _weights(correction, behaviour_logprobs=RATIOS.log())
    _check(same, [[1, 1, 1], [1, 1, 0]], [[0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_weights_have_no_gradient(correction: ImportanceCorrection) -> None:
    assert not _weights(correction, proximal_logprobs=RATIOS.log().requires_grad_()).weights.requires_grad


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_weights_stay_finite_however_far_apart_the_two_are(correction: ImportanceCorrection) -> None:
    actual = _weights(correction, proximal_logprobs=torch.tensor([[1e4] * 3, [-1e4] * 3]))
    assert torch.isfinite(actual.weights).all()


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=2, max_size=5), width=st.integers(0, 3), seed=st.integers(0, 999))
def test_neither_padding_nor_the_other_rows_change_a_weight(
    correction: ImportanceCorrection, lengths: list[int], width: int, seed: int
) -> None:
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    proximal = torch.randn(len(lengths), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    behaviour = torch.zeros_like(proximal)
    plain = _weights(correction, proximal_logprobs=proximal, behaviour_logprobs=behaviour, mask=mask)
    assert not plain.weights[~mask].any() and not plain.limited[~mask].any()
    junk = torch.full((len(lengths), width), NAN, dtype=torch.float64)
    padded = _weights(
        correction,
        proximal_logprobs=torch.cat([proximal.masked_fill(~mask, NAN), junk], dim=1),
        behaviour_logprobs=torch.cat([behaviour.masked_fill(~mask, NAN), junk], dim=1),
        mask=torch.cat([mask, junk.nan_to_num(0).bool()], dim=1),
    )
    alone = _weights(correction, proximal_logprobs=proximal[:1], behaviour_logprobs=behaviour[:1], mask=mask[:1])
    for whole, wide, row in zip(plain, padded, alone, strict=True):
        torch.testing.assert_close(wide[:, :4], whole)
        torch.testing.assert_close(row, whole[:1])


def test_mismatch_by_hand() -> None:
    # d = log 4, -log 4, log 1.5 of the first row and -log 2, log 2 of the second; k3 = e^d - 1 - d.
    proximal = RATIOS.double().log()
    apart = mismatch(proximal_logprobs=proximal, behaviour_logprobs=torch.zeros_like(proximal), mask=MASK)
    assert apart.mean == pytest.approx((2 * math.log(4) + math.log(1.5) + 2 * math.log(2)) / 5)
    assert apart.max == pytest.approx(math.log(4))
    assert apart.kl == pytest.approx((3 - 0.75 + 0.5 - math.log(1.5) - 0.5 + 1) / 5)


def test_there_is_no_mismatch_between_equals_or_among_no_tokens() -> None:
    logprobs = torch.tensor([[-1.0, NAN]])
    for mask in (torch.tensor([[True, False]]), torch.tensor([[False, False]])):
        apart = mismatch(proximal_logprobs=logprobs, behaviour_logprobs=logprobs, mask=mask)
        assert apart == (0.0, 0.0, 0.0)
