"""Several parts of a reward without one drowning the others: normalised apart, held above a floor.

And what each has to say in the end: its share of the signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

MULTIPLIERS = (1e-2, 1e2)
"""Bounds of a multiplier: below, a part that slips would take too long to be heard again; above, it drowns all."""


def normalised_in_group(*, values: Float[Tensor, "P n"], eps: float = 1e-6) -> Float[Tensor, "P n"]:
    """(r - mean) / (std + eps) of one part over the completions of each group to which it applies.

    The standard deviation is that of the population, as in `grpo`.

    Args:
        values: [P, n], NaN where the part does not apply.
        eps: in units of the part.

    Returns:
        [P, n]; 0 where all that apply are the same, NaN where the part does not apply.
    """
    centred = values - values.nanmean(dim=1, keepdim=True)
    std = centred.square().nanmean(dim=1, keepdim=True).sqrt()
    low, high = (values.nan_to_num(nan=bound) for bound in (math.inf, -math.inf))
    # Rounding of the mean must not be blown up to size 1 in a group that tells us nothing.
    is_flat = low.amin(dim=1, keepdim=True) == high.amax(dim=1, keepdim=True)
    return torch.where(is_flat & ~values.isnan(), 0.0, centred / (std + eps))


def gdpo(
    *,
    parts: Mapping[str, Float[Tensor, "P n"]],
    weights: Mapping[str, Float[Tensor, "P 1"] | float],
    eps: float = 1e-6,
) -> Float[Tensor, "P n"]:
    """GDPO: each part is normalised in its group, then their weighted sum over the step (arXiv 2601.05242).

    A = sum over parts of w * (r - mean) / (std + eps) in each group; then (A - mean(A)) / (std(A) + eps) over all
    completions of the step. Summing first and normalising then (GRPO) gives different sets of parts the same advantage,
    and leaves a part of small variance unheard beside one of large variance.

    Args:
        parts: name -> [P, n], n completions of each of P prompts; NaN where a part does not apply, which adds nothing.
        weights: name -> weight, or that of each prompt [P, 1], for the same names.
        eps: added to standard deviations.

    Returns:
        [P, n]; mean 0 and mean square 1 over the step, all 0 where no part varies in any group.

    Raises:
        ValueError: weights and parts do not fit.
    """
    if parts.keys() != weights.keys() or not parts:
        raise ValueError(f"reward parts {sorted(parts)} do not fit weights {sorted(weights)}")
    summed = torch.stack([weights[name] * normalised_in_group(values=parts[name], eps=eps) for name in parts])
    summed = summed.nansum(dim=0)
    centred = summed - summed.mean()
    return centred / (centred.square().mean().sqrt() + eps)


def signal_shares(*, contributions: Mapping[str, Float[Tensor, "P n"]]) -> dict[str, float]:
    """Share of each part in what distinguishes the completions of a group: its covariance with the sum over that one's
    variance, sum(c(x) * c(R)) / sum(c(R)^2) with R the sum of the x and c(.) the difference from the group's mean.

    Shares add up to 1. A negative one is that of a part which the others outvote. Groups of one are compared with the
    whole batch.

    Args:
        contributions: name -> [P, n], what each part adds to the reward: weight times value; NaN adds nothing.

    Returns:
        By name; empty where the sum varies in no group.
    """
    filled = {name: values.double().nan_to_num(nan=0.0) for name, values in contributions.items()}
    centred = {name: _centred(values) for name, values in filled.items()}
    if not centred:
        return {}
    summed = torch.stack(list(centred.values())).sum(dim=0)
    variance = float(summed.square().sum())
    if variance <= 1e-12 * summed.numel():
        return {}
    return {name: float((values * summed).sum()) / variance for name, values in centred.items()}


def _centred(values: Float[Tensor, "P n"]) -> Float[Tensor, "P n"]:
    return values - (values.mean() if values.shape[1] == 1 else values.mean(dim=1, keepdim=True))


def next_multiplier(*, multiplier: float, value: float, floor: float, rate: float) -> float:
    """The Lagrange multiplier of a part that is to stay above its floor: E[value] >= floor.

    Gradient ascent on the dual, on the multiplier's logarithm, as Safe RLHF does (Dai et al. 2024, arXiv 2310.12773,
    appendix B): ln lambda <- ln lambda + rate * lambda * (floor - value). It rises while the part is below its floor,
    falls while it is above, and stays within `MULTIPLIERS`.

    Args:
        multiplier: lambda so far, positive; what the part's value is multiplied by in the reward.
        value: the part's mean over a step's completions.
        rate: step size, in 1 / unit of the part.
    """
    low, high = (math.log(bound) for bound in MULTIPLIERS)
    return math.exp(min(max(math.log(multiplier) + rate * multiplier * (floor - value), low), high))
