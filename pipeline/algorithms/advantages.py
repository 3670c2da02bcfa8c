"""From rewards to advantages: a reward for each token, GAE with a critic, GRPO without one."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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


def grpo(*, completion_rewards: Float[Tensor, "P n"], eps: float = 1e-6) -> Float[Tensor, "P n"]:
    """Group-relative advantages: A_i = (r_i - mean(r)) / (std(r) + eps) within each group.

    Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, section 4.1.2, outcome supervision); every token of completion i
    takes A_i. The paper does not say which standard deviation. Here it is that of the population (divide by n): a
    group then has mean square 1 whatever n, and a group of one is defined. TRL's divides by n - 1, which makes its
    advantages smaller by the constant factor sqrt((n - 1) / n).

    Args:
        completion_rewards: [P, n], n completions of each of P prompts.
        eps: added to the standard deviation, in units of reward.

    Returns:
        [P, n]. A group whose rewards are all the same (also a group of one) has exactly 0.
    """
    centred = completion_rewards - completion_rewards.mean(dim=1, keepdim=True)
    std = centred.square().mean(dim=1, keepdim=True).sqrt()
    # Rounding of the mean must not be blown up to size 1 in a group that tells us nothing.
    is_flat = completion_rewards.amax(dim=1, keepdim=True) == completion_rewards.amin(dim=1, keepdim=True)
    return (centred / (std + eps)).masked_fill(is_flat, 0.0)
