"""Judged items as the data sets that TRL trains on: Parquet that Hugging Face `datasets` and `jobs.prepare` read.

- preference rows (prompt, chosen, rejected), for a reward model or DPO;
- unpaired rows (prompt, completion, label), for KTO;
- demonstrations (prompt and answer), for SFT: the corrections that raters wrote, as rows of our prompt table.

All are conversational, with the media in columns, see `pipeline.data.preferences`. None holds who said it or when.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.ingest.draft import Draft
from pipeline.data.ingest.formats import draft_of
from pipeline.data.preferences import Kinds, judgement_row, judgement_schema, pair_row, pair_schema
from pipeline.data.schema import PROMPT_SCHEMA, Reason, RowError, to_row
from pipeline.data.table import ROWS_PER_GROUP, write_groups
from pipeline.feedback.exchange.labels import (
    Keep,
    Left,
    Media,
    Report,
    check_media,
    comparisons,
    gathered,
    has_tag,
    slices,
    standing,
    verdicts,
    without_nothing,
)
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.records import Medium, Prompt

_Row = tuple[Item, Mapping[str, Any]]
"""An item, and the columns beside its prompt."""


def write_preferences(
    path: Path, judged: Sequence[Judged], *, media: Media, dataset: str = "feedback", aggregate: bool = False
) -> Report:
    """Writes a row a comparison that has a winner; returns what is not there, by reason.

    Rankings give all pairs with different ranks, ratings all with different means, see `labels.comparisons`; so is
    `aggregate`. Ties are counted: TRL's form has none. A row's `id` is the prompt's.

    Raises:
        ValueError: a judgement does not hold what its item asks for, or tags and media of an item differ.
    """
    report: Report = Counter()
    rows: list[_Row] = []
    for each in judged:
        for found in comparisons(each, report, aggregate=aggregate):
            texts = {place: each.item.candidates[place].text for place in (found.first, found.second)}
            if found.chosen is None:
                report[Left.TIE] += 1
            elif any(map(has_tag, texts.values())):
                report[Left.TAG_IN_ANSWER] += 1
            else:
                chosen = texts.pop(found.chosen)
                rows.append((each.item, {"answer": chosen, "rejected": texts.popitem()[1], "margin": None}))
    kinds = _kinds(rows)
    schema = pair_schema(kinds, has_margin=False)
    _write(path, rows, lambda staged: pair_row(staged, kinds), schema, media, dataset)
    return without_nothing(report)


def write_unpaired(
    path: Path, judged: Sequence[Judged], *, media: Media, dataset: str = "feedback", aggregate: bool = False
) -> Report:
    """Writes a row a rated completion that is good or bad, see `labels.verdicts`; returns what is not there, by reason.

    Raises:
        ValueError: see `write_preferences`.
    """
    report: Report = Counter()
    rows: list[_Row] = []
    for each in judged:
        for place, label in verdicts(each, report, aggregate=aggregate):
            text = each.item.candidates[place].text
            if has_tag(text):
                report[Left.TAG_IN_ANSWER] += 1
            else:
                rows.append((each.item, {"answer": text, "label": label}))
    kinds = _kinds(rows)
    _write(path, rows, lambda staged: judgement_row(staged, kinds), judgement_schema(kinds), media, dataset)
    return without_nothing(report)


def write_demonstrations(path: Path, judged: Sequence[Judged], *, media: Media, dataset: str = "feedback") -> Report:
    """Writes a row of the prompt table a correction, which is its answer; returns what is not there, by reason.

    A row's `id` is the prompt's and the judgement's key: a prompt may have several.

    Raises:
        ValueError: see `write_preferences`.
    """
    report: Report = Counter()
    rows: list[_Row] = []
    for each in judged:
        check_media(each.item)
        for judgement in standing(each, report):
            if judgement.kind is not JudgementKind.CORRECTION:
                report[judgement.kind] += 1
            elif has_tag(judgement.content["text"]):
                report[Left.TAG_IN_ANSWER] += 1
            else:
                id = f"{each.item.prompt_id}-{judgement.key}"
                rows.append((each.item, {"id": id, "answer": judgement.content["text"]}))
    _write(path, rows, dict, PROMPT_SCHEMA, media, dataset)
    return without_nothing(report)


def _kinds(rows: Sequence[_Row]) -> Kinds:
    return frozenset(medium.kind for item, _ in rows for medium in item.media)


def _write(
    path: Path,
    rows: Sequence[_Row],
    finished: Callable[[dict[str, Any]], dict[str, Any]],
    schema: pa.Schema,
    media: Media,
    dataset: str,
) -> None:
    """Media are in memory for a row group at a time."""
    groups = (
        pa.Table.from_pylist(
            [finished(_staged(item, columns, media, dataset)) for item, columns in part], schema=schema
        )
        for part in slices(rows, ROWS_PER_GROUP)
    )
    write_groups(path, groups, schema=schema)


def _staged(item: Item, columns: Mapping[str, Any], media: Media, dataset: str) -> dict[str, Any]:
    files = tuple(Medium(each.kind, media(each)) for each in item.media)
    prompt = Prompt(item.prompt_id, item.prompt_task, item.messages, files, answer=None)
    # The keys of the media: splits must share none.
    return {**to_row(prompt, [each.key for each in item.media]), "dataset": dataset, **columns}


def read_preferences(
    path: Path, *, keep: Keep, rater: str, judged_at: float = 0.0, prompt_task: str = "trl"
) -> tuple[list[Judged], Report]:
    """The preference rows of a Parquet file as pairs, all judged by `rater`; and what was left out, by reason.

    Rows in all of TRL's spellings are read: conversational or plain text, with an explicit prompt or the whole
    conversation in both answers. The two completions of an item are in order of their texts: which one won does not
    show, and rows that contradict each other meet in one item. prompt_task: of rows without a column `task`.

    Raises:
        RowError: a row cannot be read; the message names file, row, field and value.
    """
    report: Report = Counter()
    found: list[tuple[Item, Judgement]] = []
    seen: Counter[str] = Counter()
    for number, raw in enumerate(_raw_rows(path), 1):
        place = f"{path}, row {number}"
        try:
            draft = draft_of(raw, names={}, id="", dataset="", task=prompt_task)
        except RowError as error:
            raise RowError(error.reason, f"{place}: {error.detail}") from None
        report.update(f"column {name}" for name in draft.unread)
        report[Left.MARGIN] += draft.margin is not None
        if draft.rejected is None or draft.answer is None:
            report[Left.NOT_A_PAIR] += 1
        elif draft.chosen_then or draft.rejected_then:
            report[Left.DIVERGING_TURNS] += 1
        elif draft.rejected == draft.answer:
            report[Left.SAME_ANSWERS] += 1
        else:
            item = _item(draft, draft.answer, draft.rejected, keep, place)
            chosen = int(item.candidates[1].text == draft.answer)
            key = f"trl-{item.id}-{rater}-{seen[item.id]}"
            seen[item.id] += 1
            found.append((item, Judgement(key, item.id, rater, JudgementKind.PAIR, {"chosen": chosen}, judged_at)))
    return gathered(found), without_nothing(report)


def _item(draft: Draft, chosen: str, rejected: str, keep: Keep, place: str) -> Item:
    media: list[Any] = []
    for medium in draft.media:
        if not medium.data:
            detail = f"{place}: {medium.kind} {medium.path!r} has no bytes; embed the file in the table"
            raise RowError(Reason.MISSING_BYTES, detail)
        media.append(keep(medium.kind, medium.data))
    said = [[[each.role, each.content] for each in draft.messages], [each.key for each in media]]
    prompt_id = draft.id or f"trl-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}"
    candidates = tuple(Candidate(text) for text in sorted((chosen, rejected)))
    return Item(Task.PAIR, prompt_id, draft.task, draft.messages, tuple(media), candidates)


def _raw_rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, use_threads=False):
            yield from batch.to_pylist()
