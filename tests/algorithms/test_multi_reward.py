"""Several parts of a reward: normalised apart, held above a floor; and what each has to say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.group_advantages import dr_grpo, grpo
from pipeline.algorithms.multi_reward import (
    MULTIPLIERS,
    gdpo,
    next_multiplier,
    normalised_in_group,
    signal_shares,
)

NAN = math.nan


def test_a_part_is_normalised_in_its_group_by_hand() -> None:
    # Mean 2, deviations -1, 1, std 1; mean 3, deviations -3, 3, std 3.
    found = normalised_in_group(values=torch.tensor([[1.0, 3.0], [0.0, 6.0]]), eps=0.0)
    assert found.tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


def test_where_a_part_does_not_apply_it_says_nothing_and_the_others_are_compared_without_it() -> None:
    values = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [5.0, NAN, NAN], [0.1, 0.1, 0.1]])
    found = normalised_in_group(values=values, eps=0.0)
    assert found.isnan().tolist() == values.isnan().tolist()
    assert found.nan_to_num(9.0).tolist() == [[-1.0, 9.0, 1.0], [9.0] * 3, [0.0, 9.0, 9.0], [0.0] * 3]


def test_gdpo_by_hand() -> None:
    parts = {"a": torch.tensor([[0.0, 2.0], [1.0, 1.0]]), "b": torch.tensor([[10.0, 0.0], [0.0, 30.0]])}
    # In their groups: a is -1, 1 and 0, 0; b is 1, -1 and -1, 1. Weighted by 3 and 1: -2, 2 and -1, 1.
    # Over the step the mean is 0 and the mean square (4 + 4 + 1 + 1) / 4 = 2.5.
    expected = torch.tensor([[-2.0, 2.0], [-1.0, 1.0]]) / math.sqrt(2.5)
    torch.testing.assert_close(gdpo(parts=parts, weights={"a": 3.0, "b": 1.0}, eps=0.0), expected)


def test_gdpo_tells_sums_apart_that_are_the_same_to_grpo() -> None:
    # The example of the paper: two parts of 0 or 1 in groups of two. (0, 1) and (0, 2) are the same to GRPO.
    one = {"a": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "b": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}
    summed = grpo(completion_rewards=one["a"] + one["b"])
    torch.testing.assert_close(summed[0], summed[1], atol=1e-5, rtol=0)
    found = gdpo(parts=one, weights={"a": 1.0, "b": 1.0}, eps=0.0)
    torch.testing.assert_close(found[1], 2 * found[0])


def test_a_part_of_large_variance_does_not_drown_one_of_small() -> None:
    torch.manual_seed(0)
    loud, quiet = 10.0 * torch.randn(64, 8), torch.randn(64, 8)  # variances 100 and 1
    weights = {"loud": 1.0, "quiet": 1.0}

    def correlation(advantages: torch.Tensor, part: torch.Tensor) -> float:
        pair = torch.stack([advantages.flatten(), dr_grpo(completion_rewards=part).flatten()])
        return float(torch.corrcoef(pair)[0, 1])

    summed, apart = (
        dr_grpo(completion_rewards=loud + quiet),
        gdpo(parts={"loud": loud, "quiet": quiet}, weights=weights),
    )
    assert correlation(summed, quiet) < 0.2 and correlation(summed, loud) > 0.98
    assert correlation(apart, quiet) == pytest.approx(0.7, abs=0.1)
    assert correlation(apart, loud) == pytest.approx(0.7, abs=0.1)


def test_gdpo_points_where_the_parts_point_and_a_negative_weight_turns_it() -> None:
    part = {"a": torch.tensor([[0.0, 1.0, 2.0, 5.0]])}
    assert gdpo(parts=part, weights={"a": 1.0})[0].diff().min() > 0
    assert gdpo(parts=part, weights={"a": -1.0})[0].diff().max() < 0


def test_gdpo_of_what_does_not_vary_is_nothing_and_what_does_not_fit_is_named() -> None:
    assert gdpo(parts={"a": torch.full((3, 2), 0.1)}, weights={"a": 1.0}).tolist() == [[0.0, 0.0]] * 3
    assert gdpo(parts={"a": torch.full((3, 2), NAN)}, weights={"a": 1.0}).tolist() == [[0.0, 0.0]] * 3
    with pytest.raises(ValueError, match=r"parts \['a'\] do not fit weights \['b'\]"):
        gdpo(parts={"a": torch.zeros(1, 2)}, weights={"b": 1.0})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_gdpo_has_unit_size_and_knows_neither_the_unit_nor_the_zero_of_a_part(
    seed: int, scale: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = {"a": 1.0, "b": 0.5}
    found = gdpo(parts={"a": one, "b": other}, weights=weights, eps=1e-12)
    assert float(found.mean()) == pytest.approx(0, abs=1e-9) and float(found.square().mean()) == pytest.approx(1)
    torch.testing.assert_close(found, gdpo(parts={"a": scale * one + shift, "b": other}, weights=weights, eps=1e-12))


def test_shares_of_the_signal_by_hand() -> None:
    # Deviations of a: -1, 1; of b: -3, 3; of the sum: -4, 4. Covariances 8 and 24 of a variance of 32.
    shares = signal_shares(contributions={"a": torch.tensor([[0.0, 2.0]]), "b": torch.tensor([[4.0, 10.0]])})
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})
    # A part that is outvoted: deviations 1, -1 and -3, 3, of the sum -2, 2.
    shares = signal_shares(contributions={"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[4.0, 10.0]])})
    assert shares == pytest.approx({"a": -0.5, "b": 1.5})


def test_differences_between_groups_are_no_signal_except_where_a_group_is_one_completion() -> None:
    between = torch.tensor([[100.0, 100.0], [0.0, 0.0]])
    assert signal_shares(contributions={"a": between, "b": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}) == {"a": 0, "b": 1}
    assert signal_shares(contributions={"a": between}) == {} == signal_shares(contributions={})
    ones = {"a": torch.tensor([[0.0], [2.0]]), "b": torch.tensor([[NAN], [NAN]])}
    assert signal_shares(contributions=ones) == {"a": 1.0, "b": 0.0}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_parts=st.integers(1, 4))
def test_shares_add_up_to_one(seed: int, num_parts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = {str(k): torch.randn(3, 4, generator=generator) for k in range(num_parts)}
    parts["0"][0, 0] = NAN
    assert sum(signal_shares(contributions=parts).values()) == pytest.approx(1.0)


def test_a_multiplier_rises_below_the_floor_and_falls_above_it() -> None:
    # ln 2 + 0.5 * 2 * (0.9 - 0.4) = ln 2 + 0.5
    assert next_multiplier(multiplier=2.0, value=0.4, floor=0.9, rate=0.5) == pytest.approx(2 * math.exp(0.5))
    assert next_multiplier(multiplier=2.0, value=1.4, floor=0.9, rate=0.5) == pytest.approx(2 * math.exp(-0.5))
    assert next_multiplier(multiplier=2.0, value=0.9, floor=0.9, rate=0.5) == pytest.approx(2.0)


def test_a_multiplier_stays_within_its_bounds_and_comes_back() -> None:
    low, high = MULTIPLIERS
    assert next_multiplier(multiplier=high, value=-1e9, floor=0.9, rate=1.0) == pytest.approx(high)
    assert next_multiplier(multiplier=1.0, value=1e9, floor=0.9, rate=1.0) == pytest.approx(low)
    assert next_multiplier(multiplier=high, value=1.0, floor=0.9, rate=1.0) < high
    assert next_multiplier(multiplier=low, value=0.0, floor=0.9, rate=1.0) > low


def test_a_multiplier_leads_to_its_floor() -> None:
    """A share of 0.7 is asked for where the other side pays 3; a pull to one half, as a KL has, steadies the policy."""
    multiplier, logit, share = 1.0, 0.0, 0.5
    for _ in range(3000):
        share = 1 / (1 + math.exp(-logit))
        logit += 0.1 * ((multiplier - 3.0) * share * (1 - share) - 0.3 * logit)
        multiplier = next_multiplier(multiplier=multiplier, value=share, floor=0.7, rate=0.02)
    assert share == pytest.approx(0.7, abs=0.01)
    # Where the gradient is nothing: 3 + 0.3 * ln(0.7 / 0.3) / (0.7 * 0.3).
    assert multiplier == pytest.approx(4.21, abs=0.05)
