"""Advantages from the rewards of each token: GAE and A2C with a critic; REINFORCE, REINFORCE++ and ReMax without one.

Those that compare the completions of a prompt with each other are in `group_advantages`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import masked_whiten


def token_rewards(
    *,
    completion_rewards: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    kl: Float[Tensor, "B T"] | None,
    kl_weight: float,
) -> Float[Tensor, "B T"]:
    """Completion reward on the last real token, minus `kl_weight * kl` on every real token.

    The reward of InstructGPT (Ouyang et al. 2022, arXiv 2203.02155).

    Args:
        completion_rewards: [B].
        mask: [B, T], True on real tokens. A row without any gets no reward.
        kl: [B, T], per token, in nats; None where there is no penalty in the reward.
        kl_weight: reward a nat.

    Returns:
        [B, T] in the dtype of `completion_rewards`, 0 where padded.
    """
    num_left = mask.flip(1).cumsum(1).flip(1)  # real tokens from here on
    is_last = mask & (num_left == 1)
    rewards = is_last * completion_rewards[:, None]
    if kl is None:
        return rewards
    return rewards - kl_weight * kl.masked_fill(~mask, 0.0).to(rewards.dtype)


def process_rewards(*, potentials: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """What each token adds to a score of what has been said so far, and back at the last one: a sum of 0 a completion.

    r_t = phi_t - phi_(t-1) with phi_(-1) = 0, and at the last token -phi_(t-1). Added to a completion's reward at its
    last token they only move it to where it was earned: with gamma = 1 that is potential-based shaping, which changes
    no optimal policy (Ng, Harada and Russell 1999). For process rewards out of a model of outcomes see Yuan et al. 2024
    (arXiv 2412.01981).

    Args:
        potentials: [B, T], phi, in units of reward; whatever where padded.
        mask: [B, T], True on real tokens.

    Returns:
        [B, T] in the dtype of `potentials`, 0 where padded.
    """
    num_left = mask.flip(1).cumsum(1).flip(1)
    known = potentials.masked_fill(~mask | (num_left == 1), 0.0)
    before = torch.nn.functional.pad(known, (1, 0))[:, :-1]
    return (known - before) * mask


def gae(
    *,
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438).

    delta_t = r_t + gamma * V_{t+1} - V_t;  A_t = delta_t + gamma * lam * A_{t+1};  return_t = A_t + V_t.
    A completion ends at its last real token, where the next value is 0: also one that was cut off at the length limit.

    Args:
        rewards: [B, T], per token, as `token_rewards` gives them.
        values: [B, T], V_t of the critic *before* token t is taken.
        mask: [B, T], True on real tokens, which form a prefix of each row.
        gamma: discount a token, in [0, 1].
        lam: lambda, in [0, 1]; 1 gives Monte Carlo returns, 0 one-step ones.

    Returns:
        Advantages and returns, both [B, T], 0 where padded.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        # Padding lies to the right with reward and value 0, so what comes from there is 0 and ends the completion.
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def a2c(
    *, rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantage actor-critic: A_t = R_t - V_t with the discounted reward-to-go R_t = sum_{s >= t} gamma^(s - t) r_s.

    Mnih et al. 2016 (arXiv 1602.01783), followed to the completion's end; GAE with lambda 1 gives the same.

    Args:
        rewards: [B, T], per token, as `token_rewards` gives them.
        values: [B, T], V_t of the critic *before* token t is taken.
        mask: [B, T], True on real tokens.
        gamma: discount a token, in [0, 1].

    Returns:
        Advantages and returns, both [B, T], 0 where padded.
    """
    returns = reward_to_go(rewards=rewards, mask=mask, gamma=gamma)
    return returns - values.masked_fill(~mask, 0.0), returns


def reward_to_go(*, rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """REINFORCE without a baseline (Williams 1992): A_t = sum_{s >= t} gamma^(s - t) r_s.

    Args:
        rewards: [B, T], per token, as `token_rewards` gives them.
        mask: [B, T], True on real tokens, which form a prefix of each row.
        gamma: discount a token, in [0, 1].

    Returns:
        [B, T], 0 where padded.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    to_go = torch.zeros_like(rewards)
    total = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        total = rewards[:, t] + gamma * total
        to_go[:, t] = total
    return to_go


def reinforce_plus_plus(
    *, rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float
) -> Float[Tensor, "B T"]:
    """REINFORCE++: the reward-to-go, whitened over all real tokens of the step (Hu et al. 2025, arXiv 2501.03262).

    The mean of the step is the baseline. The paper has the KL in the reward, with k1: `token_rewards` puts it there.

    Args:
        rewards: [B, T] of the whole step, per token, as `token_rewards` gives them.
        mask: [B, T], True on real tokens.
        gamma: discount a token, in [0, 1]; 1 in the paper.

    Returns:
        [B, T], 0 where padded: white already, so that whitening once more would change nothing.
    """
    return masked_whiten(values=reward_to_go(rewards=rewards, mask=mask, gamma=gamma), mask=mask)


def remax(
    *, rewards: Float[Tensor, "B T"], greedy_rewards: Float[Tensor, " P"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """ReMax: the reward-to-go minus the reward of the same prompt's greedy completion.

    Li et al. 2024 (arXiv 2310.10505): A_t = sum_{s >= t} r_s - greedy reward. A KL in the reward enters the sum and not
    the baseline. Groups of one are the paper's own case.

    Args:
        rewards: [B, T], per token, as `token_rewards` gives them; B = P * n, the n completions of a prompt together.
        greedy_rewards: [P], of each prompt's likeliest completion, shaped as the sampled ones were.
        mask: [B, T], True on real tokens.

    Returns:
        [B, T], 0 where padded.

    Raises:
        ValueError: the rows cannot be shared out among the prompts.
    """
    num_rows, num_prompts = len(rewards), len(greedy_rewards)
    if not num_prompts or num_rows % num_prompts:
        raise ValueError(f"{num_rows} completions and {num_prompts} greedy rewards: give one greedy reward a prompt")
    baseline = greedy_rewards.repeat_interleave(num_rows // num_prompts)[:, None]
    return (reward_to_go(rewards=rewards, mask=mask, gamma=1.0) - baseline).masked_fill(~mask, 0.0)
