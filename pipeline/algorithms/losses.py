"""The critic's loss. The policy's is a surrogate (`surrogates`) under an aggregation (`aggregation`)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import token_mean


def clipped_value_loss(
    *,
    values_now: Float[Tensor, "B T"],
    values_behaviour: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float,
    num_tokens: float,
) -> Float[Tensor, ""]:
    """Clipped value loss, as in OpenAI's code of PPO; described by Engstrom et al. 2020 (arXiv 2005.12729).

    loss = sum(0.5 * max((V - R)^2, (clamp(V, V_b - clip, V_b + clip) - R)^2)) / num_tokens.

    Args:
        values_now: [B, T], V of the critic being trained, with gradient.
        values_behaviour: [B, T], V_b of the critic that scored the rollout.
        returns: [B, T], R.
        mask: [B, T], True on real tokens.
        clip: how far a value may move from V_b before its gradient ends, in units of reward.
        num_tokens: real tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    values_now = values_now.masked_fill(~mask, 0.0)  # first, so that no gradient comes out of padding
    clipped = values_now.clamp(values_behaviour - clip, values_behaviour + clip)
    errors = torch.maximum((values_now - returns).square(), (clipped - returns).square())
    return token_mean(values=0.5 * errors, mask=mask, num_tokens=num_tokens)
