"""Learning from pairs against a reference: DPO and its kin.

The reward of a completion is beta * log ratio, with log ratio = log pi(completion) - log reference(completion), both
summed over its tokens. Each loss is a sum over pairs by their weights, divided by the weight of all pairs of the
optimizer step, over all workers and micro-batches.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.algorithms.aggregation import weighted_mean


def dpo_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """-sum(weight * ((1 - e) log sigmoid(d) + e log sigmoid(-d))) / total_weight.

    d = beta * (chosen - rejected) - margin: Rafailov et al. 2023 (arXiv 2305.18290, equation 7); with a margin
    Amini et al. 2024 (ODPO, arXiv 2402.10571); with label smoothing e, the share of pairs that are the wrong way round,
    Mitchell 2023 (cDPO).

    Args:
        chosen, rejected: log ratios [B] of the two completions of each pair, in nats.
        margin: [B], by how much the chosen reward is to be larger at least; 0 where the pair does not say.
        weight: [B], of each pair.
        total_weight: of all pairs of the optimizer step.
        beta: reward a nat.
        label_smoothing: e, in [0, 0.5).

    Raises:
        ValueError: `total_weight` is not positive.
    """
    difference = beta * (chosen - rejected) - margin
    right, wrong = logsigmoid(difference), logsigmoid(-difference)
    return -weighted_mean(
        values=(1 - label_smoothing) * right + label_smoothing * wrong, weight=weight, total_weight=total_weight
    )


def robust_dpo_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """-sum(weight * ((1 - e) log sigmoid(d) - e log sigmoid(-d)) / (1 - 2e)) / total_weight: its mean is noise free.

    Chowdhury et al. 2024 (arXiv 2403.00409, equation 12): over labels that are wrong with probability e its expectation
    is the loss of DPO on the right ones. Arguments and errors as with `dpo_loss`.
    """
    difference = beta * (chosen - rejected) - margin
    right, wrong = logsigmoid(difference), logsigmoid(-difference)
    values = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return -weighted_mean(values=values, weight=weight, total_weight=total_weight)


def hinge_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
) -> Float[Tensor, ""]:
    """sum(weight * max(0, 1 + margin - beta * (chosen - rejected))) / total_weight: pairs that are apart teach nothing.

    SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on normalised likelihoods, as in RSO (Liu et al. 2023, arXiv
    2309.06657). Arguments and errors as with `dpo_loss`.
    """
    values = (1 + margin - beta * (chosen - rejected)).relu()
    return weighted_mean(values=values, weight=weight, total_weight=total_weight)


def ipo_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    chosen_lengths: Int[Tensor, " B"],
    rejected_lengths: Int[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
) -> Float[Tensor, ""]:
    """sum(weight * (chosen / length - rejected / length - 1 / (2 beta))^2) / total_weight.

    Azar et al. 2023 (arXiv 2310.12036, equation 17; beta is its tau), on log ratios a token, as its authors did.

    Args:
        chosen, rejected: log ratios [B] of the two completions of each pair, in nats.
        chosen_lengths, rejected_lengths: their tokens [B].
        weight, total_weight: as with `dpo_loss`.
        beta: the larger, the smaller the difference that is aimed at, in nats a token.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    difference = chosen / chosen_lengths - rejected / rejected_lengths
    values = (difference - 1 / (2 * beta)).square()
    return weighted_mean(values=values, weight=weight, total_weight=total_weight)
