"""Features of frozen encoders, computed once: in this process, or by workers of Ray Data where there are many rows.

A cache carries the key of its encoders; one of other encoders is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.decisions.table import PRESENT, DecisionTable
from pipeline.models.fusion.model import FEATURES, MASK, FusionModel, to_inputs
from pipeline.models.fusion.samples import Inputs

BATCH_SIZE = 64
_ROW = "row"


def cached_features(
    table: DecisionTable, model: FusionModel, path: Path, *, pools: bool = False, workers: int = 0
) -> DecisionTable:
    """The table with features in place of raw modalities, from `path` or else computed and written there.

    pools: one mean over the tokens of a modality in place of all of them: as many times smaller.
    workers: processes of Ray Data; 0 computes here.

    Raises:
        ConfigError: what lies in `path` is of other encoders.
    """
    if path.is_file():
        found = DecisionTable.load(path, encoder_key=feature_key(model, pools=pools))
        if found.ids == table.ids:
            return replace(table, inputs=found.inputs, encoder_key=found.encoder_key)
    model = model.eval()
    inputs = _by_ray_data(table, model, pools, workers) if workers else _here(table, model, pools)
    found = replace(table, inputs=inputs, encoder_key=feature_key(model, pools=pools))
    found.save(path)
    return found


def feature_key(model: FusionModel, *, pools: bool) -> str:
    """What a cache of this model's features is known by."""
    return model.encoder_key + ("/pooled" if pools else "")


def pooled(features: Inputs) -> Inputs:
    """Features [B, T, E] as their means over true tokens [B, 1, E], and masks [B, 1]: zero and False where none is."""
    found: Inputs = {PRESENT: features[PRESENT]}
    for name in [name.removesuffix(FEATURES) for name in features if name.endswith(FEATURES)]:
        mask: Tensor = features[name + MASK]
        weights = mask / mask.sum(1, keepdim=True).clamp_min(1)
        found[name + FEATURES] = (features[name + FEATURES] * weights[..., None]).sum(1, keepdim=True)
        found[name + MASK] = mask.any(1, keepdim=True)
    return found


def _encode(model: FusionModel, arrays: dict[str, NDArray[Any]], pools: bool) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        features = model.features(to_inputs(arrays))
    return {name: each.numpy() for name, each in (pooled(features) if pools else features).items()}


def _here(table: DecisionTable, model: FusionModel, pools: bool) -> dict[str, NDArray[Any]]:
    parts = [
        _encode(model, {name: each[start : start + BATCH_SIZE] for name, each in table.inputs.items()}, pools)
        for start in range(0, len(table), BATCH_SIZE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Encoding:
    """A worker of Ray Data: an encoder model of its own."""

    def __init__(self, model: FusionModel, pools: bool) -> None:
        torch.set_num_threads(1)
        self._model, self._pools = model, pools

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = batch.pop(_ROW)
        return {**_encode(self._model, batch, self._pools), _ROW: rows}


def _by_ray_data(table: DecisionTable, model: FusionModel, pools: bool, workers: int) -> dict[str, NDArray[Any]]:
    import ray

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(len(table)):
            yield {_ROW: row, **{name: each[row] for name, each in table.inputs.items()}}

    encoded = ray.data.from_items(list(rows())).map_batches(
        _Encoding,  # pyright: ignore[reportArgumentType]
        batch_size=BATCH_SIZE,
        compute=ray.data.ActorPoolStrategy(size=workers),
        fn_constructor_args=(model, pools),
    )
    parts = list(encoded.iter_batches(batch_format="numpy"))
    order = np.argsort(np.concatenate([part[_ROW] for part in parts]))
    names = [name for name in parts[0] if name != _ROW]
    return {name: np.stack(list(np.concatenate([part[name] for part in parts])))[order] for name in names}
