"""What the columns of a source mean: the formats of TRL, LLaVA, ShareGPT, ms-swift, Alpaca and plain tables.

A column is known by its usual names, or by the name that `prepare.map` gives it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pipeline.config import ConfigError, SplitBy
from pipeline.data.ingest.choices import answer_of, below, choices_of
from pipeline.data.ingest.columns import Columns, suffix_of
from pipeline.data.ingest.draft import Draft, MediumSource
from pipeline.data.ingest.numbered import Media, placed
from pipeline.data.ingest.readers import COLUMN_OF_SUFFIX
from pipeline.data.ingest.spellings import NAMES, media_kind_of
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
from pipeline.data.ingest.unread import note
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import MediaKind, Message

Turn = tuple[Message, list[Slot]]

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
    media = _all_media(columns)
    _check_sides(columns, media)
    choices = _choices(columns)
    turns = _prompt(columns, question, choices)
    chosen, rejected = (_turns(columns, name, of=_answers) for name in ("chosen", "rejected"))
    if len(rejected) > 1 and not chosen and turns and turns[-1][0].role == "assistant":
        chosen = turns  # ms-swift: two conversations that differ in the last answer
    if chosen or rejected:
        turns, chosen, rejected = _without_common(turns, chosen, rejected)
    (chosen, chosen_then), (rejected, rejected_then) = _parted(chosen, "chosen"), _parted(rejected, "rejected")
    last = turns.pop()[0].content if turns and turns[-1][0].role == "assistant" else None
    answers, demonstration, is_good = _said(columns, chosen, last, choices)
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
    found: dict[str, Any] = dict(
        id=columns.text("id") or id,
        task=columns.text("task") or task,
        dataset=dataset,
        messages=messages,
        media=filled,
        answer=_without_tags(answers[0], "the answer") if answers else None,
        demonstration=demonstration,
        rejected=_without_tags(_answer(rejected, "rejected"), "rejected") if rejected else None,
        chosen_then=chosen_then,
        rejected_then=rejected_then,
        margin=_number(columns.get("margin"), "margin"),
        label=is_good,
        split=_value(columns, split_column)
        or (None if split_by not in (None, SplitBy.COLUMN) else columns.text("split"))
        or split,
        group=_value(columns, group_column) or columns.text("group"),
        sort_value=_number(columns.take(sort_column), sort_column) if sort_column in raw else None,
        accepted=tuple(_without_tags(each, "the answer") for each in answers[1:]),
        columns={name: columns.take(name) for name in kept if name in raw},
    )
    return Draft(**found, unread=columns.checked_left())


def _said(
    columns: Columns, chosen: list[Turn], last: str | None, choices: Mapping[str, str]
) -> tuple[list[str], str | None, bool | None]:
    """The answer of a row (none, or an empty text, where it has none) and others that are as right; what is
    demonstrated beside it; and whether the answer is good, where the row judges it.

    last: the answer in which the conversation ends.
    """
    demonstration, label = _spoken(columns, "demonstration"), columns.peek("label")
    answers = [_answer(chosen, "chosen")] if chosen else _answers_in(columns, "answer")
    if not answers and last is not None:
        answers, last = [last], None
    # Beside a completion a number is a judgement, beside a caption it may be the number of a class.
    takes_numbers = columns.is_mapped("label") or columns.column("answer") == "completion"
    is_good = _flag(label, takes_numbers=takes_numbers) if answers else None
    if is_good is not None:
        columns.get("label")  # now it is read
    if not answers:
        answers = _answers_in(columns, "label")
    if choices and answers and not chosen:
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
            enumerate(_media(columns.get(name), kind, name), 1)
        )
    file = columns.peek("file")
    if isinstance(file, str) and not any(media.values()):
        kind = _KIND_OF_COLUMN.get(COLUMN_OF_SUFFIX.get(suffix_of(file), ""))
        if kind is not None:
            media[kind] = {1: MediumSource(kind, path=columns.get("file"))}
        elif columns.column("file") == "file_name":  # as `datasets` names media in folders
            raise RowError(Reason.WRONG_TYPE, f"file_name {file!r} is no picture, sound or video that is known")
    return media


def _check_sides(columns: Columns, media: Media) -> None:
    """Makes sure that both answers of a comparison are about the same media: ms-swift has `rejected_images`."""
    for column in list(columns):
        side, _, name = str(column).partition("_")
        kind = media_kind_of(name) if side in ("chosen", "rejected") else None
        if kind is None:
            continue
        given = _media(columns.take(column), kind, column)
        if given and given != list(media[kind].values()):
            raise RowError(
                Reason.BAD_PREFERENCE,
                f"{column} holds other media than {MEDIA_COLUMNS[kind]}; both answers of a comparison are about "
                f"the same ones (prepare.ignore=[{column}] leaves it out on purpose)",
            )


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
    # What differs begins with an answer.
    while shared and chosen[shared][0].role == rejected[shared][0].role == "user":
        shared -= 1
    common, ours = chosen[:shared], [message for message, _ in prompt]
    if not common or ours == [message for message, _ in common[: len(ours)]] or chosen is prompt:
        return common or prompt, chosen[shared:], rejected[shared:]
    return [*prompt, *common], chosen[shared:], rejected[shared:]


def _parted(turns: list[Turn], field: str) -> tuple[list[Turn], tuple[Message, ...]]:
    """The answer in which a side of a comparison begins, and the turns that followed it.

    Raises:
        RowError: those are not the user's and the assistant's in turn, or hold a medium.
    """
    messages = [message for message, _ in turns]
    roles = [message.role for message in messages]
    if len(turns) < 2 or roles[0] != "assistant":
        return turns, ()
    if roles != ["assistant", "user"] * (len(roles) // 2) + ["assistant"]:
        raise RowError(
            Reason.BAD_PREFERENCE,
            f"{field} goes on in turns by {roles}; wanted the assistant's and the user's in turn, an answer last",
        )
    if any(slots for _, slots in turns):
        raise RowError(
            Reason.BAD_PREFERENCE,
            f"{field} shows media after its first answer; media belong to the prompt that both sides share",
        )
    return turns[:1], tuple(replace(each, content=_without_tags(each.content, field)) for each in messages[1:])


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
    texts = [each for each in items if not is_missing(each) and each != ""]
    return [each for each in texts if each.strip()] if all(isinstance(each, str) for each in texts) else None


def _says(given: object) -> bool:
    return isinstance(given, dict) and not is_missing(given.get("answer"))


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
