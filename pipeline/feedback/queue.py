"""Who is shown what next, and what comes of it.

    item that waits -> presentation (a lease, an order of the completions) -> judgement -> item is done, or waits on

What raters disagree about is shown first, then what the reward model is least certain of. Now and then comes an item
whose judgement is known, or one that the rater has judged before. Whatever is said is appended in one transaction with
the bookkeeping that it changes.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from pipeline.config.feedback import Feedback
from pipeline.feedback.database import Database
from pipeline.feedback.judging import BadJudgement, checked
from pipeline.feedback.raters import Person
from pipeline.feedback.records import ANSWERS, EventKind, Item, JudgementKind, Task
from pipeline.feedback.store import item_of
from pipeline.feedback.tables import Events, Items, Judgements, Presentations

REPEAT_AFTER_S = 300.0
"""Seconds after which a rater may be shown again what he has judged."""
MOST_LEFT = 200
"""Items that are counted as left for a rater at most, so that counting takes no longer where more are waiting."""
_LONGEST_S = 1e6
_LAST_SHOWN = 50
"""Items of a rater whose media he may load: those on his screen, and those that he may come back to by undoing."""


class NotYours(LookupError):
    """No such presentation was made to this rater."""


class Conflict(ValueError):
    """The judgement contradicts what the rater has said before; the message says how to go on."""


@dataclass(frozen=True)
class Presentation:
    """An item as a rater sees it: `order` has the places of its completions, from the first shown to the last."""

    id: str
    item: Item
    order: tuple[int, ...]
    is_repeat: bool


@dataclass(frozen=True)
class Progress:
    """How many items a rater has judged, and how many there are left for him: `MOST_LEFT` stands for more as well."""

    num_judged: int
    num_left: int


@dataclass(frozen=True)
class Event:
    """Something that was done on the page; `shown_place` is that of a completion there."""

    key: str
    presentation: str
    kind: EventKind
    shown_place: int | None = None
    value: float = 1.0


class Queue:
    """The items of a store, given to raters one at a time."""

    def __init__(
        self,
        database: Database,
        settings: Feedback,
        *,
        clock: Callable[[], float] = time.time,
        chance: random.Random | None = None,
    ):
        self._database = database
        self._settings = settings
        self._clock = clock
        self._chance = chance or random.SystemRandom()

    def next(self, rater: Person) -> Presentation | None:
        """What the rater is to judge now; the same again until he has, or until another one was given his place."""
        now = self._clock()
        with self._database.write() as connection:
            self._database.alone(connection)  # Else two who come at once would find the same item free.
            if (held := self._held(connection, rater, now)) is not None:
                return held
            picked = self._picked(connection, rater, now)
            if picked is None:
                return None
            row, is_repeat = picked
            order = list(range(len(row.candidates)))
            self._chance.shuffle(order)
            presentation = secrets.token_hex(16)
            values = {
                "id": presentation,
                "item_id": row.id,
                "rater_id": rater.id,
                "order": order,
                "shown_at": now,
                "leased_until": now + self._settings.lease_s,
                "is_repeat": is_repeat,
                "answer_id": None,
            }
            connection.execute(insert(Presentations).values(values))
            return Presentation(presentation, item_of(row), tuple(order), is_repeat)

    def judge(
        self,
        rater: Person,
        *,
        key: str,
        presentation: str,
        kind: JudgementKind,
        content: Mapping[str, Any],
        latency_s: float | None,
        page_version: str = "",
    ) -> None:
        """Takes a judgement; it is on disk when this returns. The same one again does nothing.

        Raises:
            NotYours: there is no such presentation of this rater's.
            BadJudgement: see `checked`.
            Conflict: the item has the rater's answer already, or the key is that of another judgement.
        """
        if kind is JudgementKind.WITHDRAWAL:
            raise BadJudgement("kind=withdrawal: an answer is taken back by undoing it")
        with self._database.write() as connection:
            shown = self._presentation(connection, rater, presentation)
            role, task = rater.role, Task(shown.task)
            said = checked(kind, content, task=task, order=shown.order, criteria=self._settings.criteria, role=role)
            if (before := _of_key(connection, rater, key)) is not None:
                if (before.presentation_id, before.kind, before.content) != (presentation, kind.value, said):
                    raise Conflict(f"key={key!r} is that of another judgement; make a new one for each")
                return
            if kind in ANSWERS and shown.answer_id is not None:
                raise Conflict("this item has your answer already; undo that first")
            judgement_id = self._append(
                connection,
                rater,
                shown,
                key=key,
                kind=kind,
                content=said,
                latency_s=None if latency_s is None else min(max(latency_s, 0.0), _LONGEST_S),
                page_version=page_version,
            )
            if kind in ANSWERS:
                answered = update(Presentations).where(Presentations.id == presentation)
                connection.execute(answered.values(answer_id=judgement_id))
                self._recount(connection, shown.item_id)

    def undo(self, rater: Person, *, key: str) -> Presentation | None:
        """Takes the rater's last standing answer back, and shows him that item again; None where there is none."""
        now = self._clock()
        with self._database.write() as connection:
            if (before := _of_key(connection, rater, key)) is None:
                last = connection.execute(
                    select(Presentations.id, Presentations.answer_id)
                    .where(Presentations.rater_id == rater.id, Presentations.answer_id.is_not(None))
                    .order_by(Presentations.answer_id.desc())
                    .limit(1)
                ).one_or_none()
                if last is None:
                    return None
                shown = self._presentation(connection, rater, last.id)
                self._append(
                    connection,
                    rater,
                    shown,
                    key=key,
                    kind=JudgementKind.WITHDRAWAL,
                    content={},
                    withdraws_id=last.answer_id,
                )
                again = {"answer_id": None, "shown_at": now, "leased_until": now + self._settings.lease_s}
                connection.execute(update(Presentations).where(Presentations.id == last.id).values(again))
                self._recount(connection, shown.item_id)
                place = last.id
            elif before.kind != JudgementKind.WITHDRAWAL.value:
                raise Conflict(f"key={key!r} is that of another judgement; make a new one for each")
            else:
                place = before.presentation_id
            shown = self._presentation(connection, rater, place)
            item = connection.execute(select(Items).where(Items.id == shown.item_id)).one()
            return Presentation(shown.id, item_of(item), tuple(shown.order), shown.is_repeat)

    def record(self, rater: Person, events: Sequence[Event]) -> None:
        """Takes what was done on the page; the same event again does nothing.

        Raises:
            NotYours: there is no such presentation of this rater's.
            BadJudgement: the event is about a completion that was not shown.
        """
        now = self._clock()
        rows: list[dict[str, Any]] = []
        with self._database.write() as connection:
            for event in events:
                shown = self._presentation(connection, rater, event.presentation)
                if event.shown_place is not None and not 0 <= event.shown_place < len(shown.order):
                    raise BadJudgement(f"place={event.shown_place}: {len(shown.order)} completions were shown")
                place = None if event.shown_place is None else shown.order[event.shown_place]
                rows.append(
                    {
                        "key": event.key,
                        "rater_id": rater.id,
                        "presentation_id": event.presentation,
                        "kind": event.kind.value,
                        "place": place,
                        "shown_place": event.shown_place,
                        "value": event.value,
                        "happened_at": now,
                    }
                )
            if rows:
                dialect = sqlite if self._database.is_sqlite else postgresql
                connection.execute(dialect.insert(Events).values(rows).on_conflict_do_nothing())

    def progress(self, rater: Person) -> Progress:
        """How far the rater is."""
        with self._database.read() as connection:
            mine = (Presentations.rater_id == rater.id, Presentations.answer_id.is_not(None))
            num_judged = connection.execute(select(func.count()).select_from(Presentations).where(*mine)).scalar_one()
            waits = select(Items.id).where(self._waits_for(rater, self._clock())).order_by(*_ORDER).limit(MOST_LEFT)
            num_left = connection.execute(select(func.count()).select_from(waits.subquery())).scalar_one()
        return Progress(num_judged, num_left)

    def may_see(self, rater: Person, key: str) -> bool:
        """Whether one of the items that the rater was shown last has this medium."""
        with self._database.read() as connection:
            shown = (
                select(Items.media)
                .join(Presentations, Presentations.item_id == Items.id)
                .where(Presentations.rater_id == rater.id)
                .order_by(Presentations.shown_at.desc())
                .limit(_LAST_SHOWN)
            )
            return any(medium["key"] == key for row in connection.execute(shown) for medium in row.media)

    def _held(self, connection: Connection, rater: Person, now: float) -> Presentation | None:
        """What the rater was shown and has not judged."""
        row = connection.execute(
            select(Items, Presentations.id.label("shown_id"), Presentations.order, Presentations.is_repeat)
            .join(Presentations, Presentations.item_id == Items.id)
            .where(
                Presentations.rater_id == rater.id,
                Presentations.answer_id.is_(None),
                Presentations.leased_until > now,
            )
            .order_by(Presentations.shown_at)
            .limit(1)
        ).one_or_none()
        if row is None:
            return None
        until = now + self._settings.lease_s
        connection.execute(update(Presentations).where(Presentations.id == row.shown_id).values(leased_until=until))
        return Presentation(row.shown_id, item_of(row), tuple(row.order), row.is_repeat)

    def _picked(self, connection: Connection, rater: Person, now: float) -> tuple[Any, bool] | None:
        chance = self._chance.random()
        gold, repeat = self._settings.gold_share, self._settings.repeat_share
        if chance < gold and (row := self._first(connection, Items.is_gold & ~_was_shown(rater))):
            return row, False
        if gold <= chance < gold + repeat and (row := self._first(connection, _repeatable(rater, now))):
            return row, True
        row = self._first(connection, self._waits_for(rater, now))
        return None if row is None else (row, False)

    def _first(self, connection: Connection, where: ColumnElement[bool]) -> Any | None:
        return connection.execute(select(Items).where(where).order_by(*_ORDER).limit(1)).one_or_none()

    def _waits_for(self, rater: Person, now: float) -> ColumnElement[bool]:
        """Whether an item lacks a judgement that this rater can give."""
        others = (
            select(func.count())
            .select_from(Presentations)
            .where(
                Presentations.item_id == Items.id,
                Presentations.answer_id.is_(None),
                Presentations.leased_until > now,
                Presentations.rater_id != rater.id,
                Presentations.is_repeat.is_(False),
            )
            .correlate(Items)
            .scalar_subquery()
        )
        return and_(
            Items.is_gold.is_(False),
            Items.is_done.is_(False),
            ~_was_answered(rater),
            Items.num_answers + others < Items.num_raters,
        )

    def _presentation(self, connection: Connection, rater: Person, presentation: str) -> Any:
        columns = (Items.task, Items.is_gold, *Presentations.__table__.columns)
        row = connection.execute(
            select(*columns)
            .join(Items, Items.id == Presentations.item_id)
            .where(Presentations.id == presentation, Presentations.rater_id == rater.id)
            .with_for_update(of=Presentations)
        ).one_or_none()
        if row is None:
            raise NotYours("you were not shown this item")
        return row

    def _append(self, connection: Connection, rater: Person, shown: Any, *, kind: JudgementKind, **values: Any) -> int:
        row = {
            "rater_id": rater.id,
            "item_id": shown.item_id,
            "presentation_id": shown.id,
            "kind": kind.value,
            "order": shown.order,
            "judged_at": self._clock(),
            "is_gold": shown.is_gold,
            "is_repeat": shown.is_repeat,
            "page_version": "",
            **values,
        }
        return connection.execute(insert(Judgements).values(row).returning(Judgements.id)).scalar_one()

    def _recount(self, connection: Connection, item_id: str) -> None:
        """Counts the answers that an item has, and sees whether it needs another one."""
        item = connection.execute(select(Items).where(Items.id == item_id).with_for_update()).one()
        if item.is_gold:
            return
        answers = connection.execute(
            select(Judgements.content)
            .join(Presentations, Presentations.answer_id == Judgements.id)
            .where(
                Judgements.item_id == item_id,
                Judgements.kind != JudgementKind.SKIP.value,
                Judgements.is_repeat.is_(False),
            )
        ).all()
        said = [answer.content for answer in answers]
        num_raters, is_disputed = item.num_raters, any(each != said[0] for each in said)
        if len(said) >= num_raters and is_disputed:
            num_raters = max(num_raters, min(len(said) + 1, self._settings.max_raters))
        values = {
            "num_answers": len(said),
            "num_raters": num_raters,
            "is_done": len(said) >= num_raters,
            "priority": item.uncertainty + is_disputed,
        }
        connection.execute(update(Items).where(Items.id == item_id).values(values))


_ORDER = (Items.priority.desc(), Items.created_at, Items.id)
"""The first item is the next one; of the index `ix_items_queue`."""


def _of_key(connection: Connection, rater: Person, key: str) -> Any | None:
    query = select(Judgements.kind, Judgements.content, Judgements.presentation_id)
    return connection.execute(query.where(Judgements.rater_id == rater.id, Judgements.key == key)).one_or_none()


def _was_shown(rater: Person) -> ColumnElement[bool]:
    shown = aliased(Presentations)
    return exists().where(shown.item_id == Items.id, shown.rater_id == rater.id)


def _was_answered(rater: Person) -> ColumnElement[bool]:
    shown = aliased(Presentations)
    return exists().where(shown.item_id == Items.id, shown.rater_id == rater.id, shown.answer_id.is_not(None))


def _repeatable(rater: Person, now: float) -> ColumnElement[bool]:
    """Whether the rater has judged an item a while ago, and was not shown it again."""
    mine = select(Presentations.item_id).where(Presentations.rater_id == rater.id)
    answered = mine.where(Presentations.answer_id.is_not(None), Presentations.shown_at < now - REPEAT_AFTER_S)
    return and_(Items.id.in_(answered), Items.id.not_in(mine.where(Presentations.is_repeat.is_(True))))
