"""Learning from pairs without a reference: SimPO and ORPO, on the mean log probability a token of each completion.

Each is a sum over pairs by their weights, divided by the weight of all pairs of the optimizer step. Neither holds the
policy anywhere: ORPO belongs beside the likelihood of the chosen completions (`likelihood`), SimPO has its margin.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.algorithms.aggregation import weighted_mean


def simpo_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """-sum(weight * log sigmoid(d)) / total_weight, d = beta * (chosen - rejected) - gamma - margin.

    Meng et al. 2024 (arXiv 2405.14734, equation 6). Label smoothing e takes (1 - e) log sigmoid(d) + e log sigmoid(-d).

    Args:
        chosen, rejected: mean log probabilities a token [B] of the two completions of each pair, in nats.
        margin: [B], beside `gamma`, of each pair; 0 where it does not say.
        weight: [B], of each pair.
        total_weight: of all pairs of the optimizer step.
        beta: reward a nat.
        gamma: by how much the chosen reward is to be larger at least.
        label_smoothing: share of pairs that are the wrong way round, in [0, 0.5).

    Raises:
        ValueError: `total_weight` is not positive.
    """
    difference = beta * (chosen - rejected) - gamma - margin
    right, wrong = logsigmoid(difference), logsigmoid(-difference)
    return -weighted_mean(
        values=(1 - label_smoothing) * right + label_smoothing * wrong, weight=weight, total_weight=total_weight
    )


def orpo_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
    beta: float,
) -> Float[Tensor, ""]:
    """The odds ratio's part: -beta * sum(weight * log sigmoid(log odds(chosen) - log odds(rejected))) / total_weight.

    Hong et al. 2024 (arXiv 2403.07691, equation 7): odds(p) = p / (1 - p) of p, the geometric mean of a completion's
    token probabilities; beta is its lambda.

    Args:
        chosen, rejected: mean log probabilities a token [B], in nats, below 0.
        weight, total_weight: as with `simpo_loss`.
        beta: weight of this part beside the likelihood.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    difference = log_odds(chosen) - log_odds(rejected)
    return -beta * weighted_mean(values=logsigmoid(difference), weight=weight, total_weight=total_weight)


def log_odds(logprobs: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log(p / (1 - p)) of log probabilities; finite also where p rounds to 1."""
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # Of the two forms each loses digits where the other does not (Maechler 2012, "Accurately computing log(1 - e^-a)").
    rest = torch.where(
        logprobs > -math.log(2),
        torch.log(-torch.expm1(logprobs)),
        torch.log1p(-torch.exp(logprobs.clamp(max=-math.log(2)))),
    )
    return logprobs - rest
