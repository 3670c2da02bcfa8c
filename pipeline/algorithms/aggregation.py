"""Means, whitening and sums over the real tokens of a batch."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(*, values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the real tokens of the tensors at hand: sum(values * mask) / sum(mask); 0 where there are none.

    For metrics and whitening. A loss takes `token_sum_over`: means of unequal micro-batches do not add up.

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


def token_sum_over(*, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_tokens: float) -> Float[Tensor, ""]:
    """Share of these tokens in the step's mean: sum(values * mask) / num_tokens.

    Summed over all workers and micro-batches of an optimizer step, the shares are the mean over its real tokens,
    however the step was split. An empty mask gives 0.

    Args:
        values: [B, T], any floating dtype.
        mask: [B, T], True on real tokens.
        num_tokens: real tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive, so the step has no mean.
    """
    if not num_tokens > 0:
        raise ValueError(f"num_tokens={num_tokens}: give the step's number of real tokens, which is positive")
    return values.masked_fill(~mask, 0.0).sum() / num_tokens
