"""Means, whitening and the aggregations of a loss: golden values by hand, and what must change nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms.aggregation import (
    Normalisers,
    aggregate,
    fixed_length,
    masked_mean,
    masked_whiten,
    sequence_mean,
    token_mean,
)
from pipeline.config import Aggregation

NAN = math.nan


def test_masked_mean_counts_only_real_tokens() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values=values, mask=mask).item() == 3.0  # (1 + 2 + 6) / 3


def test_an_empty_mask_has_mean_zero_whitens_to_zero_and_adds_nothing_to_a_loss() -> None:
    values, mask = torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(values=values, mask=mask).item() == 0.0
    assert masked_whiten(values=values, mask=mask).tolist() == [[0.0] * 3] * 2
    for aggregation in Aggregation:
        counts = Normalisers(num_tokens=5.0, num_completions=5.0, max_length=5)
        assert aggregate(aggregation=aggregation, values=values, mask=mask, normalisers=counts).item() == 0.0


def test_whitening_by_hand() -> None:
    # Real tokens 1, 3, 8: mean 4, deviations -3, -1, 4, population variance (9 + 1 + 16) / 3 = 26 / 3.
    values = torch.tensor([[1.0, 3.0], [8.0, NAN]])
    mask = torch.tensor([[True, True], [True, False]])
    std = math.sqrt(26 / 3)
    expected = torch.tensor([[-3 / std, -1 / std], [4 / std, 0.0]])
    torch.testing.assert_close(masked_whiten(values=values, mask=mask), expected)


def test_whitening_gives_zero_where_all_values_are_the_same() -> None:
    whitened = masked_whiten(values=torch.full((2, 2), 7.0), mask=torch.ones(2, 2, dtype=torch.bool))
    assert whitened.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=12), shift=st.floats(-50, 50))
def test_whitening_ignores_a_shift(values: list[float], shift: float) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    mask = torch.ones_like(row, dtype=torch.bool)
    plain, shifted = (masked_whiten(values=x, mask=mask, eps=1e-3) for x in (row, row + shift))
    torch.testing.assert_close(plain, shifted, atol=1e-6, rtol=1e-6)
    assert abs(plain.mean().item()) < 1e-6
    assert plain.square().mean().item() <= 1 + 1e-6


VALUES = torch.tensor([[1.0, 2.0, 6.0], [5.0, NAN, NAN]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_token_mean_by_hand() -> None:
    assert token_mean(values=VALUES, mask=MASK, num_tokens=7.0).item() == 2.0  # (1 + 2 + 6 + 5) / 7


def test_sequence_mean_by_hand() -> None:
    # ((1 + 2 + 6) / 3 + 5 / 1) / 4
    assert sequence_mean(values=VALUES, mask=MASK, num_completions=4.0).item() == 2.0


def test_fixed_length_by_hand() -> None:
    # (1 + 2 + 6 + 5) / (4 * 7)
    assert fixed_length(values=VALUES, mask=MASK, num_completions=4.0, max_length=7).item() == 0.5


def test_the_three_agree_where_all_completions_are_as_long_as_they_can_be() -> None:
    values, mask = torch.arange(6.0).view(2, 3), torch.ones(2, 3, dtype=torch.bool)
    normalisers = Normalisers(num_tokens=6.0, num_completions=2.0, max_length=3)
    for aggregation in Aggregation:
        assert aggregate(aggregation=aggregation, values=values, mask=mask, normalisers=normalisers).item() == 2.5


@pytest.mark.parametrize("aggregation", list(Aggregation))
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    width=st.integers(0, 3),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_shares_add_up_however_a_step_is_split_ordered_and_padded(
    aggregation: Aggregation, lengths: list[int], width: int, seed: int, data: st.DataObject
) -> None:
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    values = torch.randn(len(lengths), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    counts = Normalisers(num_tokens=max(1.0, float(mask.sum())), num_completions=float(len(lengths)), max_length=4)

    def share(values: Tensor, mask: Tensor) -> Tensor:
        return aggregate(aggregation=aggregation, values=values, mask=mask, normalisers=counts)

    whole = share(values, mask)
    worker = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))))
    shares = [share(values[worker == rank], mask[worker == rank]) for rank in range(3)]
    torch.testing.assert_close(torch.stack(shares).sum(), whole)
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    torch.testing.assert_close(share(values[order], mask[order]), whole)
    junk = torch.full((len(lengths), width), NAN, dtype=torch.float64)
    dirty = torch.cat([values.masked_fill(~mask, NAN), junk], dim=1)
    torch.testing.assert_close(share(dirty, torch.cat([mask, junk.nan_to_num(0).bool()], dim=1)), whole)


def test_a_token_mean_over_the_whole_step_is_the_masked_mean() -> None:
    whole = token_mean(values=VALUES, mask=MASK, num_tokens=4.0)
    torch.testing.assert_close(whole, masked_mean(values=VALUES, mask=MASK))


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("count", [0.0, -1.0, NAN])
def test_a_step_without_tokens_or_completions_is_an_error(aggregation: Aggregation, count: float) -> None:
    counts = Normalisers(num_tokens=count, num_completions=count, max_length=4)
    with pytest.raises(ValueError, match="num_tokens" if aggregation is Aggregation.TOKEN_MEAN else "num_completions"):
        aggregate(aggregation=aggregation, values=VALUES, mask=MASK, normalisers=counts)


@pytest.mark.parametrize("max_length", [None, 0, -2])
def test_a_fixed_length_must_be_given(max_length: int | None) -> None:
    with pytest.raises(ValueError, match="max_length"):
        fixed_length(values=VALUES, mask=MASK, num_completions=2.0, max_length=max_length)
