"""Token rewards, GAE, A2C, REINFORCE, REINFORCE++ and ReMax: golden values by hand, and what must change nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from torch import Tensor

from pipeline.algorithms.advantages import (
    a2c,
    gae,
    process_rewards,
    reinforce_plus_plus,
    remax,
    reward_to_go,
    token_rewards,
)

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


def test_process_rewards_bring_what_was_earned_to_its_token_and_sum_to_nothing() -> None:
    potentials = torch.tensor([[0.5, 2.0, 1.0, 9.0], [3.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    moved = process_rewards(potentials=potentials, mask=mask)
    # 0.5 - 0, 2 - 0.5, and back 2; with a reward of 1 at the end: 0.5, 1.5, -1, the differences of the potentials.
    assert moved.tolist() == [[0.5, 1.5, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    whole = token_rewards(completion_rewards=torch.tensor([1.0, 3.0]), mask=mask, kl=None, kl_weight=0.0) + moved
    assert whole.tolist() == [[0.5, 1.5, -1.0, 0.0], [3.0, 0.0, 0.0, 0.0]]


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1), length=st.integers(1, 9))
def test_gae_is_that_of_rllib(seed: int, gamma: float, lam: float, length: int) -> None:
    rewards, values = torch.randn(2, 1, length, generator=torch.Generator().manual_seed(seed))
    advantages, returns = gae(
        rewards=rewards, values=values, mask=torch.ones(1, length, dtype=torch.bool), gamma=gamma, lam=lam
    )
    ends = np.arange(length) == length - 1
    theirs = compute_value_targets(
        values[0].numpy(), rewards[0].numpy(), ends.astype(np.float32), np.zeros(length, np.float32), gamma, lam
    )
    torch.testing.assert_close(returns[0], torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(advantages[0], torch.from_numpy(theirs) - values[0], atol=1e-5, rtol=1e-5)


def test_reward_to_go_by_hand() -> None:
    # gamma 0.5: 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3.
    to_go = reward_to_go(
        rewards=torch.tensor([[1.0, 2.0, 4.0], [6.0, NAN, NAN]]),
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        gamma=0.5,
    )
    assert to_go.tolist() == [[3.0, 4.0, 4.0], [6.0, 0.0, 0.0]]


def test_a2c_by_hand() -> None:
    # The rewards to go 3, 4, 4 and 6 of above, minus the values 2, 3, 1 and 2.
    advantages, returns = a2c(
        rewards=torch.tensor([[1.0, 2.0, 4.0], [6.0, NAN, NAN]]),
        values=torch.tensor([[2.0, 3.0, 1.0], [2.0, NAN, NAN]]),
        mask=torch.tensor([[True, True, True], [True, False, False]]),
        gamma=0.5,
    )
    assert advantages.tolist() == [[1.0, 1.0, 3.0], [4.0, 0.0, 0.0]]
    assert returns.tolist() == [[3.0, 4.0, 4.0], [6.0, 0.0, 0.0]]


def test_a2c_is_gae_with_lambda_one() -> None:
    rewards, values, mask = _batch()
    ours = a2c(rewards=rewards, values=values, mask=mask, gamma=0.9)
    for one, other in zip(ours, gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=1.0), strict=True):
        torch.testing.assert_close(one, other)


def test_reinforce_plus_plus_by_hand() -> None:
    # Reward 5 and 2 at the end, KL 1 a token in the reward: rewards -1, 4 and 1, so to go 3, 4 and 1.
    # Mean 8/3; deviations 1/3, 4/3, -5/3; variance (1 + 16 + 25) / 9 / 3 = 14/9.
    mask = torch.tensor([[True, True], [True, False]])
    rewards = token_rewards(completion_rewards=torch.tensor([5.0, 2.0]), mask=mask, kl=torch.ones(2, 2), kl_weight=1.0)
    std = math.sqrt(14) / 3
    expected = torch.tensor([[1 / 3 / std, 4 / 3 / std], [-5 / 3 / std, 0.0]])
    torch.testing.assert_close(reinforce_plus_plus(rewards=rewards, mask=mask, gamma=1.0), expected)


def test_remax_by_hand() -> None:
    # Two prompts with two completions each; greedy rewards 1 and -2. Row 1: to go 3 - 0.5 and 3, minus 1.
    advantages = remax(
        rewards=torch.tensor([[-0.5, 3.0], [1.0, NAN], [0.0, 4.0], [-2.0, NAN]]),
        greedy_rewards=torch.tensor([1.0, -2.0]),
        mask=torch.tensor([[True, True], [True, False], [True, True], [True, False]]),
    )
    assert advantages.tolist() == [[1.5, 2.0], [0.0, 0.0], [6.0, 6.0], [0.0, 0.0]]


def test_remax_has_a_baseline_in_a_group_of_one() -> None:
    advantages = remax(rewards=torch.tensor([[3.0]]), greedy_rewards=torch.tensor([1.0]), mask=torch.tensor([[True]]))
    assert advantages.tolist() == [[2.0]]


@pytest.mark.parametrize("num_prompts", [0, 2, 4])
def test_remax_wants_one_greedy_reward_a_prompt(num_prompts: int) -> None:
    with pytest.raises(ValueError, match=f"3 completions and {num_prompts} greedy rewards"):
        remax(rewards=torch.zeros(3, 1), greedy_rewards=torch.zeros(num_prompts), mask=torch.ones(3, 1).bool())


def _gae(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return torch.stack(gae(rewards=rewards, values=values, mask=mask, gamma=0.9, lam=0.8))


def _a2c(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return torch.stack(a2c(rewards=rewards, values=values, mask=mask, gamma=0.9))


def _reinforce(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return reward_to_go(rewards=rewards, mask=mask, gamma=0.9)[None]


def _reinforce_plus_plus(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return reinforce_plus_plus(rewards=rewards, mask=mask, gamma=0.9)[None]


def _remax(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return remax(rewards=rewards, greedy_rewards=values[:, 0], mask=mask)[None]


each_estimator = pytest.mark.parametrize("estimator", [_gae, _a2c, _reinforce, _reinforce_plus_plus, _remax])
Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]


@each_estimator
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), width=st.integers(0, 3), seed=st.integers(0, 999))
def test_padding_changes_nothing_whatever_it_holds(
    estimator: Estimator, lengths: list[int], width: int, seed: int
) -> None:
    shape = (len(lengths), max(lengths))
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    junk = torch.full((len(lengths), width), NAN, dtype=torch.float64)
    plain = estimator(rewards * mask, values * mask, mask)
    padded = estimator(
        torch.cat([rewards.masked_fill(~mask, NAN), junk], dim=1),
        torch.cat([values.masked_fill(~mask, NAN), junk], dim=1),
        torch.cat([mask, torch.zeros_like(junk).bool()], dim=1),
    )
    torch.testing.assert_close(padded[:, :, : shape[1]], plain)
    assert not padded[:, ~torch.cat([mask, torch.zeros_like(junk).bool()], dim=1)].any()


@each_estimator
def test_the_order_of_rows_changes_nothing(estimator: Estimator) -> None:
    rewards, values, mask = _batch()
    order = torch.tensor([2, 0, 1])
    permuted = estimator(rewards[order], values[order], mask[order])
    torch.testing.assert_close(permuted, estimator(rewards, values, mask)[:, order])
