"""Comparisons as the CSV of Chatbot Arena: two models' responses to one prompt, and which of them won.

Of the Kaggle competitions: LMSYS (2024) has `prompt`, `response_a` and `response_b` as JSON lists of turns, and three
columns `winner_model_a`, `winner_model_b` and `winner_tie` of 0 or 1; WSDM Cup (2025) has plain texts and one column
`winner`. Here they are written as in the former, beside them `judge` and `tstamp` as in the Chatbot Arena conversations
(Zheng et al. 2023, arXiv 2306.05685). There is no place for media, and none for a system message.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.feedback.exchange.labels import (
    Comparison,
    Left,
    Report,
    comparisons,
    gathered,
    refusal,
    without_nothing,
)
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.records import Message

_TEXTS = ("prompt", "response_a", "response_b")
_FLAGS = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": None}
_COLUMNS = ("id", "model_a", "model_b", *_TEXTS, *_FLAGS, "judge", "tstamp")
_WINNERS = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}
_BOTH_BAD = "tie (bothbad)"
_MAX_CELL_BYTES = 2**28


def write(path: Path, judged: Sequence[Judged], *, aggregate: bool = False) -> Report:
    """Writes a row a comparison of two completions; returns what is not there, by reason.

    Rankings and ratings are written as the comparisons that they imply, see `labels.comparisons`; so is `aggregate`.

    Raises:
        ValueError: a judgement does not hold what its item asks for.
    """
    report: Report = Counter()
    rows = [_row(each.item, found) for each in judged for found in _writable(each, report, aggregate=aggregate)]
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, _COLUMNS)
        out.writeheader()
        out.writerows(rows)
    return without_nothing(report)


def _writable(judged: Judged, report: Report, *, aggregate: bool) -> list[Comparison]:
    found = comparisons(judged, report, aggregate=aggregate)
    for reason, applies in (
        (Left.MEDIA, bool(judged.item.media)),
        (Left.SYSTEM_MESSAGE, any(message.role == "system" for message in judged.item.messages)),
    ):
        if applies:
            report[reason] += len(found)
            return []
    return found


def _row(item: Item, found: Comparison) -> dict[str, Any]:
    said = {role: [each.content for each in item.messages if each.role == role] for role in ("user", "assistant")}
    pair = [item.candidates[place] for place in (found.first, found.second)]
    models = ["" if each.weights_version is None else f"{item.run}@{each.weights_version}" for each in pair]
    texts = [said["user"], *([*said["assistant"], each.text] for each in pair)]
    outcome = None if found.chosen is None else int(found.chosen == found.second)
    key = item.id if found.judgement is None else found.judgement.key
    return {
        "id": key if len(item.candidates) == 2 else f"{key}-{found.first}-{found.second}",
        **dict(zip(("model_a", "model_b"), models, strict=True)),
        **{name: json.dumps(text, ensure_ascii=False) for name, text in zip(_TEXTS, texts, strict=True)},
        **{name: int(outcome == meant) for name, meant in _FLAGS.items()},
        "judge": (found.judgement.rater if found.judgement else None) or "",
        "tstamp": "" if found.judgement is None else repr(found.judgement.judged_at),
    }


def read(
    path: Path, *, rater: str = "arena", judged_at: float = 0.0, prompt_task: str = "arena"
) -> tuple[list[Judged], Report]:
    """The comparisons of a file, and what was left out by reason.

    rater, judged_at: of rows without `judge` or `tstamp`. Where the models' earlier responses differ, they answered
    different conversations: such a row is left out (`diverging_turns`). Names of models are (`model`).

    Raises:
        ValueError: the file lacks a column.
        RowError: a row holds a value that is not understood; the message names file, row, field and value.
    """
    report: Report = Counter()
    csv.field_size_limit(_MAX_CELL_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        _check_columns(path, rows.fieldnames or ())
        found = [
            pair
            for number, row in enumerate(rows, 1)
            for pair in _judgements(row, f"{path}, row {number}", report, rater, judged_at, prompt_task)
        ]
    return gathered(found), without_nothing(report)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in _TEXTS if name not in names]
    if "winner" not in names and not set(_FLAGS) <= set(names):
        missing.append(f"winner (or {', '.join(_FLAGS)})")
    if missing:
        raise ValueError(f"{path}: columns={list(names)}: {', '.join(missing)} missing; give Arena's train.csv")


def _judgements(
    row: Mapping[str, Any], place: str, report: Report, rater: str, judged_at: float, prompt_task: str
) -> Iterator[tuple[Item, Judgement]]:
    if None in row or None in row.values():
        raise refusal(place, "cells", len(row), "one for each column; quote cells that hold commas or line ends")
    chosen = _winner(row, place, report)
    prompt, first, second = _turns(row, place)
    reason = (
        Left.NO_ANSWER
        if None in (*prompt, *first, *second)
        else Left.DIVERGING_TURNS
        if first[:-1] != second[:-1]
        else Left.SURROGATE
        if not _is_utf8(*prompt, *first, *second)
        else None
    )
    if reason is not None:
        report[reason] += 1
        return
    report[Left.MODEL] += any(row.get(name) for name in ("model_a", "model_b"))
    pairs = zip(prompt, first, strict=True)
    messages = tuple(Message(role, str(text)) for pair in pairs for role, text in zip(_ROLES, pair, strict=True))[:-1]
    digest = hashlib.sha256(json.dumps([[each.role, each.content] for each in messages]).encode()).hexdigest()
    candidates = (Candidate(str(first[-1])), Candidate(str(second[-1])))
    item = Item(Task.PAIR, f"arena-{digest[:32]}", prompt_task, messages, (), candidates)
    stamp = row.get("tstamp") or judged_at
    try:
        when = float(stamp)
    except ValueError:
        raise refusal(place, "tstamp", stamp, "seconds since 1970, as a number") from None
    if not math.isfinite(when):
        raise refusal(place, "tstamp", stamp, "a finite number of seconds since 1970")
    key = row.get("id") or f"{item.id}-{place.rpartition(' ')[2]}"
    yield item, Judgement(key, item.id, row.get("judge") or rater, JudgementKind.PAIR, {"chosen": chosen}, when)


_ROLES = ("user", "assistant")


def _winner(row: Mapping[str, str], place: str, report: Report) -> int | None:
    if "winner" in row:
        winner = row["winner"].strip().lower()
        if winner not in _WINNERS:
            raise refusal(place, "winner", row["winner"], f"one of {', '.join(_WINNERS)}")
        report[Left.BOTH_BAD] += winner == _BOTH_BAD
        return _WINNERS[winner]
    flags = {name: row[name].strip() for name in _FLAGS}
    set_ones = [name for name, flag in flags.items() if flag in ("1", "1.0")]
    if len(set_ones) != 1 or any(flag not in ("0", "0.0", "1", "1.0") for flag in flags.values()):
        raise refusal(place, ", ".join(_FLAGS), ", ".join(flags.values()), "one of them is 1, the others are 0")
    return _FLAGS[set_ones[0]]


def _turns(row: Mapping[str, str], place: str) -> list[list[str | None]]:
    """Prompts and responses: lists of turns where all three cells hold some, else a turn each."""
    lists = [_list_of(row[name]) for name in _TEXTS]
    if None in lists:
        return [[row[name]] for name in _TEXTS]
    found = [each or [] for each in lists]
    if len({len(each) for each in found}) != 1 or not found[0]:
        counts = ", ".join(str(len(each)) for each in found)
        raise refusal(place, ", ".join(_TEXTS), f"{counts} turns", "as many responses as prompts, and at least one")
    return found


def _list_of(text: str) -> list[str | None] | None:
    try:
        value = json.loads(text) if text.lstrip()[:1] == "[" else None
    except ValueError:
        return None
    if not isinstance(value, list) or not all(each is None or isinstance(each, str) for each in value):
        return None
    return cast("list[str | None]", value)


def _is_utf8(*texts: str | None) -> bool:
    try:
        "".join(text or "" for text in texts).encode()
    except UnicodeEncodeError:
        return False
    return True
