"""Surrogates of the policy's loss, a value a token: PPO clip, GSPO, CISPO, the plain policy gradient.

What the step's loss is follows by an aggregation (`pipeline.algorithms.aggregation`). *Proximal* logprobs are those of
the policy at the start of the update; the ratio of the update is policy / proximal. Where sampling and training agree
they are the behaviour logprobs. Where not, importance weights make up for it (`pipeline.algorithms.off_policy`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config import PolicyLossName

# Beyond e^20 a ratio means nothing; bounded, it can overflow neither by itself nor in the gradient.
MAX_LOG_RATIO = 20.0


class Surrogate(NamedTuple):
    """A loss for each token.

    loss: [B, T], to be minimised, with gradient; only real tokens mean anything.
    clipped: [B, T], True on real tokens that the clip acts on: PPO and GSPO take their gradient away, CISPO bounds it.
    ratio: [B, T], policy / proximal as the surrogate uses it, detached; 1 where padded.
    """

    loss: Float[Tensor, "B T"]
    clipped: Bool[Tensor, "B T"]
    ratio: Float[Tensor, "B T"]


def policy_surrogate(
    *,
    name: PolicyLossName,
    policy_logprobs: Float[Tensor, "B T"],
    proximal_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Surrogate:
    """The surrogate of that name; see `ppo`, `gspo`, `cispo`, `policy_gradient`. Only PPO takes `dual_clip`.

    Raises:
        ValueError: it is `dpo`, which has none.
    """
    match name:
        case PolicyLossName.PPO:
            return ppo(
                policy_logprobs=policy_logprobs,
                proximal_logprobs=proximal_logprobs,
                advantages=advantages,
                mask=mask,
                clip_low=clip_low,
                clip_high=clip_high,
                dual_clip=dual_clip,
            )
        case PolicyLossName.GSPO | PolicyLossName.CISPO:
            return (gspo if name is PolicyLossName.GSPO else cispo)(
                policy_logprobs=policy_logprobs,
                proximal_logprobs=proximal_logprobs,
                advantages=advantages,
                mask=mask,
                clip_low=clip_low,
                clip_high=clip_high,
            )
        case PolicyLossName.POLICY_GRADIENT:
            return policy_gradient(policy_logprobs=policy_logprobs, advantages=advantages, mask=mask)
        case PolicyLossName.DPO:
            raise ValueError("policy_loss=dpo compares whole completions and has no surrogate; see direct_preference")


def ppo(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    proximal_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Surrogate:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347), with two bounds and a second clip where asked.

    loss = -min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A), ratio = policy / proximal.
    The gradient is 0 where the ratio has left the clip range in the direction that the advantage asks for.
    `clip_high` above `clip_low` is DAPO's clip-higher (Yu et al. 2025, arXiv 2503.14476): unlikely tokens may rise.
    Dual clip (Ye et al. 2020, arXiv 1912.09729) bounds what the clip leaves open: where A < 0 the loss is at most
    -dual_clip * A, so a ratio above `dual_clip` has no gradient.

    Args:
        policy_logprobs: [B, T], with gradient, in nats.
        proximal_logprobs: [B, T], of the policy at the start of the update, in nats.
        advantages: [B, T].
        mask: [B, T], True on real tokens.
        clip_low, clip_high: the clip range is [1 - clip_low, 1 + clip_high].
        dual_clip: bound of the ratio where A < 0, above 1, such as 3; None for none.
    """
    log_ratio = (policy_logprobs - proximal_logprobs).masked_fill(~mask, 0.0)
    return _clipped(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def gspo(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    proximal_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """Group sequence policy optimisation: PPO's clip on a ratio of whole completions.

    Zheng et al. 2025 (arXiv 2507.18071): s_i = exp(mean over tokens of log(policy / proximal)), the geometric mean of
    the token ratios. Token form (GSPO-token): s_it = sg(s_i) * policy_it / sg(policy_it), with sg the stop-gradient.
    Its value is s_i at every token, its gradient goes to each token's own logprob; with one advantage a completion and
    `sequence_mean`, value and gradient are those of the sequence form. The paper's clip is 3e-4 and 4e-4.

    Args:
        policy_logprobs: [B, T], with gradient, in nats.
        proximal_logprobs: [B, T], of the policy at the start of the update, in nats.
        advantages: [B, T].
        mask: [B, T], True on real tokens. Rows must be whole completions.
        clip_low, clip_high: the clip range is [1 - clip_low, 1 + clip_high].
    """
    policy_logprobs = policy_logprobs.masked_fill(~mask, 0.0)
    log_ratio = policy_logprobs.detach() - proximal_logprobs.masked_fill(~mask, 0.0)
    of_completion = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    log_ratio = (of_completion + policy_logprobs - policy_logprobs.detach()).masked_fill(~mask, 0.0)
    return _clipped(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=None)


def cispo(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    proximal_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """Clipped importance weights, no clipped tokens: CISPO of MiniMax-M1 (2025, arXiv 2506.13585).

    loss = -sg(clamp(ratio, 1 - clip_low, 1 + clip_high)) * A * log policy, ratio = policy / proximal. Every token keeps
    a gradient. The paper has no lower bound: `clip_low` of 1 or more.

    Args:
        policy_logprobs: [B, T], with gradient, in nats.
        proximal_logprobs: [B, T], of the policy at the start of the update, in nats.
        advantages: [B, T].
        mask: [B, T], True on real tokens.
        clip_low, clip_high: the weight is held in [1 - clip_low, 1 + clip_high].
    """
    policy_logprobs = policy_logprobs.masked_fill(~mask, 0.0)
    ratio = _exp(policy_logprobs.detach() - proximal_logprobs.masked_fill(~mask, 0.0))
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(-weight * advantages * policy_logprobs, weight != ratio, ratio)


def policy_gradient(
    *, policy_logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Surrogate:
    """The plain policy gradient: loss = -A * log policy (Williams 1992; with A2C's advantages, Mnih et al. 2016).

    Its gradient is right on samples of the policy itself and of no other: there is no ratio.

    Args:
        policy_logprobs: [B, T], with gradient, in nats.
        advantages: [B, T].
        mask: [B, T], True on real tokens.
    """
    policy_logprobs = policy_logprobs.masked_fill(~mask, 0.0)
    return Surrogate(-advantages * policy_logprobs, torch.zeros_like(mask), torch.ones_like(policy_logprobs))


def _clipped(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> Surrogate:
    """PPO's pessimistic clip of a ratio [B, T] given by its logarithm, which is 0 where padded."""
    ratio = _exp(log_ratio)
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss, clipped = torch.maximum(unclipped, bounded), bounded > unclipped
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        is_above = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(is_above, ceiling, loss), clipped | is_above
    return Surrogate(loss, clipped, ratio.detach())


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
