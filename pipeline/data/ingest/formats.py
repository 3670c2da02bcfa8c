"""What the columns of a source mean: the formats of TRL, LLaVA, ShareGPT, ms-swift, Alpaca and plain tables.

A column is known by its usual names, or by the name that `prepare.map` gives it.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pipeline.config import ConfigError
from pipeline.data.ingest.draft import Draft, MediumSource
from pipeline.data.ingest.readers import COLUMN_OF_SUFFIX
from pipeline.data.ingest.turns import (
    Slot,
    content_of,
    fill,
    is_missing,
    medium_of,
    spelled,
    text_of,
    turns_of,
    wrong_type,
)
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import MediaKind, Message

Turn = tuple[Message, list[Slot]]

NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "uid", "__key__"),
    "task": ("task",),
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "instruction", "problem"),
    "input": ("input",),
    "system": ("system",),
    "history": ("history",),
    "answer": ("answer", "completion", "response", "output", "solution", "ground_truth", "caption", "text"),
    "demonstration": ("demonstration",),
    "chosen": ("chosen",),
    "rejected": ("rejected", "rejected_response", "rejected_messages"),
    "label": ("label",),
    "margin": ("margin",),
    "images": ("images", "image"),
    "audios": ("audios", "audio"),
    "videos": ("videos", "video"),
    "split": ("split",),
    "group": ("group",),
}
"""Our names of columns, and under which names each is looked for."""

_KIND_OF_COLUMN = {column: kind for kind, column in MEDIA_COLUMNS.items()}


def check_map(names: Mapping[str, str], columns: Iterable[str], origin: str) -> None:
    """Makes sure that a map speaks of columns that are there.

    Raises:
        ConfigError: one of our names is unknown, or the source has no such column; the message lists those found.
    """
    found = sorted(columns)
    for ours, theirs in names.items():
        if ours not in NAMES:
            raise ConfigError(f"prepare.map.{ours}={theirs}: {ours} is no name of ours; known: {', '.join(NAMES)}")
        if theirs not in found:
            raise ConfigError(
                f"prepare.map.{ours}={theirs}: {origin} has no column {theirs!r}; found: {', '.join(found)}"
            )


class Columns:
    """A raw row, read by our names."""

    def __init__(self, raw: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._raw = raw
        self._names = names

    def get(self, name: str) -> Any:
        """The value of a column, None where it is absent or empty."""
        return next((value for value in self._given(name) if not _is_empty(value)), None)

    def has_empty_text(self, name: str) -> bool:
        """Whether a text of no length stands there, which is not the same as none."""
        return any(isinstance(value, str | bytes) and not value for value in self._given(name))

    def text(self, name: str) -> str | None:
        value = self.get(name)
        return None if value is None else text_of(value, name)

    def _given(self, name: str) -> list[Any]:
        known = (self._names[name],) if name in self._names else NAMES[name]
        return [self._raw[column] for column in known if column in self._raw]


def _is_empty(value: object) -> bool:
    return is_missing(value) or (isinstance(value, str | bytes | list | dict) and not value)


def draft_of(
    raw: Mapping[str, Any],
    *,
    names: Mapping[str, str],
    id: str,
    dataset: str,
    task: str,
    question: str | None = None,
    split: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    sort_column: str | None = None,
) -> Draft:
    """A row of a source in our terms. `id`, `task` and `split` hold where the row itself names none.

    Raises:
        RowError: a value is of a type that is not understood, turns are out of order, tags and media differ in number.
    """
    if not isinstance(raw, dict):
        raise wrong_type("the row", raw, "a mapping of columns")
    columns = Columns(raw, names)
    media = {kind: _media(columns.get(column), kind, column) for kind, column in MEDIA_COLUMNS.items()}
    if isinstance(name := raw.get("file_name"), str) and not any(media.values()):  # as `datasets` names them in folders
        kind = _KIND_OF_COLUMN.get(COLUMN_OF_SUFFIX.get(posixpath.splitext(name)[1][1:].lower(), ""))
        if kind is None:
            raise RowError(Reason.WRONG_TYPE, f"file_name {name!r} is no picture, sound or video that is known")
        media[kind] = [MediumSource(kind, path=name)]
    turns = _prompt(columns, question)
    chosen, rejected = (_turns(columns, name, of=_answers) for name in ("chosen", "rejected"))
    if len(rejected) > 1 and not chosen and turns and turns[-1][0].role == "assistant":
        chosen = turns  # ms-swift: two conversations that differ in the last answer
    if chosen or rejected:
        turns, chosen, rejected = _without_common(turns, chosen, rejected)
    last = turns.pop()[0].content if turns and turns[-1][0].role == "assistant" else None
    label = columns.get("label")
    answer = _answer(chosen, "chosen") if chosen else _spoken(columns, "answer")
    is_judgement = _is_flag(label, is_mapped="label" in names) and (answer or last) is not None
    if answer is None and last is not None:
        answer, last = last, None
    if answer is None and label is not None:
        answer = text_of(label, "label")
    if answer is None and columns.has_empty_text("answer"):
        answer = ""
    _check_turns([message for message, _ in turns])
    messages, filled = fill(turns, media)
    if messages and not messages[-1].content.strip():
        raise RowError(Reason.NO_MESSAGES, "the last turn says nothing and shows nothing")
    return Draft(
        id=columns.text("id") or id,
        task=columns.text("task") or task,
        dataset=dataset,
        messages=messages,
        media=filled,
        answer=None if answer is None else _without_tags(answer, "the answer"),
        demonstration=_spoken(columns, "demonstration") or last,
        rejected=_without_tags(_answer(rejected, "rejected"), "rejected") if rejected else None,
        margin=_number(columns.get("margin"), "margin"),
        label=_flag(label) if is_judgement else None,
        split=_value(raw, split_column) or columns.text("split") or split,
        group=_value(raw, group_column) or columns.text("group"),
        sort_value=_number(raw.get(sort_column), sort_column) if sort_column in raw else None,
    )


def _prompt(columns: Columns, question: str | None) -> list[Turn]:
    """The conversation, with whatever answer it ends in."""
    turns = _turns(columns, "messages")
    if not turns:
        turns = _turns(columns, "history", of=_history)
        given = columns.get("prompt")
        if given is None and question is not None:
            given = question
        turns += [] if given is None else turns_of(given, "prompt")
        if (extra := columns.text("input")) and turns:  # Alpaca: what the instruction is about
            message, slots = turns[-1]
            text, more = content_of(extra, "input")
            turns[-1] = (Message(message.role, f"{message.content}\n{text}"), [*slots, *more])
    turns = [turn for turn in turns if turn[0].content or turn[0].role != "system"]
    system = columns.text("system")
    if system and turns and turns[0][0].role != "system":
        turns.insert(0, (Message("system", system), []))
    return turns


def _turns(columns: Columns, name: str, of: Any = turns_of) -> list[Turn]:
    value = columns.get(name)
    return [] if value is None else of(value, name)


def _history(value: object, field: str) -> list[Turn]:
    """Pairs of question and answer, as Alpaca and ms-swift write earlier turns."""
    value = spelled(value) if isinstance(value, str) else value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong_type(field, value, "a list of [question, answer]")
    turns: list[Turn] = []
    for pair in cast(Sequence[Any], value):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise wrong_type(field, pair, "[question, answer]")
        for role, content in zip(("user", "assistant"), pair, strict=True):
            text, slots = content_of(content, field)
            turns.append((Message(role, text), slots))
    return turns


def _without_common(
    prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]
) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Prompt, chosen and rejected, where the latter two may hold the whole conversation (TRL's implicit prompt)."""
    if not rejected:
        raise RowError(Reason.BAD_PREFERENCE, "chosen without rejected")
    if not chosen and prompt and prompt[-1][0].role == "assistant":
        chosen = [prompt[-1]]
        prompt = prompt[:-1]
    if not chosen:
        raise RowError(Reason.BAD_PREFERENCE, "rejected without chosen")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    common, ours = chosen[:shared], [message for message, _ in prompt]
    if not common or ours == [message for message, _ in common[: len(ours)]] or chosen is prompt:
        return common or prompt, chosen[shared:], rejected[shared:]
    return [*prompt, *common], chosen[shared:], rejected[shared:]


def _answers(value: object, field: str) -> list[Turn]:
    return turns_of(value, field, "assistant")


def _spoken(columns: Columns, name: str) -> str | None:
    """An answer given as text, or as an assistant's turn."""
    turns = _turns(columns, name, of=_answers)
    return _answer(turns, name) if turns else None


def _answer(turns: Sequence[Turn], field: str) -> str:
    if len(turns) != 1:
        roles = [message.role for message, _ in turns]
        raise RowError(Reason.BAD_PREFERENCE, f"{field} ends in turns by {roles}; wanted one answer")
    if turns[0][0].role != "assistant":
        raise RowError(Reason.BAD_ROLE, f"{field} is a turn by {turns[0][0].role!r}; answers are the assistant's")
    return turns[0][0].content


def _check_turns(messages: Sequence[Message]) -> None:
    spoken = [message.role for message in messages if message.role != "system"]
    if any(message.role == "system" for message in messages[1:]):
        raise RowError(Reason.BAD_ROLE, "a system turn that is not the first")
    wanted = ["user", "assistant"] * len(spoken)
    if spoken != wanted[: len(spoken)]:
        raise RowError(Reason.BAD_ROLE, f"turns by {spoken}; user and assistant take turns, and the user begins")


def _without_tags(text: str, field: str) -> str:
    _, slots = content_of(text, field)
    if slots:
        raise RowError(Reason.PLACEHOLDER_MISMATCH, f"{field} holds {len(slots)} tags of media; answers are text alone")
    return text


def _media(value: Any, kind: MediaKind, column: str) -> list[MediumSource]:
    if value is None:
        return []
    value = spelled(value) if isinstance(value, str) else value  # a list in a CSV
    if isinstance(value, str) and value[:1] == "[":
        raise RowError(Reason.UNREADABLE, f"{column}: neither JSON's list nor Python's; write it with json.dumps")
    items = cast(list[Any], value) if isinstance(value, list) else [value]
    return [medium_of(item, kind, f"{column}[{index}]") for index, item in enumerate(items) if not is_missing(item)]


def _is_flag(value: object, *, is_mapped: bool) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "false") or (is_mapped and value in (0, 1))


def _flag(value: object) -> bool:
    return value is True or value == 1 or str(value).lower() == "true"


def _value(raw: Mapping[str, Any], column: str | None) -> str | None:
    return None if column is None or is_missing(raw.get(column)) else text_of(raw[column], column)


def _number(value: object, field: str | None) -> float | None:
    if is_missing(value):
        return None
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        raise wrong_type(str(field), value, "a number") from None
    if not math.isfinite(number):
        raise RowError(Reason.WRONG_TYPE, f"{field} is {number}; wanted a finite number")
    return number
