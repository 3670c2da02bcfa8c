"""GRPO, Dr.GRPO, RLOO, REINFORCE++ baseline, best and worst: golden values by hand, groups of one, invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms.group_advantages import best_and_worst, dr_grpo, grpo, reinforce_plus_plus_baseline, rloo


def test_grpo_by_hand() -> None:
    # Group 1: 0, 1, 1, 2 has mean 1 and population variance (1 + 0 + 0 + 1) / 4 = 1/2.
    # Group 2: 1, 0, 0, 0 has mean 1/4 and variance (9 + 1 + 1 + 1) / 16 / 4 = 3/16.
    advantages = grpo(completion_rewards=torch.tensor([[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0]]), eps=0.0)
    root2, std = math.sqrt(2), math.sqrt(3) / 4
    expected = torch.tensor([[-root2, 0.0, 0.0, root2], [0.75 / std] + [-0.25 / std] * 3])
    torch.testing.assert_close(advantages, expected)


def test_dr_grpo_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0]])  # means 1 and 1/4
    assert dr_grpo(completion_rewards=rewards).tolist() == [[-1.0, 0.0, 0.0, 1.0], [0.75, -0.25, -0.25, -0.25]]


def test_rloo_by_hand() -> None:
    # Means of the others: of 0 it is (1 + 5) / 2 = 3, of 1 it is 2.5, of 5 it is 0.5.
    advantages = rloo(completion_rewards=torch.tensor([[0.0, 1.0, 5.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-3.0, -1.5, 4.5]]))


def test_rloo_of_two_is_their_difference() -> None:
    assert rloo(completion_rewards=torch.tensor([[3.0, 1.0]])).tolist() == [[2.0, -2.0]]


def test_reinforce_plus_plus_baseline_by_hand() -> None:
    # Groups 3, 1 and 0, 4 leave 1, -1, -2, 2; on 2, 1, 1, 1 tokens: 1, 1, -1, -2, 2 with mean 1/5.
    # Deviations 4/5, 4/5, -6/5, -11/5, 9/5; variance (16 + 16 + 36 + 121 + 81) / 25 / 5 = 54/25.
    advantages = reinforce_plus_plus_baseline(
        completion_rewards=torch.tensor([[3.0, 1.0], [0.0, 4.0]]),
        mask=torch.tensor([[True, True], [True, False], [True, False], [True, False]]),
    )
    std = math.sqrt(54)
    expected = torch.tensor([[4 / std, 4 / std], [-6 / std, 0.0], [-11 / std, 0.0], [9 / std, 0.0]])
    torch.testing.assert_close(advantages, expected)


def test_best_and_worst_are_a_pair_among_those_that_are_learned() -> None:
    rewards = torch.tensor([[0.0, 2.0, 5.0, -1.0], [1.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [1.0, 9.0, 9.0, 9.0]])
    is_learned = torch.ones(4, 4, dtype=torch.bool)
    is_learned[0, 2] = is_learned[3, 1:] = False
    assert best_and_worst(completion_rewards=rewards, is_learned=is_learned).tolist() == [
        [0, 1, 0, -1],  # the best one is left out
        [-1, 1, 0, 0],  # of equal ones the first
        [0, 0, 0, 0],
        [0, 0, 0, 0],  # one alone is left
    ]


def _baseline(completion_rewards: Tensor) -> Tensor:
    mask = torch.ones(completion_rewards.numel(), 1, dtype=torch.bool)
    advantages = reinforce_plus_plus_baseline(completion_rewards=completion_rewards, mask=mask)
    return advantages.view(completion_rewards.shape)


def _grpo(completion_rewards: Tensor) -> Tensor:
    return grpo(completion_rewards=completion_rewards)


def _dr_grpo(completion_rewards: Tensor) -> Tensor:
    return dr_grpo(completion_rewards=completion_rewards)


def _rloo(completion_rewards: Tensor) -> Tensor:
    return rloo(completion_rewards=completion_rewards)


each_estimator = pytest.mark.parametrize("estimator", [_grpo, _dr_grpo, _rloo, _baseline])
Estimator = Callable[[Tensor], Tensor]


@each_estimator
def test_there_is_nothing_to_learn_where_all_rewards_of_a_group_are_the_same(estimator: Estimator) -> None:
    rewards = torch.tensor([[1000.1] * 3, [0.1] * 3, [0.0] * 3])  # the mean of three 0.1 is not exactly 0.1
    assert torch.equal(estimator(rewards), torch.zeros(3, 3))


@each_estimator
def test_there_is_nothing_to_learn_in_a_group_of_one(estimator: Estimator) -> None:
    assert estimator(torch.tensor([[3.0], [-1.0]])).tolist() == [[0.0], [0.0]]


@each_estimator
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), groups=st.integers(1, 4), size=st.integers(1, 5))
def test_the_order_of_groups_and_of_completions_changes_nothing(
    estimator: Estimator, seed: int, groups: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-3, 4, (groups, size), generator=generator).double()
    rows, columns = torch.randperm(groups, generator=generator), torch.randperm(size, generator=generator)
    torch.testing.assert_close(estimator(rewards[rows][:, columns]), estimator(rewards)[rows][:, columns])


@settings(max_examples=50, deadline=None)
@given(
    group=st.lists(st.integers(-5, 5), min_size=2, max_size=6),
    scale=st.floats(0.5, 10),
    shift=st.floats(-10, 10),
)
def test_grpo_ignores_the_scale_and_origin_of_a_groups_rewards(group: list[int], scale: float, shift: float) -> None:
    rewards = torch.tensor([group], dtype=torch.float64)
    plain = grpo(completion_rewards=rewards, eps=1e-12)
    torch.testing.assert_close(plain, grpo(completion_rewards=rewards * scale + shift, eps=1e-12), atol=1e-6, rtol=1e-6)
    assert abs(plain.sum().item()) < 1e-9
    if len(set(group)) > 1:
        assert plain.square().mean().item() == pytest.approx(1.0)
