"""Cells of tables as Python values, as those who wrote them meant them; none is lost behind another of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa

ARROW_ERRORS = (OSError, ValueError, KeyError, OverflowError, pa.ArrowException)
Change = Callable[[Any], Any]
_SHORT = {pa.float16(): np.float16, pa.float32(): np.float32}


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Cells under their names.

    Raises:
        ValueError: a name stands twice, above cells that differ.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise ValueError(f"{name!r} stands twice, with {value!r:.40} and {found[name]!r:.40}; rename one")
    return found


loads = json.JSONDecoder(object_pairs_hook=once).decode
"""The value that a JSON text spells, in no object of which a name stands twice."""


def changes_of(schema: pa.Schema) -> list[Change | None]:
    """What makes of the cells of each column what was meant: the names of classes, numbers as they were written."""
    try:
        features = {**json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]}
    except (KeyError, TypeError, ValueError):
        features = {}
    return [_change(field.type, features.get(field.name)) for field in schema]


def rows_in(batch: pa.RecordBatch, changes: Sequence[Change | None]) -> list[dict[str, Any] | str]:
    """The rows of a batch, or in the place of a row what is wrong with it."""
    columns: list[list[Any]] = []
    for name, column, change in zip(batch.schema.names, batch.columns, changes, strict=True):
        try:
            cells = _cells(column)
        except ARROW_ERRORS as error:  # text that is no UTF-8
            if len(batch) == 1:
                return [f"column {name}: {type(error).__name__}: {error}"]
            return [row for index in range(len(batch)) for row in rows_in(batch.slice(index, 1), changes)]
        columns.append([change(cell) for cell in cells] if change else cells)
    return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cells(column: pa.Array) -> list[Any]:
    """The cells of a column; as text where Python has no such value: a date after the year 9999, an unknown zone."""
    try:
        return column.to_pylist()
    except ARROW_ERRORS:
        if len(column) > 1:
            return [cell for index in range(len(column)) for cell in _cells(column.slice(index, 1))]
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp(column.type.unit, "UTC"))
        return column.cast(pa.string()).to_pylist()


def _change(kind: pa.DataType, feature: Any) -> Change | None:
    """What makes of a value of a type what was meant, None for nothing; `datasets` says more of it in a feature."""
    known: Mapping[str, Any] = cast(Any, feature) if isinstance(feature, dict) else {}
    inside: Any = known.get("feature", known) if "_type" in known else feature
    if pa.types.is_struct(kind):  # or a list of them, which `datasets` stores as one of lists
        fields: Mapping[str, Any] = cast(Any, inside) if isinstance(inside, dict) else {}
        changes = [(each.name, change) for each in kind if (change := _change(each.type, fields.get(each.name)))]
        return partial(_with_fields, changes) if changes else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _change(cast(Any, kind).value_type, inside[0] if inside and isinstance(inside, list) else inside)
        return item and (lambda values: values and [item(value) for value in values])
    if known.get("_type") == "ClassLabel" and known.get("names"):
        return partial(_class_name, known["names"])
    short = _SHORT.get(kind)  # 0.1, where 64 bits show 0.10000000149011612
    return short and (lambda value: value and float(str(short(value))))


def _with_fields(changes: Sequence[tuple[str, Change]], value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value and value | {name: change(value[name]) for name, change in changes}


def _class_name(names: Sequence[str], number: Any) -> Any:
    """The name of a class. `datasets` writes -1 for none; pandas makes floats of numbers beside gaps."""
    if number in range(len(names)):
        return names[int(number)]
    return None if number == -1 else number
