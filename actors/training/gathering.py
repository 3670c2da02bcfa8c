"""A batch that is shared out over the ranks of a world, and compared as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from actors.engine.engine import Engine
from actors.engine.place import Place
from pipeline.models.fusion.samples import Sample

K = TypeVar("K")
Batch = Sequence[Sample]


class _Gathered(torch.autograd.Function):
    """Rows of all ranks, in their order; the gradient of a row comes back from all ranks, summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.num = len(rows)
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        first = torch.distributed.get_rank() * ctx.num
        return total[first : first + ctx.num]


def gathered(parts: dict[K, Tensor], world_size: int) -> dict[K, Tensor]:
    """Each of some float32 [n, D] over all ranks, [n * world_size, D], in one exchange; each rank must have as many.

    A gradient at a gathered row flows to the rank that made it. The engine sums gradients over the ranks, so that each
    rank's loss must be its share of the whole.
    """
    if world_size == 1:
        return parts
    whole = cast(Tensor, _Gathered.apply(torch.cat(list(parts.values()), dim=1)))
    return dict(zip(parts, whole.split([part.shape[1] for part in parts.values()], dim=1), strict=True))


def share_of(batch: Batch, world: Place) -> tuple[Batch, int]:
    """This rank's rows, and where they begin in the batch."""
    size = len(batch) // world.size
    return batch[world.rank * size : (world.rank + 1) * size], world.rank * size


def view_seeds(batch: Batch, first: int, *, seed: int, step: int, view: int = 0) -> list[int]:
    """Of each row's alteration: the same whatever rank has the row."""
    return [hash((seed, step, view, first + place)) & (2**63 - 1) for place in range(len(batch))]


def shown(engine: Engine, found: dict[str, float]) -> dict[str, float]:
    """A step's metrics: what ranks found, each its share, and how the optimizer went on. All ranks must call it."""
    metrics = engine.sum_over_ranks(found)
    metrics |= {"grad_norm": engine.grad_norm, "learning_rate": engine.learning_rate}
    metrics["counts/steps_skipped"] = float(engine.is_skipped)
    return metrics
