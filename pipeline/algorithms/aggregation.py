"""From values a token to one number: means for metrics, whitening, and the three aggregations of a loss.

A loss is a share of the whole optimizer step: its normalisers are counts over all workers and micro-batches, given by
the caller. So the shares *add up* to the loss of one batch, however the step was split.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config import Aggregation


@dataclass(frozen=True)
class Normalisers:
    """Counts of a whole optimizer step, over all workers and micro-batches.

    num_tokens: real tokens.
    num_completions: completions, those without any real token too.
    max_length: tokens that a completion may have at most; only `Aggregation.FIXED_LENGTH` needs it.
    """

    num_tokens: float
    num_completions: float
    max_length: int | None = None


def masked_mean(*, values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the real tokens of the tensors at hand: sum(values * mask) / sum(mask); 0 where there are none.

    For metrics and whitening. A loss takes `aggregate`: means of unequal micro-batches do not add up.

    Args:
        values: any floating dtype, any shape.
        mask: True on real tokens.
    """
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(
    *, values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Shifts and scales the real tokens to mean 0 and variance 1: (values - mean) / sqrt(variance + eps).

    Mean and (population) variance are over all real tokens at hand, so give it the whole step, not a micro-batch.
    What it does for PPO's advantages: Andrychowicz et al. 2021 (arXiv 2006.05990).

    Args:
        values: any floating dtype, any shape.
        mask: True on real tokens.
        eps: added to the variance; values that are all the same become 0.

    Returns:
        Same shape and dtype, 0 where padded.
    """
    centred = values - masked_mean(values=values, mask=mask)
    variance = masked_mean(values=centred.square(), mask=mask)
    return (centred * (variance + eps).rsqrt()).masked_fill(~mask, 0.0)


def aggregate(
    *,
    aggregation: Aggregation,
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    normalisers: Normalisers,
) -> Float[Tensor, ""]:
    """Share of these tokens in the step's loss, by the aggregation of that name.

    Args:
        aggregation: see `token_mean`, `sequence_mean`, `fixed_length`.
        values: [B, T], any floating dtype.
        mask: [B, T], True on real tokens.
        normalisers: counts of the whole optimizer step.

    Raises:
        ValueError: a count that is needed is missing or not positive.
    """
    match aggregation:
        case Aggregation.TOKEN_MEAN:
            return token_mean(values=values, mask=mask, num_tokens=normalisers.num_tokens)
        case Aggregation.SEQUENCE_MEAN:
            return sequence_mean(values=values, mask=mask, num_completions=normalisers.num_completions)
        case Aggregation.FIXED_LENGTH:
            return fixed_length(
                values=values,
                mask=mask,
                num_completions=normalisers.num_completions,
                max_length=normalisers.max_length,
            )


def token_mean(*, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_tokens: float) -> Float[Tensor, ""]:
    """Every token of the step counts the same: sum(values * mask) / num_tokens.

    DAPO's token-level loss (Yu et al. 2025, arXiv 2503.14476, equation 8), and the usual one of PPO. A long completion
    weighs more than a short one. An empty mask gives 0.

    Args:
        values: [B, T], any floating dtype.
        mask: [B, T], True on real tokens.
        num_tokens: real tokens in the whole optimizer step.

    Raises:
        ValueError: `num_tokens` is not positive, so the step has no mean.
    """
    _check_positive("num_tokens", num_tokens, "real tokens")
    return values.masked_fill(~mask, 0.0).sum() / num_tokens


def sequence_mean(
    *, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_completions: float
) -> Float[Tensor, ""]:
    """Every completion of the step counts the same: the mean over completions of each one's mean over its tokens.

    sum_i (sum_t values_it * mask_it / |completion i|) / num_completions: GRPO's original objective (Shao et al. 2024,
    arXiv 2402.03300, equation 3). A completion without real tokens adds 0.

    Args:
        values: [B, T], any floating dtype.
        mask: [B, T], True on real tokens.
        num_completions: completions in the whole optimizer step.

    Raises:
        ValueError: `num_completions` is not positive.
    """
    _check_positive("num_completions", num_completions, "completions")
    return (values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).sum() / num_completions


def fixed_length(
    *, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_completions: float, max_length: int | None
) -> Float[Tensor, ""]:
    """A sum over tokens by a constant: sum(values * mask) / (num_completions * max_length).

    Dr.GRPO (Liu et al. 2025, arXiv 2503.20783): a token's weight depends neither on its completion's length nor on
    those of the others, so that the gradient is that of the expected return.

    Args:
        values: [B, T], any floating dtype.
        mask: [B, T], True on real tokens.
        num_completions: completions in the whole optimizer step.
        max_length: tokens that a completion may have at most.

    Raises:
        ValueError: a count is not positive, or `max_length` was not given.
    """
    _check_positive("num_completions", num_completions, "completions")
    _check_positive("max_length", max_length or 0, "tokens a completion may have")
    return values.masked_fill(~mask, 0.0).sum() / (num_completions * float(max_length or 0))


def weighted_mean(
    *, values: Float[Tensor, " B"], weight: Float[Tensor, " B"], total_weight: float
) -> Float[Tensor, ""]:
    """Every row counts by its weight: sum(values * weight) / total_weight.

    Args:
        values: [B], of comparisons, completions or whatever is weighed.
        weight: [B], of each.
        total_weight: of all of them in the whole optimizer step.

    Raises:
        ValueError: `total_weight` is not positive.
    """
    _check_positive("total_weight", total_weight, "weights")
    return (values * weight).sum() / total_weight


def _check_positive(name: str, count: float, of_what: str) -> None:
    if not count > 0:
        raise ValueError(f"{name}={count}: give the step's number of {of_what}, which is positive")
