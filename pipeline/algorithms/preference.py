"""Learning from comparisons: the loss of a reward model, and what standardises its scores."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    is_tie: Bool[Tensor, " B"],
    num_pairs: float,
) -> Float[Tensor, ""]:
    """Negative log likelihood of the choices, -sum(log sigmoid(chosen - rejected - margin)) / num_pairs.

    Bradley and Terry 1952; for reward models Christiano et al. 2017 (arXiv 1706.03741), with a margin Llama 2 (Touvron
    et al. 2023, arXiv 2307.09288, equation 2). A tie counts as half a choice of either, as with Christiano et al.:
    -(log sigmoid(chosen - rejected) + log sigmoid(rejected - chosen)) / 2, least at equal scores. Unlike the models of
    Rao and Kupper (1967) and Davidson (1970) that adds no parameter, and sigmoid(chosen - rejected) stays the
    probability of a choice.

    Args:
        chosen, rejected: scores [B] of the two completions of each pair.
        margin: [B], by how much the chosen score is to be larger at least; 0 where the pair does not say. Ties have
            none.
        is_tie: [B], where both are equally good.
        num_pairs: pairs in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_pairs` is not positive.
    """
    if num_pairs <= 0:
        raise ValueError(f"num_pairs={num_pairs}: must be positive")
    difference = chosen - rejected
    choices = logsigmoid(difference - margin)
    ties = (logsigmoid(difference) + logsigmoid(-difference)) / 2
    return -torch.where(is_tie, ties, choices).sum() / num_pairs


def standardisation(scores: Float[Tensor, " N"], *, smallest: float = 1e-6) -> tuple[float, float]:
    """Mean and standard deviation (of the sample, so with N - 1) of scores [N], to give rewards (score - mean) / std.

    The std is at least `smallest`: a model that tells nothing apart gives rewards of 0, and no NaN.

    Raises:
        ValueError: fewer than two scores, or one that is not finite.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} scores have no spread; hold out at least one pair")
    if num_bad := int((~scores.isfinite()).sum()):
        raise ValueError(f"{num_bad} of {len(scores)} scores are not finite: training diverged; lower learning_rate")
    scores = scores.double()
    return float(scores.mean()), max(float(scores.std()), smallest)
