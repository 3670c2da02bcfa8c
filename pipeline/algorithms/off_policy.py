"""What to do where the copy that sampled is not the policy that learns: older weights, another engine, other rounding.

The update's own ratio is policy / proximal, with the proximal logprobs of the policy at the start of the update
(decoupled PPO: Hilton et al. 2022, arXiv 2110.00641). Importance weights proximal / behaviour, constants of the
update, account for the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import masked_mean
from pipeline.config import ImportanceCorrection


class ImportanceWeights(NamedTuple):
    """Factors of each token's policy loss.

    weights: [B, T], without gradient, 0 where padded.
    limited: [B, T], True on real tokens whose weight was truncated or masked; their number is its sum.
    """

    weights: Float[Tensor, "B T"]
    limited: Bool[Tensor, "B T"]


class Mismatch(NamedTuple):
    """How far behaviour and proximal logprobs lie apart over real tokens, d = log proximal - log behaviour, in nats.

    mean: of |d|; max: of |d|; kl: KL(behaviour || proximal), by k3 on the behaviour's samples.
    """

    mean: float
    max: float
    kl: float


def importance_weights(
    *,
    correction: ImportanceCorrection,
    proximal_logprobs: Float[Tensor, "B T"],
    behaviour_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float,
    low: float,
    high: float,
) -> ImportanceWeights:
    """The correction of that name; see `token_weights`, `sequence_weights`, `icepop_weights`. `none` is a weight of 1.

    Args:
        correction: which one.
        proximal_logprobs: [B, T], of the policy at the start of the update, in nats.
        behaviour_logprobs: [B, T], of the rollout copy that sampled, in nats.
        mask: [B, T], True on real tokens.
        cap: of `token` and `sequence`.
        low, high: of `icepop`.
    """
    log_ratio = (proximal_logprobs - behaviour_logprobs).detach().masked_fill(~mask, 0.0)
    match correction:
        case ImportanceCorrection.NONE:
            return ImportanceWeights(mask.to(log_ratio.dtype), torch.zeros_like(mask))
        case ImportanceCorrection.TOKEN:
            return token_weights(log_ratio=log_ratio, mask=mask, cap=cap)
        case ImportanceCorrection.SEQUENCE:
            return sequence_weights(log_ratio=log_ratio, mask=mask, cap=cap)
        case ImportanceCorrection.ICEPOP:
            return icepop_weights(log_ratio=log_ratio, mask=mask, low=low, high=high)


def token_weights(*, log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], cap: float) -> ImportanceWeights:
    """Truncated importance sampling, each token by itself: w_t = min(proximal_t / behaviour_t, cap).

    Truncation: Ionides 2008; V-trace's rho (Espeholt et al. 2018, arXiv 1802.01561); between rollout engine and trainer
    Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL training"). Low variance; biased,
    since it leaves out that earlier tokens, too, came from another policy.

    Args:
        log_ratio: [B, T], log proximal - log behaviour, in nats.
        mask: [B, T], True on real tokens.
        cap: largest weight, 1 or more.
    """
    return _truncated(log_ratio.exp(), mask, cap)


def sequence_weights(*, log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], cap: float) -> ImportanceWeights:
    """Truncated importance sampling of whole completions: w = min(prod_t proximal_t / behaviour_t, cap) at every token.

    Unbiased but for the cap; its variance grows with the length. Whole rows must be at hand, which a micro-batch has.

    Args:
        log_ratio: [B, T], log proximal - log behaviour, in nats.
        mask: [B, T], True on real tokens.
        cap: largest weight, 1 or more.
    """
    ratio = log_ratio.masked_fill(~mask, 0.0).sum(1, keepdim=True).exp().expand(mask.shape)
    return _truncated(ratio, mask, cap)


def icepop_weights(
    *, log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], low: float, high: float
) -> ImportanceWeights:
    """IcePop: w_t = proximal_t / behaviour_t where that lies in [low, high], else 0 (Ling team 2025, arXiv 2510.18855).

    A token on which sampling and training disagree too much teaches nothing. It still counts in the normalisers.

    Args:
        log_ratio: [B, T], log proximal - log behaviour, in nats.
        mask: [B, T], True on real tokens.
        low, high: bounds of the ratio, around 1; 0.5 and 5 in the paper.
    """
    ratio = log_ratio.exp()
    is_outside = ((ratio < low) | (ratio > high)) & mask
    return ImportanceWeights(ratio.masked_fill(is_outside | ~mask, 0.0), is_outside)


def mismatch(
    *, proximal_logprobs: Float[Tensor, "B T"], behaviour_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Mismatch:
    """How far the policy at the start of the update lies from the copy that sampled; all 0 without real tokens.

    Args:
        proximal_logprobs: [B, T], of the policy at the start of the update, in nats.
        behaviour_logprobs: [B, T], of the rollout copy that sampled, in nats.
        mask: [B, T], True on real tokens.
    """
    log_ratio = (proximal_logprobs - behaviour_logprobs).masked_fill(~mask, 0.0)
    kl = torch.expm1(log_ratio) - log_ratio
    return Mismatch(
        mean=float(masked_mean(values=log_ratio.abs(), mask=mask)),
        max=float(log_ratio.abs().max()),
        kl=float(masked_mean(values=kl, mask=mask)),
    )


def _truncated(ratio: Tensor, mask: Tensor, cap: float) -> ImportanceWeights:
    return ImportanceWeights(ratio.clamp(max=cap).masked_fill(~mask, 0.0), (ratio > cap) & mask)
