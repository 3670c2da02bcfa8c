"""Judged items as lines of JSON: our own form, which holds all there is. Media stay where they are, named by their key.

A line is `{"item": {...}, "judgements": [...]}` with the fields of the records, in UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from pipeline.feedback.exchange.labels import refusal
from pipeline.feedback.records import Item, Judged

_JUDGED = TypeAdapter(Judged)
_ITEM = TypeAdapter(Item)


def write(path: Path, judged: Iterable[Judged]) -> int:
    """Writes a line an item; returns their number.

    Raises:
        ValueError: a number is not finite, which JSON does not have.
    """
    num_lines = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for each in judged:
            file.write(line_of(each))
            num_lines += 1
    return num_lines


def line_of(judged: Judged) -> str:
    """An item with its judgements, as a line.

    Raises:
        ValueError: see `write`.
    """
    try:
        return json.dumps(asdict(judged), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"item {judged.item.id}: {error}; give a finite number, or null for none") from None


def read(path: Path) -> Iterator[Judged]:
    """The items of a file, one at a time.

    Raises:
        RowError: a line is no JSON, or lacks a field, has one that is not known, or one of another type. The message
            names file, line, field and value.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(_JUDGED, line, f"{path}, line {number}")


def item_json(item: Item) -> dict[str, Any]:
    """An item in this form."""
    return asdict(item)


def item_from(value: Any, place: str) -> Item:
    """The inverse of `item_json`.

    Raises:
        RowError: see `read`.
    """
    return _parsed(_ITEM, json.dumps(value), place)


def _parsed(adapter: TypeAdapter[Any], text: str, place: str) -> Any:
    try:
        found = adapter.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise refusal(place, field, first["input"], f"{first['msg']}; write it as this project does") from None
    if unknown := next(_unknown(json.loads(text), asdict(found)), None):
        raise refusal(place, unknown[0], unknown[1], "no such field is known; leave it out") from None
    return found


def _unknown(given: Any, known: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The fields, and their values, that the records do not have."""
    if isinstance(given, dict):
        for name, value in cast("dict[str, Any]", given).items():
            if name not in known:
                yield f"{at}{name}", value
            else:
                yield from _unknown(value, known[name], f"{at}{name}.")
    elif isinstance(given, list):
        for place, (value, ours) in enumerate(zip(cast("list[Any]", given), known, strict=True)):
            yield from _unknown(value, ours, f"{at}{place}.")
