"""What a fusion model says of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FusionOutput:
    """One row a sample.

    logits: float32 [B, K], of the classes or actions.
    embedding: float32 [B, D], fused.
    weights: float32 [B, M], how much each modality has in it; rows sum to 1 over those that are there, 0 elsewhere.
    """

    logits: Tensor
    embedding: Tensor
    weights: Tensor
