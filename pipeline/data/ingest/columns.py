"""A raw row, read by our names: what was read of it, and what was not."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, cast

from pipeline.data.ingest.choices import lettered
from pipeline.data.ingest.readers import COLUMN_OF_SUFFIX
from pipeline.data.ingest.spellings import LOOSE, NAMES, number_in
from pipeline.data.ingest.turns import is_missing, text_of
from pipeline.data.ingest.unread import column_left, is_nothing, keys_left, loss
from pipeline.data.schema import MEDIA_COLUMNS
from pipeline.records import MediaKind

_TURNS = ("messages", "prompt", "answer", "demonstration", "chosen", "rejected")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


class Columns:
    """A raw row, read by our names; it knows what was read.

    names: our name to the source's, where that is another than usual; ignored: columns and keys (`messages.name`) that
    are left out on purpose.
    """

    def __init__(self, raw: Mapping[str, Any], names: Mapping[str, str], ignored: Collection[str] = ()) -> None:
        self._raw = {column: value for column, value in raw.items() if column not in ignored}
        self._names = names
        self._ignored = ignored
        held = frozenset(column for column, value in self._raw.items() if self._holds(column, value))
        self._columns = _columns(held, tuple(names.items()))
        self._read: set[str] = set()
        self._keys: set[str] = set()

    def __iter__(self) -> Any:
        """The source's own names of the columns."""
        return iter(self._raw)

    def get(self, name: str) -> Any:
        """The value of a column, None where it is absent or empty.

        Raises:
            RowError: inside it is a key that is not read, and without which it means something else.
        """
        column = self.column(name)
        if column is None:
            return None
        return self.take(column, has_turns=name in _TURNS, has_media=name in MEDIA_COLUMNS.values())

    def peek(self, name: str) -> Any:
        """The same, and it does not count as read."""
        column = self.column(name)
        return None if column is None else self._raw[column]

    def take(self, column: str, *, has_turns: bool = False, has_media: bool = False) -> Any:
        """The value of a column by the source's own name."""
        self._read.add(column)
        value = self._raw.get(column)
        for key in keys_left(column, value, are_media=has_media) if has_turns or has_media else ():
            if key.path not in self._ignored:
                self._keys.add(key.path)
                if key.changes_meaning:
                    raise loss(key.path)
        return value

    def column(self, name: str) -> str | None:
        """Which column a name of ours stands for in this row."""
        return self._columns[name]

    def is_mapped(self, name: str) -> bool:
        """Whether the recipe says which column a name of ours stands for."""
        return name in self._names

    def has_empty_text(self, name: str) -> bool:
        """Whether a text of no length stands there, which is not the same as none."""
        return any(isinstance(value, str | bytes) and not value for value in self._given(name))

    def text(self, name: str) -> str | None:
        value = self.get(name)
        return None if value is None else text_of(value, name)

    def numbered(self, kind: MediaKind) -> dict[int, str]:
        """The columns that hold a medium each, by the numbers in their names."""
        if MEDIA_COLUMNS[kind] in self._names:
            return {}
        numbers = {column: number_in(column, kind) for column in self._raw}
        return {
            number: column
            for column, number in numbers.items()
            if number is not None and not is_nothing(self._raw[column])
        }

    def lettered(self) -> dict[str, Any]:
        """What there is to choose from, where each choice has a column of its own."""
        return {letter: self.take(column) for letter, column in lettered(self._raw).items()}

    def left(self) -> tuple[str, ...]:
        """The columns, and the keys inside columns, that hold something and were not read."""
        columns = (column for column, value in self._raw.items() if column not in self._read and not is_nothing(value))
        return (*columns, *sorted(self._keys))

    def checked_left(self) -> tuple[str, ...]:
        """What is left, once it is sure that the row says the same without it.

        Raises:
            RowError: it does not.
        """
        left = self.left()
        for column in left:
            if column in self._raw and column_left(column, self._raw).changes_meaning:
                raise loss(column)
        return left

    def _holds(self, column: str, value: Any) -> bool:
        is_empty = is_missing(value) or (isinstance(value, str | bytes | list | dict) and not value)
        is_empty |= isinstance(value, dict) and all(map(is_missing, value.values()))
        return not is_empty and (column not in LOOSE or column in self._names.values() or _is_like_media(value))

    def _given(self, name: str) -> list[Any]:
        known = (self._names[name],) if name in self._names else NAMES[name]
        return [self._raw[column] for column in known if self._raw.get(column) is not None]


@lru_cache(1024)  # Rows of a source hold the same columns, or are of few kinds.
def _columns(held: frozenset[str], names: tuple[tuple[str, str], ...]) -> Mapping[str, str | None]:
    """By our name, the first of the columns called so that holds something."""
    known = {**NAMES, **{ours: (theirs,) for ours, theirs in names}}
    return {ours: next((column for column in theirs if column in held), None) for ours, theirs in known.items()}


def _is_like_media(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_is_like_media, cast(list[object], value)))
    if isinstance(value, str):
        return bool(_ADDRESS.match(value)) or suffix_of(value) in COLUMN_OF_SUFFIX
    return isinstance(value, bytes | dict)


def suffix_of(name: str) -> str:
    """The suffix of a file's name, small and without its dot."""
    return posixpath.splitext(name)[1][1:].lower()
