"""Items and judgements: what a run puts in, and what learns from people takes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from pipeline.feedback.database import Database
from pipeline.feedback.media import MediaFiles, media_type
from pipeline.feedback.records import (
    ANSWERS,
    Act,
    Candidate,
    EventKind,
    Item,
    Judged,
    Judgement,
    JudgementKind,
    MediumRef,
    RaterRole,
    Task,
    Viewing,
)
from pipeline.feedback.tables import Events, Items, Judgements, Media, Presentations, Raters
from pipeline.records import MediaKind, Message

ITEMS_AT_ONCE = 500
"""Items that are read with one query."""


class RaterRow(NamedTuple):
    """A rater as others see him."""

    name: str
    role: RaterRole
    is_revoked: bool


class FeedbackStore:
    """A database, and a directory of media beside it."""

    def __init__(self, database: Database, media_directory: Path, *, clock: Callable[[], float] = time.time):
        self.database = database
        self._files = MediaFiles(media_directory)
        self._clock = clock

    def keep(self, kind: MediaKind, data: bytes) -> MediumRef:
        """Stores a medium, once.

        Raises:
            ValueError: it is no file that a browser can show.
        """
        ref = MediumRef.of(kind, data)
        values = {"key": ref.key, "kind": kind.value, "mime": media_type(kind, data), "num_bytes": len(data)}
        self._files.keep(ref, data)
        with self.database.write() as connection:
            connection.execute(self._insert(Media).values(values).on_conflict_do_nothing())
        return ref

    def medium(self, key: str) -> tuple[Path, str]:
        """Where the file with this key lies, and the type with which it is served.

        Raises:
            KeyError: there is none.
        """
        with self.database.read() as connection:
            mime = connection.execute(select(Media.mime).where(Media.key == key)).scalar_one_or_none()
        if mime is None:
            raise KeyError(key)
        return self._files.path(key), mime

    def offer(self, items: Sequence[Item]) -> int:
        """Puts items into the queue, and returns how many were not there yet.

        Raises:
            ValueError: an item has too few completions, or shows media that were not kept.
        """
        for item in items:
            if len(item.candidates) < (1 if item.task is Task.RATING else 2):
                raise ValueError(f"item of prompt {item.prompt_id!r}: {len(item.candidates)} completions to compare")
        rows = [{**_row(item), "created_at": self._clock()} for item in items]
        shown = {medium.key for item in items for medium in item.media}
        with self.database.write() as connection:
            known = set(connection.execute(select(Media.key).where(Media.key.in_(shown))).scalars())
            if missing := shown - known:
                raise ValueError(f"media {sorted(missing)[:3]} are not in the store; keep them first")
            if not rows:
                return 0
            found = connection.execute(
                self._insert(Items).values(rows).on_conflict_do_nothing().returning(Items.id)
            ).all()
        return len(found)

    def bring(self, judged: Sequence[Judged]) -> int:
        """Takes what was judged elsewhere, and returns how many judgements were not there yet.

        Raters who are not known here get a name without an invitation. Nobody is asked about these items again.

        Raises:
            ValueError: see `offer`.
        """
        self.offer([each.item for each in judged])
        num_new = 0
        with self.database.write() as connection:
            for each in judged:
                rows = [_brought(said, self._rater(connection, said.rater)) for said in each.judgements]
                if rows:
                    insertion = self._insert(Judgements).values(rows).on_conflict_do_nothing()
                    num_new += len(connection.execute(insertion.returning(Judgements.id)).all())
                connection.execute(update(Items).where(Items.id == each.item.id).values(is_done=True))
        return num_new

    def judged(self, *, run: str | None = None) -> Iterator[Judged]:
        """Every item that has judgements that stand, with these: of one run, or of all."""
        taken_back = aliased(Judgements)
        query = (
            select(Judgements, Raters.name.label("rater"))
            .join(Raters, Raters.id == Judgements.rater_id)
            .join(Items, Items.id == Judgements.item_id)
            .where(
                Judgements.kind != JudgementKind.WITHDRAWAL.value,
                ~exists().where(taken_back.withdraws_id == Judgements.id),
                *([] if run is None else [Items.run == run]),
            )
            .order_by(Judgements.item_id, Judgements.id)
        )
        with self.database.read() as connection:
            grouped = groupby(connection.execute(query).all(), key=lambda row: row.item_id)
            judgements = {item_id: tuple(map(_judgement, rows)) for item_id, rows in grouped}
            ids = list(judgements)
            for start in range(0, len(ids), ITEMS_AT_ONCE):
                some = select(Items).where(Items.id.in_(ids[start : start + ITEMS_AT_ONCE])).order_by(Items.id)
                for row in connection.execute(some):
                    yield Judged(item_of(row), judgements[row.id])

    def viewings(self, *, run: str | None = None) -> Iterator[Viewing]:
        """Everything that was done on the page, by whom it was and what was shown; of one run, or of all.

        Repeats are left out, and so are items whose judgement is known: nothing is learned of either.
        """
        query = (
            select(Events, Presentations.item_id, Presentations.order, Raters.name, _has_answered().label("answered"))
            .join(Presentations, Presentations.id == Events.presentation_id)
            .join(Raters, Raters.id == Events.rater_id)
            .join(Items, Items.id == Presentations.item_id)
            .where(
                Presentations.is_repeat.is_(False),
                Items.is_gold.is_(False),
                *([] if run is None else [Items.run == run]),
            )
            .order_by(Events.presentation_id, Events.id)
        )
        with self.database.read() as connection:
            shown = [list(rows) for _, rows in groupby(connection.execute(query), key=lambda row: row.presentation_id)]
            for start in range(0, len(shown), ITEMS_AT_ONCE):
                some = shown[start : start + ITEMS_AT_ONCE]
                wanted = select(Items).where(Items.id.in_({rows[0].item_id for rows in some}))
                items = {row.id: item_of(row) for row in connection.execute(wanted)}
                for rows in some:
                    first, acts = rows[0], tuple(map(_act, rows))
                    yield Viewing(items[first.item_id], first.name, tuple(first.order), acts, bool(first.answered))

    def num_items(self) -> Mapping[str, int]:
        """How many there are, how many of them are done, and how many have a known judgement."""
        with self.database.read() as connection:
            counted = select(Items.is_gold, Items.is_done, func.count()).group_by(Items.is_gold, Items.is_done)
            groups = {(row[0], row[1]): row[2] for row in connection.execute(counted)}
        done, waiting = groups.get((False, True), 0), groups.get((False, False), 0)
        return {
            "num": sum(groups.values()),
            "done": done,
            "waiting": waiting,
            "gold": sum(groups.values()) - done - waiting,
        }

    def num_withdrawn(self) -> int:
        """How many judgements were taken back."""
        with self.database.read() as connection:
            taken_back = select(func.count()).select_from(Judgements).where(Judgements.withdraws_id.is_not(None))
            return connection.execute(taken_back).scalar_one()

    def raters(self) -> list[RaterRow]:
        """Those whose names are known, in the order in which they were invited."""
        query = select(Raters.name, Raters.role, Raters.is_revoked).where(Raters.name.is_not(None)).order_by(Raters.id)
        with self.database.read() as connection:
            return [RaterRow(name, RaterRole(role), out) for name, role, out in connection.execute(query) if name]

    def _rater(self, connection: Connection, name: str | None) -> int:
        name = "forgotten-elsewhere" if name is None else name[:64]
        now = self._clock()
        row = {"name": name, "role": RaterRole.RATER.value, "created_at": now, "expires_at": now, "is_revoked": True}
        connection.execute(self._insert(Raters).values(row).on_conflict_do_nothing())
        return connection.execute(select(Raters.id).where(Raters.name == name)).scalar_one()

    def _insert(self, table: Any) -> Any:
        return (sqlite if self.database.is_sqlite else postgresql).insert(table)


def item_of(row: Any) -> Item:
    """The item in a row of its table."""
    return Item(
        task=Task(row.task),
        prompt_id=row.prompt_id,
        prompt_task=row.prompt_task,
        messages=tuple(Message(**message) for message in row.messages),
        media=tuple(MediumRef(MediaKind(medium["kind"]), medium["key"]) for medium in row.media),
        candidates=tuple(map(Candidate.of, row.candidates)),
        run=row.run,
        step=row.step,
        gold=row.gold,
        uncertainty=row.uncertainty,
        num_raters=row.num_raters,
    )


def _row(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "task": item.task.value,
        "prompt_id": item.prompt_id,
        "prompt_task": item.prompt_task,
        "messages": [asdict(message) for message in item.messages],
        "media": [{"kind": medium.kind.value, "key": medium.key} for medium in item.media],
        "candidates": [asdict(candidate) for candidate in item.candidates],
        "run": item.run,
        "step": item.step,
        "gold": None if item.gold is None else dict(item.gold),
        "is_gold": item.gold is not None,
        "uncertainty": item.uncertainty,
        "priority": item.uncertainty,
        "num_raters": item.num_raters,
        "num_answers": 0,
        "is_done": False,
    }


def _brought(said: Judgement, rater_id: int) -> dict[str, Any]:
    return {
        "key": said.key[:64],
        "rater_id": rater_id,
        "item_id": said.item_id,
        "presentation_id": None,
        "kind": said.kind.value,
        "content": dict(said.content),
        "order": list(said.order),
        "judged_at": said.judged_at,
        "latency_s": said.latency_s,
        "is_gold": said.is_gold,
        "is_repeat": said.is_repeat,
        "page_version": said.page_version,
    }


def _has_answered() -> ColumnElement[bool]:
    """Whether an answer to the item of the presentation, by who did something there, stands; skips are none."""
    taken_back = aliased(Judgements)
    return exists().where(
        Judgements.item_id == Presentations.item_id,
        Judgements.rater_id == Events.rater_id,
        Judgements.kind.in_([kind.value for kind in ANSWERS - {JudgementKind.SKIP}]),
        ~exists().where(taken_back.withdraws_id == Judgements.id),
    )


def _act(row: Any) -> Act:
    return Act(EventKind(row.kind), row.place, row.shown_place, row.value)


def _judgement(row: Any) -> Judgement:
    return Judgement(
        key=row.key,
        item_id=row.item_id,
        rater=row.rater,
        kind=JudgementKind(row.kind),
        content=row.content,
        judged_at=row.judged_at,
        latency_s=row.latency_s,
        order=tuple(row.order),
        is_gold=row.is_gold,
        is_repeat=row.is_repeat,
        page_version=row.page_version,
    )
