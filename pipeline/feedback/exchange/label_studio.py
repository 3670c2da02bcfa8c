"""Judged items as tasks of Label Studio: what it imports with annotations, and what it exports as JSON (not JSON-MIN).

A project's configuration is the same for all its tasks. Items of another shape (another task, number of completions,
kinds of media) are therefore another project: `write` makes two files of each, `<shape>.json` and `<shape>.xml`.

    pair        Pairwise, and Choices for a tie
    ranking     Ranker with a bucket for each rank, so that ties can be said
    rating      a Rating for each completion and criterion
    beside it   a TextArea for a correction of each completion, Choices for what is harmful
    skip        `was_cancelled`

See https://labelstud.io/guide/task_format. Which completion a result is about, the configuration alone says: Pairwise
results name their own control. Tasks that `write` made carry the whole item in `data.item`, but what it holds for gold.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from pipeline.feedback.exchange.jsonl import item_from, item_json
from pipeline.feedback.exchange.label_studio_config import TIE, Layout, Shape, labeling_config
from pipeline.feedback.exchange.label_studio_results import Asked, Said, results_of
from pipeline.feedback.exchange.labels import (
    Keep,
    Left,
    Media,
    Report,
    check,
    check_media,
    refusal,
    standing,
    without_nothing,
)
from pipeline.feedback.media import media_type
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, MediumRef, Task
from pipeline.records import MediaKind, Message

_DATA_ADDRESS = re.compile(r"data:(image|audio|video)/[\w.+-]+(?:;[\w=.+-]+)*;base64,", re.ASCII)


def write(
    directory: Path, judged: Sequence[Judged], *, media: Media, raters: Mapping[str, str] | None = None
) -> Report:
    """Writes the projects, a `<shape>.json` of tasks and a `<shape>.xml` to show them each; returns what is not there.

    raters: our name of a rater to the e-mail address of a member there; others are written as they are. Label Studio
    refuses addresses that no member has, unless it runs with `ALLOW_IMPORT_TASKS_WITH_UNKNOWN_EMAILS`: then whoever
    imports the file is the rater.

    Raises:
        ValueError: a judgement does not hold what its item asks for, or tags and media of an item differ.
    """
    report: Report = Counter()
    projects: dict[Shape, list[dict[str, Any]]] = {}
    criteria: dict[Shape, dict[str, None]] = {}
    for each in judged:
        shape = Shape.of(each.item)
        task = to_task(each, report, media=media, raters=raters)
        if task is None:
            continue
        projects.setdefault(shape, []).append(task)
        ratings = [rating for said in each.judgements for rating in said.content.get("ratings", ())]
        criteria.setdefault(shape, {}).update(dict.fromkeys(name for rating in ratings for name in rating))
    directory.mkdir(parents=True, exist_ok=True)
    for shape, tasks in projects.items():
        config = labeling_config(shape, tuple(criteria[shape]) or ("overall",))
        (directory / f"{shape.name}.xml").write_text(config, encoding="utf-8")
        (directory / f"{shape.name}.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    return without_nothing(report)


def to_task(
    judged: Judged, report: Report, *, media: Media, raters: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """One task; None where a medium is of a type that browsers do not show. Counts what is not there in `report`.

    Raises:
        ValueError: see `write`.
    """
    item = judged.item
    check_media(item)
    files = [(each, media(each)) for each in item.media]
    try:
        addresses = {f"media_{place}": _address(*file) for place, file in enumerate(files)}
    except ValueError:
        report[Left.MEDIUM_TYPE] += 1
        return None
    said = [
        message.content if len(item.messages) == 1 else f"{message.role}: {message.content}"
        for message in item.messages
    ]
    data: dict[str, Any] = {"prompt": "\n\n".join(said), **addresses}
    if item.task is Task.RANKING:
        data["answers"] = [
            {"id": str(place), "title": f"Completion {place + 1}", "body": each.text}
            for place, each in enumerate(item.candidates)
        ]
    else:
        data |= {f"answer_{place}": each.text for place, each in enumerate(item.candidates)}
    # Raters there can look at a task's data: gold would tell them what to say.
    report[Left.GOLD] += item.gold is not None
    data["item"] = item_json(replace(item, gold=None))
    annotations: list[dict[str, Any]] = []
    for judgement in standing(judged, report):
        result = results_of(judgement, item)
        if result is None:
            report[judgement.kind] += 1
        else:
            report[Left.SKIP_REASON] += bool(judgement.content.get("reason"))
            annotations.append(_annotation(judgement, result, raters or {}))
    return {"data": data, "annotations": annotations}


def _annotation(judgement: Judgement, result: list[dict[str, Any]], raters: Mapping[str, str]) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "result": result,
        "was_cancelled": judgement.kind is JudgementKind.SKIP,
        "ground_truth": False,  # without a word, Label Studio takes what it imports for the truth
        "lead_time": judgement.latency_s,
        "created_at": datetime.fromtimestamp(judgement.judged_at, UTC).isoformat(),
    }
    if judgement.rater is not None:
        annotation["completed_by"] = {"email": raters.get(judgement.rater, judgement.rater)}
    return annotation


def _address(medium: MediumRef, data: bytes) -> str:
    return f"data:{media_type(medium.kind, data)};base64,{base64.b64encode(data).decode()}"


def read(
    path: Path,
    *,
    keep: Keep,
    config: str | None = None,
    raters: Mapping[str, str] | None = None,
    ties: Collection[str] = (TIE,),
    prompt_task: str = "label_studio",
) -> tuple[list[Judged], Report]:
    """The tasks of an export, and what was left out by reason. An annotation may hold several judgements.

    config: the project's labeling configuration, which tasks that were not made here need. Of those, what is shown
    beside the completions is the prompt, a user's message, in the order of the configuration; media are read from
    `data:` addresses. raters: an e-mail address or id of a member there to our name of them; others stay as they are.
    ties: choices that say that both completions of a pair are as good, in upper or lower case.

    Raises:
        ValueError: the file is no JSON export, the configuration asks for nothing that is known, or there is none.
        RowError: a task holds a value that is not understood; the message names file, task, field and value.
    """
    report: Report = Counter()
    layout = None if config is None else Layout.of(config)
    items: dict[str, Item] = {}
    judgements: dict[str, list[Judgement]] = {}
    for number, task in enumerate(_tasks(path), 1):
        place = f"{path}, task {task.get('id', number)}"
        report.update({name: len(task[name]) for name in ("predictions", "drafts") if task.get(name)})
        asked = (_ours if layout is None else partial(_foreign, layout, report, prompt_task))(task, place, keep)
        if asked is None:
            continue
        asked = replace(asked, ties=frozenset(tie.casefold() for tie in ties))
        of_item = judgements.setdefault(items.setdefault(asked.item.id, asked.item).id, [])
        for index, annotation in enumerate(task["annotations"]):
            of_item += _judgements(annotation, asked, report, f"{place}, annotation {index}", raters or {})
    return [Judged(item, tuple(judgements[key])) for key, item in items.items()], without_nothing(report)


def _tasks(path: Path) -> list[dict[str, Any]]:
    cure = "export the project as JSON, not as JSON-MIN or another form"
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {cure}") from None
    if not isinstance(tasks, list):
        raise ValueError(f"{path}: {type(tasks).__name__}, wanted a list of tasks; {cure}")
    for number, task in enumerate(cast("list[Any]", tasks), 1):
        for name, kind in (("data", dict), ("annotations", list)):
            if not isinstance(task, dict) or not isinstance(task.get(name), kind):
                raise ValueError(f"{path}, task {number}: no {name}; {cure}")
    return cast("list[dict[str, Any]]", tasks)


def _ours(task: Mapping[str, Any], place: str, keep: Keep) -> Asked:
    """A task that `write` made."""
    data = task["data"]
    if "item" not in data:
        raise ValueError(f"{place}: made elsewhere; give config=, the XML of Settings > Labeling Interface")
    item = item_from(data["item"], f"{place}, data.item")
    for index, medium in enumerate(item.media):
        if _kept(data.get(f"media_{index}"), medium.kind, keep, f"{place}, data.media_{index}") != medium:
            raise refusal(place, f"data.item.media.{index}", medium.key, "its file is another; export the task again")
    ids = [str(number) for number in range(len(item.candidates))]
    return Asked(item, Layout.of(labeling_config(Shape.of(item))), ids, frozenset())


def _foreign(
    layout: Layout, report: Report, prompt_task: str, task: Mapping[str, Any], place: str, keep: Keep
) -> Asked | None:
    """A task of another's project; None where a medium is not at hand."""
    data = task["data"]
    report.update(f"data.{name}" for name in data if name not in {*layout.prompt, *layout.keys})
    parts: list[str] = []
    media: list[MediumRef] = []
    for name, kind in layout.prompt.items():
        value = data.get(name)
        if not isinstance(value, str):
            raise refusal(place, f"data.{name}", value, "a text, or the address of a medium")
        if kind is None:
            parts.append(value)
        elif not value.startswith("data:"):
            report[Left.MEDIUM_ELSEWHERE] += 1
            return None
        else:
            media.append(_kept(value, kind, keep, f"{place}, data.{name}"))
            parts.append(kind.tag)
    ids, texts = _completions(data, layout, place)
    messages = (Message("user", "\n".join(parts)),)
    own = task.get("id") or hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]
    candidates = tuple(map(Candidate, texts))
    item = Item(layout.task, f"label_studio-{own}", prompt_task, messages, tuple(media), candidates)
    try:
        check_media(item)
    except ValueError as error:  # a tag in the text itself
        raise refusal(place, "data", parts, str(error)) from None
    return Asked(item, layout, ids, frozenset())


def _completions(data: Mapping[str, Any], layout: Layout, place: str) -> tuple[list[str], list[str]]:
    """The ids and the texts of the completions; ids matter in lists alone."""
    given = [data.get(key) for key in layout.keys]
    ids = list(layout.keys)
    if layout.task is Task.RANKING:
        listed = cast("list[dict[str, Any]]", given[0]) if isinstance(given[0], list) else []
        ids = [str(each.get("id")) for each in listed]
        given = [next((each[name] for name in ("body", "html", "title") if each.get(name)), None) for each in listed]
    if not given or not all(isinstance(text, str) for text in given):
        raise refusal(place, f"data.{', data.'.join(layout.keys)}", given, "the completions, as texts")
    return ids, cast("list[str]", given)


def _kept(value: Any, kind: MediaKind, keep: Keep, place: str) -> MediumRef:
    found = _DATA_ADDRESS.match(value) if isinstance(value, str) else None
    if found is None or found[1] != kind.value:
        raise refusal(place, "value", value, f"a data: address of {kind.value} in base64")
    try:
        return keep(kind, base64.b64decode(value[found.end() :], validate=True))
    except binascii.Error as error:
        raise refusal(place, "value", value, f"base64: {error}") from None


def _judgements(
    annotation: Mapping[str, Any], asked: Asked, report: Report, place: str, raters: Mapping[str, str]
) -> list[Judgement]:
    """The judgements of an annotation, with keys that are the same whenever it is read."""
    by = annotation.get("completed_by")
    member = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
    rater = None if member is None else raters.get(str(member), str(member))
    stamp = annotation.get("created_at") or annotation.get("updated_at")
    try:
        judged_at = datetime.fromisoformat(cast(str, stamp)).timestamp()
    except (TypeError, ValueError):
        raise refusal(place, "created_at", stamp, "a time such as 2026-03-09T22:16:08.728353Z") from None
    lead_time = annotation.get("lead_time")
    if lead_time is not None and not isinstance(lead_time, int | float):
        raise refusal(place, "lead_time", lead_time, "seconds, or null")
    told = json.dumps([asked.item.id, place.rpartition(",")[2], annotation], sort_keys=True)
    key = annotation.get("unique_id") or annotation.get("id") or hashlib.sha256(told.encode()).hexdigest()[:32]
    found: list[Said] = [(JudgementKind.SKIP, {"reason": ""})]
    if not annotation.get("was_cancelled"):
        found = asked.said(annotation.get("result") or [], report)
    judgements = [
        Judgement(f"label_studio-{key}-{number}", asked.item.id, rater, kind, content, judged_at, lead_time)
        for number, (kind, content) in enumerate(found)
    ]
    try:
        return [check(each, asked.item) for each in judgements]
    except ValueError as error:
        raise refusal(place, "result", [content for _, content in found], str(error)) from None
