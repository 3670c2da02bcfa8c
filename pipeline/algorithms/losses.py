"""Losses of the update: each a sum over the tokens at hand divided by the step's global token count.

So the gradients of all workers and micro-batches *add up* (no averaging) to that of one batch. A KL penalty in the
loss is `kl_weight * token_sum_over(values=estimate_kl(...), ...)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import token_sum_over


class PolicyLoss(NamedTuple):
    """Scalars, each a sum over the tokens at hand / `num_tokens`; they add up to the step's mean over tokens.

    loss: to be minimised; the only one with a gradient.
    clip_fraction: tokens whose gradient the clip takes away.
    approx_kl: KL(behaviour || policy), by Schulman's k3 on the behaviour's samples, in nats.
    ratio_mean: policy / behaviour; near 1 while trainer and rollout agree.
    """

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    ratio_mean: Float[Tensor, ""]


def clipped_policy_loss(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float,
    num_tokens: float,
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347).

    loss = -sum(min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)) / num_tokens, ratio = policy / behaviour.
    The gradient is 0 where the ratio has left the clip range in the direction that the advantage asks for.

    Args:
        policy_logprobs: [B, T], with gradient, in nats.
        behaviour_logprobs: [B, T], of the rollout copy that sampled, in nats.
        advantages: [B, T].
        mask: [B, T], True on real tokens.
        clip: half width of the clip range, such as 0.2.
        num_tokens: real tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    log_ratio = (policy_logprobs - behaviour_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)

    def step_mean(values: Tensor) -> Tensor:
        return token_sum_over(values=values, mask=mask, num_tokens=num_tokens)

    return PolicyLoss(
        loss=step_mean(torch.maximum(unclipped, clipped)),
        clip_fraction=step_mean((clipped > unclipped).to(ratio.dtype)),
        approx_kl=step_mean(torch.expm1(log_ratio) - log_ratio).detach(),
        ratio_mean=step_mean(ratio).detach(),
    )


def clipped_value_loss(
    *,
    values_now: Float[Tensor, "B T"],
    values_behaviour: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float,
    num_tokens: float,
) -> Float[Tensor, ""]:
    """Clipped value loss, as in OpenAI's code of PPO; described by Engstrom et al. 2020 (arXiv 2005.12729).

    loss = sum(0.5 * max((V - R)^2, (clamp(V, V_b - clip, V_b + clip) - R)^2)) / num_tokens.

    Args:
        values_now: [B, T], V of the critic being trained, with gradient.
        values_behaviour: [B, T], V_b of the critic that scored the rollout.
        returns: [B, T], R.
        mask: [B, T], True on real tokens.
        clip: how far a value may move from V_b before its gradient ends, in units of reward.
        num_tokens: real tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    values_now = values_now.masked_fill(~mask, 0.0)  # first, so that no gradient comes out of padding
    clipped = values_now.clamp(values_behaviour - clip, values_behaviour + clip)
    errors = torch.maximum((values_now - returns).square(), (clipped - returns).square())
    return token_sum_over(values=0.5 * errors, mask=mask, num_tokens=num_tokens)


def entropy_bonus(*, entropy: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_tokens: float) -> Float[Tensor, ""]:
    """Entropy of the policy, sum(entropy * mask) / num_tokens, in nats; the loss is *minus* its weight times this.

    Args:
        entropy: [B, T], of the policy's distribution at each token, with gradient, in nats.
        mask: [B, T], True on real tokens.
        num_tokens: real tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    return token_sum_over(values=entropy, mask=mask, num_tokens=num_tokens)
