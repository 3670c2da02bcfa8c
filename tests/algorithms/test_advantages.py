"""Token rewards, GAE and GRPO: golden values by hand, and what padding and row order must not change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms.advantages import gae, grpo, token_rewards

NAN = math.nan


def test_the_reward_lies_on_the_last_real_token() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    rewards = token_rewards(completion_rewards=torch.tensor([5.0, -2.0, 9.0]), mask=mask, kl=None, kl_weight=0.1)
    assert rewards.tolist() == [[0.0, 5.0, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0]]


def test_every_real_token_pays_for_its_kl() -> None:
    rewards = token_rewards(
        completion_rewards=torch.tensor([5.0]),
        mask=torch.tensor([[True, True, False]]),
        kl=torch.tensor([[1.0, 2.0, NAN]]),
        kl_weight=0.5,
    )
    assert rewards.tolist() == [[-0.5, 4.0, 0.0]]  # 0 - 0.5 * 1, 5 - 0.5 * 2, padding


def test_gae_by_hand() -> None:
    # gamma 0.5, lambda 0.5; second row one token long.
    # Row 1: delta_2 = 4 - 1 = 3;          A_2 = 3
    #        delta_1 = 2 + 0.5 * 1 - 3 = -0.5;  A_1 = -0.5 + 0.25 * 3 = 0.25
    #        delta_0 = 1 + 0.5 * 3 - 2 = 0.5;   A_0 = 0.5 + 0.25 * 0.25 = 0.5625
    # Row 2: A_0 = 6 - 2 = 4.
    advantages, returns = gae(
        rewards=torch.tensor([[1.0, 2.0, 4.0], [6.0, NAN, NAN]]),
        values=torch.tensor([[2.0, 3.0, 1.0], [2.0, NAN, NAN]]),
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [[0.5625, 0.25, 3.0], [4.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.5625, 3.25, 4.0], [6.0, 0.0, 0.0]]  # advantages + values


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5)[None] < torch.tensor([5, 1, 3])[:, None]
    rewards, values = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards * mask, values * mask, mask


def test_with_lambda_one_returns_are_the_discounted_rewards_to_go() -> None:
    rewards, values, mask = _batch()
    _, returns = gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=1.0)
    for row, start in ((0, 0), (0, 3), (1, 0), (2, 1)):
        to_go = sum(0.9**k * reward for k, reward in enumerate(rewards[row, start:].tolist()))
        assert returns[row, start].item() == pytest.approx(to_go)


def test_with_lambda_zero_advantages_are_the_one_step_errors() -> None:
    rewards, values, mask = _batch()
    advantages, _ = gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(advantages, (rewards + 0.9 * next_values - values) * mask)


def test_padding_changes_nothing_in_gae_whatever_it_holds() -> None:
    rewards, values, mask = _batch()
    junk = torch.full((3, 2), NAN, dtype=torch.float64)
    plain = gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=0.8)
    padded = gae(
        rewards=torch.cat([rewards, junk], dim=1),
        values=torch.cat([values, junk], dim=1),
        mask=torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1),
        gamma=0.9,
        lam=0.8,
    )
    for short, long in zip(plain, padded, strict=True):
        assert torch.equal(short, long[:, :5])
        assert torch.equal(long[:, 5:], torch.zeros(3, 2, dtype=torch.float64))


def test_gae_treats_each_row_alone() -> None:
    rewards, values, mask = _batch()
    order = torch.tensor([2, 0, 1])
    plain = gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=0.8)
    permuted = gae(rewards=rewards[order], values=values[order], mask=mask[order], gamma=0.9, lam=0.8)
    for before, after in zip(plain, permuted, strict=True):
        assert torch.equal(before[order], after)


def test_grpo_by_hand() -> None:
    # Group 1: 0, 1, 1, 2 has mean 1 and population variance (1 + 0 + 0 + 1) / 4 = 1/2.
    # Group 2: 1, 0, 0, 0 has mean 1/4 and variance (9 + 1 + 1 + 1) / 16 / 4 = 3/16.
    advantages = grpo(completion_rewards=torch.tensor([[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.0, 0.0]]), eps=0.0)
    root2, std = math.sqrt(2), math.sqrt(3) / 4
    expected = torch.tensor([[-root2, 0.0, 0.0, root2], [0.75 / std] + [-0.25 / std] * 3])
    torch.testing.assert_close(advantages, expected)


def test_grpo_says_nothing_where_all_rewards_of_a_group_are_the_same() -> None:
    rewards = torch.tensor([[1000.1] * 3, [0.1] * 3, [0.0] * 3])  # the mean of three 0.1 is not exactly 0.1
    assert torch.equal(grpo(completion_rewards=rewards), torch.zeros(3, 3))


def test_grpo_says_nothing_in_a_group_of_one() -> None:
    assert grpo(completion_rewards=torch.tensor([[3.0], [-1.0]])).tolist() == [[0.0], [0.0]]


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
