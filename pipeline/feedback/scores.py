"""What people said of single completions, as numbers that can be a part of the reward of these very completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, exists, select
from sqlalchemy.orm import aliased

from pipeline.feedback.records import EventKind, JudgementKind
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.tables import Events, Items, Judgements, Presentations, Raters

Completion = tuple[str, tuple[int, ...]]
"""A completion by the id of its prompt, and its tokens."""
_MIDDLE, _REACH = 3, 2
"""Of points from 1 to 5: what is neither good nor bad, and how far the ends are from that."""
_LEAST, _MOST = -1.0, 1.0


def late_scores(
    store: FeedbackStore, since_step: int, *, run: str | None = None, aside: Collection[str] = ()
) -> Mapping[Completion, float]:
    """How good people say completions are that were sampled at `since_step` or later: each from -1 to 1.

    A rater's score of a completion is the last reward he gave (an expert; clipped to [-1, 1]), else his last rating,
    (m - 3) / 2 for a mean m over the criteria, else his last thumb. The score of a completion is the mean over raters,
    also where several items show it. Completions of which nobody said anything of that kind, or that have no tokens,
    are not in it.

    Args:
        run: whose items count; None: those of all runs.
        aside: raters who are not heard, as in `overview.set_aside`.
    """
    where = [Items.step >= since_step, *([] if run is None else [Items.run == run])]
    # By rater: what counts more comes later, and takes the place of what was there.
    found: defaultdict[Completion, dict[int, float]] = defaultdict(dict)
    with store.database.read() as connection:
        for row in [*_thumbs(connection, where), *_said(connection, where)]:
            if row.name not in aside:
                for place, score in _scores(row):
                    by_rater = found[row.prompt_id, tuple(row.candidates[place]["token_ids"])]
                    if score is None:
                        by_rater.pop(row.rater_id, None)
                    else:
                        by_rater[row.rater_id] = score
    return {said: fmean(by_rater.values()) for said, by_rater in found.items() if by_rater and said[1]}


def _thumbs(connection: Connection, where: list[Any]) -> list[Any]:
    query = (
        select(Items.prompt_id, Items.candidates, Raters.name, Events.rater_id, Events.kind, Events.place, Events.value)
        .join(Presentations, Presentations.id == Events.presentation_id)
        .join(Items, Items.id == Presentations.item_id)
        .join(Raters, Raters.id == Events.rater_id)
        .where(Events.kind == EventKind.THUMB.value, Events.place.is_not(None), *where)
        .order_by(Events.id)
    )
    return list(connection.execute(query))


def _said(connection: Connection, where: list[Any]) -> list[Any]:
    """Ratings and then rewards that stand, repeats aside."""
    taken_back = aliased(Judgements)
    kinds = (JudgementKind.RATING.value, JudgementKind.REWARD.value)
    query = (
        select(Items.prompt_id, Items.candidates, Raters.name, Judgements.rater_id, Judgements.kind, Judgements.content)
        .join(Items, Items.id == Judgements.item_id)
        .join(Raters, Raters.id == Judgements.rater_id)
        .where(
            Judgements.kind.in_(kinds),
            Judgements.is_repeat.is_(False),
            ~exists().where(taken_back.withdraws_id == Judgements.id),
            *where,
        )
        .order_by(Judgements.id)
    )
    return sorted(connection.execute(query), key=lambda row: kinds.index(row.kind))


def _scores(row: Any) -> list[tuple[int, float | None]]:
    """Places of completions in their item, and what was said of each; None takes back what was said before."""
    if row.kind == EventKind.THUMB.value:
        return [(row.place, _clipped(row.value) if row.value else None)]
    if row.kind == JudgementKind.REWARD.value:
        return [(row.content["place"], _clipped(row.content["value"]))]
    return [(place, (fmean(each.values()) - _MIDDLE) / _REACH) for place, each in enumerate(row.content["ratings"])]


def _clipped(value: float) -> float:
    return min(max(value, _LEAST), _MOST)
