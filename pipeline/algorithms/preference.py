"""The loss of a reward model on comparisons."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(
    *, chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], num_pairs: float
) -> Float[Tensor, ""]:
    """Negative log likelihood of the choices, -sum(log sigmoid(chosen - rejected)) / num_pairs.

    Bradley and Terry 1952; for reward models Christiano et al. 2017 (arXiv 1706.03741).

    Args:
        chosen, rejected: scores [B] of the two completions of each pair.
        num_pairs: pairs in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_pairs` is not positive.
    """
    if num_pairs <= 0:
        raise ValueError(f"num_pairs={num_pairs}: must be positive")
    return -torch.nn.functional.logsigmoid(chosen - rejected).sum() / num_pairs
