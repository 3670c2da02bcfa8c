"""Learning from single completions that are good or bad: KTO, and APO without pairs.

The reward of a completion is beta * log ratio of policy and reference, as with DPO. Each loss is a sum over completions
by their weights, divided by the weight of all completions of the optimizer step, over all workers and micro-batches.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import weighted_mean


def kto_loss(
    *,
    log_ratios: Float[Tensor, " B"],
    is_good: Bool[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
    baseline: float,
) -> Float[Tensor, ""]:
    """sum(weight * (1 - sigmoid(+-(beta * (log ratio - baseline))))) / total_weight; + where good, - where bad.

    Ethayarajh et al. 2024 (arXiv 2402.01306, equation 8): gains and losses are felt against a reference point, and less
    the further off they are. A good completion gains by becoming likelier, a bad one by becoming less likely.

    Args:
        log_ratios: [B], of policy and reference, of whole completions, in nats.
        is_good: [B].
        weight: [B], of each completion, with the weight of its side.
        total_weight: of all completions of the optimizer step, without the weights of the sides.
        beta: reward a nat.
        baseline: the reference point, see `kl_baseline`: one for the whole step, without a gradient.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    gain = beta * (log_ratios - baseline)
    values = 1 - gain.where(is_good, -gain).sigmoid()
    return weighted_mean(values=values, weight=weight, total_weight=total_weight)


def kl_baseline(*, sum_log_ratios: float, num: int) -> float:
    """KL of policy and reference, estimated on completions that belong to other prompts: max(0, mean log ratio).

    The mean is over the whole optimizer step, so that it does not depend on how that is split; 0 without any.

    Args:
        sum_log_ratios: of policy and reference, of whole completions after prompts that they do not answer, in nats.
        num: how many these are.
    """
    return max(0.0, sum_log_ratios / num) if num else 0.0


def apo_zero_loss(
    *,
    log_ratios: Float[Tensor, " B"],
    is_good: Bool[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
) -> Float[Tensor, ""]:
    """The same against a baseline of 0: good completions become likelier than they were, bad ones less likely.

    APO-zero without pairs (D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7). Arguments and errors as with
    `kto_loss`.
    """
    return kto_loss(
        log_ratios=log_ratios, is_good=is_good, weight=weight, total_weight=total_weight, beta=beta, baseline=0.0
    )
