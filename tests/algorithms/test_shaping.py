"""Combining, scaling and clipping completion rewards, punishing length, and which groups have a signal."""

import json
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.shaping import (
    RunningScale,
    clip_reward,
    combine,
    is_clipped,
    overlong_penalty,
    varied_groups,
)


def test_parts_are_summed_by_weight() -> None:
    parts = {"exact_match": torch.tensor([1.0, 0.0]), "length": torch.tensor([-0.5, -1.0])}
    combined = combine(parts=parts, weights={"exact_match": 2.0, "length": 0.5})
    assert combined.tolist() == [1.75, -0.5]  # 2 * 1 - 0.5 * 0.5, 2 * 0 - 0.5 * 1


def test_a_part_that_does_not_apply_is_left_out_of_the_sum() -> None:
    parts = {"distance": torch.tensor([0.5, math.nan, math.nan]), "wer": torch.tensor([1.0, 0.25, math.nan])}
    assert combine(parts=parts, weights={"distance": 2.0, "wer": 4.0}).tolist() == [5.0, 1.0, 0.0]


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"missing parts \['learned'\]"):
        combine(parts={"wer": torch.zeros(2)}, weights={"wer": 1.0, "learned": 1.0})


def test_a_part_without_a_weight_is_named() -> None:
    with pytest.raises(ValueError, match=r"without a weight \['learned'\]"):
        combine(parts={"wer": torch.zeros(2), "learned": torch.zeros(2)}, weights={"wer": 1.0})


def test_no_parts_at_all_are_an_error() -> None:
    with pytest.raises(ValueError, match="reward parts"):
        combine(parts={}, weights={})


def test_rewards_are_clipped_to_the_bound_on_both_sides() -> None:
    assert clip_reward(rewards=torch.tensor([-11.0, 0.5, 11.0]), bound=10.0).tolist() == [-10.0, 0.5, 10.0]


def test_rewards_on_the_bound_are_not_clipped_and_those_beyond_it_are() -> None:
    assert is_clipped(rewards=torch.tensor([-11.0, -10.0, 0.5, 10.0, 11.0]), bound=10.0).tolist() == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_the_overlong_penalty_by_hand() -> None:
    # Limit 16, buffer 4: nothing up to 12 tokens, then a quarter of the penalty a token, all of it from 16 on.
    penalty = overlong_penalty(lengths=torch.tensor([1, 12, 13, 14, 16, 20]), max_length=16, buffer=4, penalty=2.0)
    assert penalty.tolist() == [0.0, 0.0, -0.5, -1.0, -2.0, -2.0]


def test_without_a_buffer_length_costs_nothing() -> None:
    assert overlong_penalty(lengths=torch.tensor([1, 16]), max_length=16, buffer=0, penalty=1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("buffer", [-1, 17])
def test_a_buffer_longer_than_a_completion_is_an_error(buffer: int) -> None:
    with pytest.raises(ValueError, match=f"buffer={buffer}.*max_length=16"):
        overlong_penalty(lengths=torch.tensor([1]), max_length=16, buffer=buffer, penalty=1.0)


def test_groups_vary_where_their_rewards_differ_by_more_than_the_tolerance() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0 + 1e-7], [0.5, 0.6, 0.5]])
    assert varied_groups(rewards=rewards).tolist() == [False, True, False, True]
    assert varied_groups(rewards=rewards, tolerance=0.2).tolist() == [False, True, False, False]


def test_a_group_of_one_does_not_vary() -> None:
    assert varied_groups(rewards=torch.tensor([[1.0], [2.0]])).tolist() == [False, False]


def test_running_scale_by_hand() -> None:
    # 1, 3, 8: mean 4, squared deviations 9 + 1 + 16 = 26.
    scale = RunningScale().updated(rewards=torch.tensor([1.0, 3.0])).updated(rewards=torch.tensor([8.0]))
    assert (scale.count, scale.mean) == (3, pytest.approx(4.0))
    assert scale.m2 == pytest.approx(26.0)
    assert scale.std == pytest.approx((26 / 3) ** 0.5)
    assert scale.scaled(rewards=torch.tensor([26.0])).item() == pytest.approx(26 / (26 / 3) ** 0.5)


def test_before_two_different_rewards_nothing_is_scaled() -> None:
    scale = RunningScale()
    assert scale.scaled(rewards=torch.tensor([3.0])).tolist() == [3.0]
    assert scale.updated(rewards=torch.tensor([3.0, 3.0])).std == 1.0
    assert scale.updated(rewards=torch.tensor([])) == scale


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=1, max_size=5))
def test_running_scale_does_not_depend_on_the_batches(batches: list[list[float]]) -> None:
    scale = RunningScale()
    for batch in batches:
        scale = scale.updated(rewards=torch.tensor(batch))
    rewards = [reward for batch in batches for reward in batch]
    std = statistics.pstdev(rewards)
    assert scale.std == pytest.approx(std if std > 1e-6 else scale.std, rel=1e-6)


def test_a_reward_that_is_not_finite_cannot_spoil_the_scale() -> None:
    with pytest.raises(ValueError, match="2 of 3 rewards are not finite"):
        RunningScale().updated(rewards=torch.tensor([1.0, float("nan"), float("inf")]))


def test_a_scale_comes_back_from_a_checkpoint() -> None:
    scale = RunningScale().updated(rewards=torch.tensor([1.0, 3.0, 8.0]))
    assert RunningScale.from_state(json.loads(json.dumps(scale.state()))) == scale
