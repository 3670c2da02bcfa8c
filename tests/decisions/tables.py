"""Small tables of decisions, made of nothing but numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decisions.table import DecisionTable, Logged

WIDTH = 4


def small_table(
    num: int = 6,
    num_actions: int = 3,
    *,
    hidden: NDArray[np.bool_] | None = None,
    logged: Logged | None = None,
    seed: int = 0,
) -> DecisionTable:
    """Features of text and audio, one token each, that tell the best action: row i's is i mod K."""
    rng = np.random.default_rng(seed)
    best = np.arange(num) % num_actions
    features = np.eye(max(num_actions, WIDTH), dtype=np.float32)[best][:, None, :WIDTH]
    inputs: dict[str, NDArray[Any]] = {"present": np.ones((num, 2), bool)}
    for name in ("text", "audio"):
        inputs[f"{name}_features"] = features + 0.01 * rng.standard_normal(features.shape).astype(np.float32)
        inputs[f"{name}_mask"] = np.ones((num, 1), bool)
    rewards = np.full((num, num_actions), 0.25, np.float32)
    rewards[np.arange(num), best] = 1.0
    return DecisionTable(
        ids=tuple(f"row-{row}" for row in range(num)),
        inputs=inputs,
        rewards=rewards,
        groups=tuple("ab"[row % 2] for row in range(num)),
        modalities=("text", "audio"),
        hidden=np.zeros((num, 2), bool) if hidden is None else hidden,
        logged=logged,
    )
