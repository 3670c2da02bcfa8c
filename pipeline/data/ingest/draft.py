"""A row on its way into the table: understood, but neither its media nor its text have been looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.records import MediaKind, Message


@dataclass(frozen=True)
class MediumSource:
    """A medium as the source gives it: the file's bytes, or a path or address to read them from. Bytes win."""

    kind: MediaKind
    data: bytes | None = None
    path: str | None = None


@dataclass(frozen=True)
class Draft:
    """A row of any source in our terms; a tag in the messages for each medium, in their order.

    `answer` is None where the source has none; `accepted` are others that are as right.
    `rejected` makes it a comparison in which `answer` was preferred, by `margin` where that is known; `chosen_then` and
    `rejected_then` are the turns that followed these answers, the user's and the assistant's in turn, where whole
    conversations are compared. `label` makes it a judgement of `answer` alone. Both have an answer. `split` and `group`
    are what the source says, `sort_value` what it is sorted by, `unread` names the columns and the keys inside columns
    of which nothing is here. `columns` are further ones that are kept as they are.
    """

    id: str
    task: str
    dataset: str
    messages: tuple[Message, ...]
    media: tuple[MediumSource, ...]
    answer: str | None
    demonstration: str | None = None
    rejected: str | None = None
    chosen_then: tuple[Message, ...] = ()
    rejected_then: tuple[Message, ...] = ()
    margin: float | None = None
    label: bool | None = None
    split: str | None = None
    group: str | None = None
    sort_value: float | None = None
    accepted: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
