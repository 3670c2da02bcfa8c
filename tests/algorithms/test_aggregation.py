"""Means, whitening and global sums: golden values by hand, and what padding and splitting must not change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.aggregation import masked_mean, masked_whiten, token_sum_over

NAN = math.nan


def test_masked_mean_counts_only_real_tokens() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values=values, mask=mask).item() == 3.0  # (1 + 2 + 6) / 3


def test_an_empty_mask_has_mean_zero_and_whitens_to_zero() -> None:
    values, mask = torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(values=values, mask=mask).item() == 0.0
    assert masked_whiten(values=values, mask=mask).tolist() == [[0.0] * 3] * 2
    assert token_sum_over(values=values, mask=mask, num_tokens=5.0).item() == 0.0


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


def test_token_sum_divides_by_the_global_count() -> None:
    values = torch.tensor([[1.0, 2.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    assert token_sum_over(values=values, mask=mask, num_tokens=12.0).item() == 0.25  # (1 + 2) / 12


def test_the_shares_of_uneven_micro_batches_add_up_to_one_batch() -> None:
    values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 2, 0, 3])[:, None]
    num_tokens = float(mask.sum())
    whole = token_sum_over(values=values, mask=mask, num_tokens=num_tokens)
    parts = zip(values.split([1, 3, 1]), mask.split([1, 3, 1]), strict=True)
    shares = [token_sum_over(values=v, mask=m, num_tokens=num_tokens) for v, m in parts]
    torch.testing.assert_close(torch.stack(shares).sum(), whole)
    torch.testing.assert_close(whole, masked_mean(values=values, mask=mask))


@pytest.mark.parametrize("num_tokens", [0.0, -1.0, NAN])
def test_a_step_without_tokens_is_an_error(num_tokens: float) -> None:
    with pytest.raises(ValueError, match="num_tokens"):
        token_sum_over(values=torch.zeros(1, 1), mask=torch.ones(1, 1, dtype=torch.bool), num_tokens=num_tokens)
