"""Comparisons and judgements in TRL's formats: prompt, chosen, rejected; or prompt, completion, label.

Where a table has media, a message's content is a list of parts (`{"type": "image"}` where a picture belongs), which is
how TRL tells the place of each; without media it is text, which the chat templates of text models need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.filesystems import filesystem
from pipeline.data.layout import parts_of
from pipeline.data.schema import MEDIA_COLUMNS, PROMPT_SCHEMA, described, split_content
from pipeline.records import MediaKind, Message

Kinds = frozenset[MediaKind]

PREFERENCES, JUDGEMENTS = "preferences", "judgements"
"""The directories of these tables, beside the prompts."""

_PART = pa.struct([("type", pa.string()), ("text", pa.string())])


def pair_schema(kinds: Kinds, *, has_margin: bool) -> pa.Schema:
    """The columns of comparisons whose prompts hold media of these kinds."""
    columns = [("chosen", _turns(kinds)), ("rejected", _turns(kinds))]
    return _schema(kinds, [*columns, ("margin", pa.float64())] if has_margin else columns)


def judgement_schema(kinds: Kinds) -> pa.Schema:
    """The columns of judgements (good or bad) of single completions."""
    return _schema(kinds, [("completion", _turns(kinds)), ("label", pa.bool_())])


def pair_row(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The comparison in a staged row."""
    answers = {
        name: [
            _turn("assistant", staged[column], kinds),
            *(_turn(turn["role"], turn["content"], kinds) for turn in staged.get(f"{name}_then") or ()),
        ]
        for name, column in _ANSWERS.items()
    }
    return {**_prompt(staged, kinds), **answers, "margin": staged["margin"]}


def judgement_row(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The judgement in a staged row."""
    completion = [_turn("assistant", staged["answer"], kinds)]
    return {**_prompt(staged, kinds), "completion": completion, "label": staged["label"]}


_ANSWERS = {"chosen": "answer", "rejected": "rejected"}
_PAIR_COLUMNS = ("id", "chosen", "rejected", "dataset", "margin")
_JUDGEMENT_COLUMNS = ("id", "completion", "label", "dataset")


@dataclass(frozen=True)
class Pair:
    """Two answers to the prompt with this id, the better one first, the data set that says so, and by how much.

    margin: 0 where the data set does not say. chosen_then, rejected_then: the turns that followed these answers, the
        user's and the assistant's in turn, where whole conversations are compared.
    """

    prompt_id: str
    chosen: str
    rejected: str
    dataset: str
    margin: float = 0.0
    chosen_then: tuple[Message, ...] = ()
    rejected_then: tuple[Message, ...] = ()


def read_pairs(directory: str, split: str) -> Iterator[Pair]:
    """The comparisons of a prepared table; none where there are none. Media are not read."""
    for row in _rows(f"{directory.rstrip('/')}/{PREFERENCES}", split, _PAIR_COLUMNS):
        margin = row.get("margin") or 0.0
        (chosen, *chosen_then), (rejected, *rejected_then) = map(_spoken, (row["chosen"], row["rejected"]))
        yield Pair(
            row["id"],
            chosen.content,
            rejected.content,
            row["dataset"],
            margin,
            tuple(chosen_then),
            tuple(rejected_then),
        )


@dataclass(frozen=True)
class Label:
    """An answer to the prompt with this id, whether it is good, and the data set that says so."""

    prompt_id: str
    completion: str
    is_good: bool
    dataset: str


def read_labels(directory: str, split: str) -> Iterator[Label]:
    """The judgements of a prepared table; none where there are none. Media are not read."""
    for row in _rows(f"{directory.rstrip('/')}/{JUDGEMENTS}", split, _JUDGEMENT_COLUMNS):
        (completion,) = _spoken(row["completion"])
        yield Label(row["id"], completion.content, row["label"], row["dataset"])


def _rows(place: str, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        parts = parts_of(place, split)
    except FileNotFoundError:
        return
    system, inner = filesystem(place)
    for part in parts:
        file = pq.ParquetFile(f"{inner}/{part}", filesystem=system)
        present = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=present, use_threads=False):
            yield from batch.to_pylist()


def _spoken(turns: list[dict[str, Any]]) -> list[Message]:
    return [Message(turn["role"], _text(turn["content"])) for turn in turns]


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _prompt(staged: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    return {**staged, "prompt": [_turn(turn["role"], turn["content"], kinds) for turn in staged["prompt"]]}


def _turn(role: str, content: str, kinds: Kinds) -> dict[str, Any]:
    if not kinds:
        return {"role": role, "content": content}
    parts = [
        {"type": part.value, "text": None} if isinstance(part, MediaKind) else {"type": "text", "text": part}
        for part in split_content(content)
    ]
    return {"role": role, "content": parts}


def _schema(kinds: Kinds, columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    media = [MEDIA_COLUMNS[kind] for kind in MediaKind if kind in kinds]
    shared = [PROMPT_SCHEMA.field(name) for name in ("id", "task", "dataset", *media)]
    return described(pa.schema([("prompt", _turns(kinds)), *columns, *shared]))


def _turns(kinds: Kinds) -> pa.DataType:
    if not kinds:
        return PROMPT_SCHEMA.field("prompt").type
    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_PART))]))
