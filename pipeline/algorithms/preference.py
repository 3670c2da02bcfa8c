"""Learning from what raters say: losses of a reward model for pairs, rankings and ratings.

Each is a negative log likelihood: a sum over its rows, each by its weight, divided by the weight of everything that is
learned in the optimizer step, over all workers and micro-batches and all kinds of it. So the losses of a step add up.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bradley_terry_loss(
    *,
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
    is_tie: Bool[Tensor, " B"],
    weight: Float[Tensor, " B"],
    total_weight: float,
) -> Float[Tensor, ""]:
    """Of comparisons of two: -sum(weight * log sigmoid(chosen - rejected - margin)) / total_weight.

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
        weight: [B], of each pair.
        total_weight: of all that is learned in the optimizer step.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    _check_total(total_weight)
    difference = chosen - rejected
    choices = logsigmoid(difference - margin)
    ties = (logsigmoid(difference) + logsigmoid(-difference)) / 2
    return -(weight * torch.where(is_tie, ties, choices)).sum() / total_weight


def plackett_luce_loss(
    *, scores: Float[Tensor, "R K"], ranks: Int[Tensor, "R K"], weight: Float[Tensor, " R"], total_weight: float
) -> Float[Tensor, ""]:
    """Of rankings: -sum(weight * log P(ranking)) / total_weight, the best of what is left chosen each time.

    log P(i_1 before i_2 before ...) = sum_k (s_{i_k} - log(exp s_{i_k} + exp s_{i_k+1} + ...)): Luce 1959, Plackett
    1975; as a listwise loss ListMLE (Xia et al. 2008). A ranking of two is a pair of Bradley and Terry.

    A ranking with ties leaves open in which order those that tie would come: its log P is the mean over all orders that
    agree with it, so that a tie of two is half a choice of either, as in `bradley_terry_loss`. In these orders each
    subset of the tied ones is what is left of them equally often among those of its size, so the mean is a sum over
    subsets, with no need to go through the orders.

    Args:
        scores: [R, K] of the completions of each ranking, whatever where there is none.
        ranks: [R, K], 1 is best, equal ranks are ties, 0 where there is no completion.
        weight: [R], of each ranking.
        total_weight: of all that is learned in the optimizer step.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    _check_total(total_weight)
    choices = [_choices(tuple(row)) for row in ranks.tolist()]
    owner = torch.tensor([row for row, each in enumerate(choices) for _ in each], dtype=torch.int64).to(scores.device)
    share = scores.new_tensor([share for each in choices for share, _ in each])
    left = torch.tensor([members for each in choices for _, members in each], dtype=torch.bool)
    left = left.view(-1, scores.shape[1]).to(scores.device)
    normaliser = scores[owner].masked_fill(~left, -torch.inf).logsumexp(1)
    chosen = (weight[:, None] * scores.masked_fill(ranks == 0, 0.0)).sum()
    return ((weight[owner] * share * normaliser).sum() - chosen) / total_weight


@lru_cache(2**12)
def _choices(ranks: tuple[int, ...]) -> list[tuple[float, list[bool]]]:
    """Which completions are left when one is chosen [K], each with the share of the orders in which that is so."""
    found: list[tuple[float, list[bool]]] = []
    for rank in sorted(set(ranks) - {0}):
        tied = [place for place, each in enumerate(ranks) if each == rank]
        for size in range(len(tied), 0, -1):
            for some in combinations(tied, size):
                left = [place in some or each > rank for place, each in enumerate(ranks)]
                found.append((1 / comb(len(tied), size), left))
    return found


def rating_loss(
    *, scores: Float[Tensor, " B"], values: Float[Tensor, " B"], weight: Float[Tensor, " B"], total_weight: float
) -> Float[Tensor, ""]:
    """Of ratings of single completions on a bounded scale: the cross entropy of sigmoid(score) and the value.

    -sum(weight * (value * log sigmoid(score) + (1 - value) * log sigmoid(-score))) / total_weight. Its least is where
    sigmoid(score) is the mean value, also of values that are no probabilities (fractional regression: Papke and
    Wooldridge 1996). With labels, 0 or 1, it is logistic regression, and the reward model a verifier (Cobbe et al.
    2021, arXiv 2110.14168).

    Args:
        scores: [B] of the criterion that is rated.
        values: [B] in [0, 1], from the worst of the scale to the best.
        weight: [B], of each rating.
        total_weight: of all that is learned in the optimizer step.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    _check_total(total_weight)
    return binary_cross_entropy_with_logits(scores, values, weight, reduction="sum") / total_weight


def standardisation(scores: Float[Tensor, "N C"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C C"]]:
    """Means and covariances (of the sample, so with N - 1), in float64, of the scores of N completions by C criteria.

    Of a mean of the criteria with weights w they give mean and variance, w m and w S w, whatever the weights.

    Raises:
        ValueError: fewer than two scores, or one that is not finite.
    """
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} scores have no spread; hold out at least two completions")
    if num_bad := int((~scores.isfinite()).any(1).sum()):
        raise ValueError(f"{num_bad} of {len(scores)} scores are not finite: training diverged; lower learning_rate")
    scores = scores.double()
    mean = scores.mean(0)
    return mean, (scores - mean).T @ (scores - mean) / (len(scores) - 1)


def _check_total(total_weight: float) -> None:
    if total_weight <= 0:
        raise ValueError(f"total_weight={total_weight}: must be positive")
