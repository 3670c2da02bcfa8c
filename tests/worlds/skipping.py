"""An engine that meets a gradient which is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from actors.engine.engine import MAX_SKIPPED_IN_A_ROW, Engine
from pipeline.config import Dtype
from tests.worlds.learning import make, train


def poison(engine: Engine, number: float, rank: int) -> None:
    """An optimizer step of two micro-batches of which the first one, on one rank, multiplies its loss by `number`."""
    dtype = next(engine.module.parameters()).dtype
    rows = torch.ones(2, 5, dtype=dtype)
    factor = number if engine.world.rank == rank else 1.0
    engine.train(lambda: engine(rows).sum() * factor, last=False)
    engine.train(lambda: engine(rows).sum(), last=True)


def whole(engine: Engine) -> dict[str, Any]:
    return {name: array.tolist() for name, array in engine.gather().items()}


def outcome(stage: int, dtype: Dtype) -> dict[str, Any]:
    """What is the same after a poisoned step as before, and after going on as if there had been none."""
    clean, hurt = make(stage, dtype), make(stage, dtype)
    train(clean, range(2))
    train(hurt, range(2))
    before, rate = whole(hurt), hurt.learning_rate
    found: dict[str, Any] = {"was_skipped": hurt.is_skipped}
    poison(hurt, float("nan"), rank=hurt.world.size - 1)
    found |= {"is_skipped": hurt.is_skipped, "norm": hurt.grad_norm}
    found |= {"untouched": whole(hurt) == before, "same_rate": hurt.learning_rate == rate}
    train(clean, [2])
    train(hurt, [2])
    found |= {"skipped_after": hurt.is_skipped, "goes_on": whole(hurt) == whole(clean)}
    return found


def outcomes(stages: Sequence[int], dtype: Dtype) -> dict[int, dict[str, Any]]:
    return {stage: outcome(stage, dtype) for stage in stages}


def in_a_row(stage: int) -> tuple[int, str]:
    """After how many infinite gradients in a row the engine gives up, and what it says. A good one starts anew."""
    engine = make(stage)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        poison(engine, float("inf"), rank=0)
    train(engine, [0])
    for count in range(1, 100):
        try:
            poison(engine, float("inf"), rank=0)
        except FloatingPointError as error:
            return count, str(error)
    raise AssertionError("went on for ever")
