"""What the columns of a source mean: the formats of TRL, LLaVA, ShareGPT, ms-swift, Alpaca and plain tables.

A column is known by its usual names, or by the name that `prepare.map` gives it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

from pipeline.config import ConfigError, SplitBy
from pipeline.data.ingest.choices import answer_of, below, choices_of
from pipeline.data.ingest.columns import Columns, suffix_of
from pipeline.data.ingest.comparisons import Turn, answers_of, check_sides, parted, without_common, without_tags
from pipeline.data.ingest.draft import Draft, MediumSource
from pipeline.data.ingest.numbered import placed
from pipeline.data.ingest.readers import COLUMN_OF_SUFFIX
from pipeline.data.ingest.spellings import NAMES, OTHER_TEXTS
from pipeline.data.ingest.turns import (
    Slot,
    content_of,
    fill,
    is_missing,
    media_of,
    medium_of,
    spelled,
    text_of,
    turns_of,
    wrong_type,
)
from pipeline.data.ingest.unread import note
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import MediaKind, Message

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
    split_by: SplitBy | None = None,
    ignored: Collection[str] = (),
    kept: Collection[str] = (),
) -> Draft:
    """A row of a source in our terms. `id`, `task` and `split` hold where the row itself names none.

    split_by: what of `split` and `group` is asked for; None is both. ignored: columns and keys that are left out.
    kept: columns that are kept as they are, beside ours.

    Raises:
        RowError: a value is of a type that is not understood, turns are out of order, tags and media differ in number;
            or something is not read without which the row means something else.
    """
    if not isinstance(raw, dict):
        raise wrong_type("the row", raw, "a mapping of columns")
    columns = Columns(raw, names, ignored)
    stated = columns.text("split") if split_by in (None, SplitBy.COLUMN) else None
    grouped = columns.text("group") if split_by in (None, SplitBy.GROUP) else None
    found: dict[str, Any] = dict(
        id=_id(columns) or id,
        task=columns.text("task") or task,
        dataset=dataset,
        margin=_number(columns.get("margin"), "margin"),
        split=_value(columns, split_column) or stated or split,
        group=_value(columns, group_column) or grouped,
        sort_value=_number(columns.take(sort_column), sort_column) if sort_column in raw else None,
        columns={name: columns.take(name) for name in kept if name in raw},
    )
    media = _all_media(columns)
    check_sides(columns, media)
    choices = _choices(columns)
    turns = _prompt(columns, question, choices)
    chosen, rejected = (_turns(columns, name, of=answers_of) for name in ("chosen", "rejected"))
    if chosen or rejected:
        turns, chosen, rejected = without_common(turns, chosen, rejected)
    (preferred, chosen_then), (worse, rejected_then) = parted(chosen, "chosen"), parted(rejected, "rejected")
    last = turns.pop()[0].content if turns and turns[-1][0].role == "assistant" else None
    answers, demonstration, is_good = _said(columns, preferred, last, choices)
    turns = _with_system(columns, turns)
    _check_turns([message for message, _ in turns])
    if not turns:
        cure = "prepare.map.prompt says which column it is, a source's `question` what is asked of all its rows"
        raise RowError(Reason.NO_MESSAGES, f"no prompt; {cure}{note(columns.left())}")
    try:
        turns, media = placed(turns, media)
        messages, filled = fill(turns, {kind: list(each.values()) for kind, each in media.items()})
    except RowError as error:
        raise RowError(error.reason, f"{error.detail}{note(columns.left())}") from None
    if messages and not messages[-1].content.strip():
        raise RowError(Reason.NO_MESSAGES, "the last turn says nothing and shows nothing")
    answers = [without_tags(each, "the answer") for each in answers]
    return Draft(
        **found,
        messages=messages,
        media=filled,
        answer=answers[0] if answers else None,
        accepted=tuple(answers[1:]),
        demonstration=demonstration,
        rejected=worse,
        chosen_then=chosen_then,
        rejected_then=rejected_then,
        label=is_good,
        unread=columns.checked_left(),
    )


def _said(
    columns: Columns, preferred: str | None, last: str | None, choices: Mapping[str, str]
) -> tuple[list[str], str | None, bool | None]:
    """The answer of a row (none, or an empty text, where it has none) and others that are as right; what is
    demonstrated beside it; and whether the answer is good, where the row judges it.

    preferred: the better answer of a comparison; last: the answer in which the conversation ends.
    """
    demonstration, label = _spoken(columns, "demonstration"), columns.peek("label")
    answers = [] if preferred is None else [preferred]
    is_other = last is not None and columns.column("answer") in OTHER_TEXTS and not columns.is_mapped("answer")
    if preferred is None and not is_other:
        answers = _answers_in(columns, "answer")
    if not answers and last is not None:
        answers, last = [last], None
    # Beside a completion a number is a judgement, beside a caption it may be the number of a class.
    is_flag = columns.is_mapped("label") or columns.column("label") == "kto_tag"
    is_good = _flag(label, takes_numbers=is_flag or columns.column("answer") == "completion") if answers else None
    if is_good is not None:
        columns.get("label")  # now it is read
    elif is_flag and answers and label is not None:
        raise wrong_type("label", label, "true or false, or 1 or 0, beside an answer")
    if not answers:
        answers = _answers_in(columns, "label")
    if choices and answers and preferred is None:
        said = label if columns.peek("answer") is None else columns.peek("answer")
        answers[0] = answer_of(said if isinstance(said, int | float) else answers[0], choices)
    if not answers and columns.has_empty_text("answer"):
        answers = [""]
    return answers, demonstration or last, is_good


def _all_media(columns: Columns) -> dict[MediaKind, Mapping[int, MediumSource]]:
    """The media of a row by kind and number, from columns of lists, of single media, or of a medium each."""
    media: dict[MediaKind, Mapping[int, MediumSource]] = {}
    for kind, name in MEDIA_COLUMNS.items():
        column, numbered = columns.column(name), columns.numbered(kind)
        if column and numbered:
            raise RowError(
                Reason.PLACEHOLDER_MISMATCH,
                f"{column} and {', '.join(numbered.values())} hold media; prepare.map.{name}={column} takes that alone",
            )
        every = [(number, columns.take(each, has_media=True)) for number, each in numbered.items()]
        media[kind] = {number: medium_of(value, kind, numbered[number]) for number, value in sorted(every)} or dict(
            enumerate(media_of(columns.get(name), kind, name), 1)
        )
    files = columns.peek("file")
    for file in () if any(media.values()) else files if isinstance(files, list) else [files]:
        kind = _KIND_OF_COLUMN.get(COLUMN_OF_SUFFIX.get(suffix_of(file), "")) if isinstance(file, str) else None
        if kind is not None:
            columns.get("file")  # now it is read
            media[kind] = {**media[kind], len(media[kind]) + 1: MediumSource(kind, path=file)}
        elif file is not None and columns.column("file") in ("file_name", "file_names"):  # `datasets` has it in folders
            raise RowError(Reason.WRONG_TYPE, f"file_name {file!r} is no picture, sound or video that is known")
    return media


def _choices(columns: Columns) -> dict[str, str]:
    """What there is to choose from, where a question stands by itself."""
    if columns.column("messages") or not columns.column("prompt"):
        return {}
    given = columns.get("choices")
    if given is None and (given := columns.lettered()) == {}:
        return {}
    return choices_of(given, columns.column("choices") or "choices")


def _prompt(columns: Columns, question: str | None, choices: Mapping[str, str]) -> list[Turn]:
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
        if choices and turns:
            message, slots = turns[-1]
            text, more = content_of(below(message.content, choices), "choices")
            turns[-1] = (Message(message.role, message.content + text), [*slots, *more])
    return [turn for turn in turns if turn[0].content or turn[0].role != "system"]


def _with_system(columns: Columns, turns: list[Turn]) -> list[Turn]:
    """The turns with the row's system text before them, which is not read where they begin with another."""
    first, system = turns[0][0] if turns else None, columns.peek("system")
    if first is None or system is None or (first.role == "system" and first.content != system):
        return turns
    own = (Message("system", columns.text("system") or ""), list[Slot]())
    return [own, *turns[first.role == "system" :]]


def _id(columns: Columns) -> str | None:
    """What names the row: a text, a number, or what has a plain spelling (UUIDs, times)."""
    value = columns.get("id")
    if isinstance(value, dict | list | bool):
        cure = "prepare.ids=place makes ids of the rows' places"
        raise RowError(Reason.WRONG_TYPE, f"id is {type(value).__name__}; wanted text or a number ({cure})")
    is_plain = value is None or isinstance(value, str | int | float | bytes | Decimal)
    return columns.text("id") if is_plain else str(value)


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


def _answers_in(columns: Columns, name: str) -> list[str]:
    """The answers in a column: one, or several of which the one that most people gave is the first."""
    several = _several(columns.get(name))
    if several is None:
        answer = _spoken(columns, name)
        return [] if answer is None else [answer]
    return [text for text, _ in Counter(several).most_common()]


def _several(value: object) -> list[str] | None:
    """The answers in a list of texts, or of VQA's (`{answer: yes, ...}`), in SQuAD's `{text: [...], answer_start: ...}`
    and in TriviaQA's `{value, aliases}`, without gaps; None where the value is nothing of the kind."""
    match value:
        case [{"answer": _}, *_] as given:
            items = [text_of(each["answer"], "answer") if _says(each) else None for each in given]
        case {"text": [*items], "answer_start": _}:
            pass
        case {"value": str() as first, "aliases": [*others]}:
            items = [first, *(each for each in others if each != first)]
        case [*items]:
            pass
        case _:
            return None
    given = [each for each in items if not is_missing(each) and each != ""]
    if given and not any(isinstance(each, str) for each in given):  # a box, or whatever numbers are
        return None
    if not all(isinstance(each, str | int | float) for each in given):
        return None
    return [text for text in (text_of(each, "answer") for each in given) if text.strip()]


def _says(given: object) -> bool:
    return isinstance(given, dict) and not is_missing(given.get("answer"))


def _spoken(columns: Columns, name: str) -> str | None:
    """An answer given as text, or as an assistant's turn."""
    answer, then = parted(_turns(columns, name, of=answers_of), name)
    if then:
        raise RowError(Reason.BAD_PREFERENCE, f"{name} goes on after its first answer; wanted one answer")
    return answer


def _check_turns(messages: Sequence[Message]) -> None:
    spoken = [message.role for message in messages if message.role != "system"]
    if any(message.role == "system" for message in messages[1:]):
        raise RowError(Reason.BAD_ROLE, "a system turn that is not the first")
    wanted = ["user", "assistant"] * len(spoken)
    if spoken != wanted[: len(spoken)]:
        raise RowError(Reason.BAD_ROLE, f"turns by {spoken}; user and assistant take turns, and the user begins")


def _flag(value: object, *, takes_numbers: bool) -> bool | None:
    """What a label says of an answer; None where it is something else."""
    known = {"true": True, "false": False} | ({"1": True, "0": False} if takes_numbers else {})
    return known.get(str(value).lower().removesuffix(".0"))


def _value(columns: Columns, column: str | None) -> str | None:
    value = None if column is None else columns.take(column)
    return None if is_missing(value) else text_of(value, str(column))


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
