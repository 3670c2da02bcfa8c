"""What a judgement may hold, and where its places are: raters name them as they were shown, the store as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.feedback.records import ANSWERS, JudgementKind, RaterRole, Task

MAX_TEXT = 20_000
"""Characters that a rater may write at once."""


class BadJudgement(ValueError):
    """A judgement that cannot be taken; the message names the field, the value and what would be right."""


def checked(
    kind: JudgementKind,
    content: Mapping[str, Any],
    *,
    task: Task,
    order: Sequence[int],
    criteria: Sequence[str],
    role: RaterRole,
) -> dict[str, Any]:
    """The content with the places of the item instead of those shown.

    order: the item's places, from the first shown to the last.

    Raises:
        BadJudgement: it is not what this item asks for, or not what this rater may say.
    """
    if kind in ANSWERS - {JudgementKind.SKIP} and kind.value != task.value:
        raise BadJudgement(f"kind={kind.value}: this item is a {task.value}")
    if kind is JudgementKind.REWARD and role is RaterRole.RATER:
        raise BadJudgement("kind=reward: rewards are given by experts")
    wanted = _FIELDS[kind]
    if set(content) != set(wanted):
        raise BadJudgement(f"content={sorted(content)}: a judgement of kind {kind.value} holds {sorted(wanted)}")
    return {name: check(content[name], order, criteria) for name, check in wanted.items()}


def _place(value: Any, order: Sequence[int], _: Sequence[str]) -> int:
    if type(value) is not int or not 0 <= value < len(order):
        raise BadJudgement(f"place={value!r}: one of the {len(order)} completions, counted from 0")
    return order[value]


def _chosen(value: Any, order: Sequence[int], criteria: Sequence[str]) -> int | None:
    return None if value is None else _place(value, order, criteria)


def _ranks(value: Any, order: Sequence[int], _: Sequence[str]) -> list[int]:
    if not isinstance(value, list) or len(value) != len(order):
        raise BadJudgement(f"ranks={value!r}: one rank for each of the {len(order)} completions, 1 for the best")
    if any(type(rank) is not int or not 1 <= rank <= len(order) for rank in value):
        raise BadJudgement(f"ranks={value!r}: whole numbers from 1 to {len(order)}")
    return _as_in_item(value, order)


def _ratings(value: Any, order: Sequence[int], criteria: Sequence[str]) -> list[dict[str, int]]:
    if not isinstance(value, list) or len(value) != len(order):
        raise BadJudgement(f"ratings={value!r}: one for each of the {len(order)} completions")
    for rating in value:
        if not isinstance(rating, dict) or not rating or not set(rating) <= set(criteria):
            raise BadJudgement(f"ratings={rating!r}: at least one of {', '.join(criteria)}")
        if any(type(score) is not int or not 1 <= score <= 5 for score in rating.values()):
            raise BadJudgement(f"ratings={rating!r}: whole numbers from 1 to 5")
    return _as_in_item(value, order)


def _as_in_item(shown: Sequence[Any], order: Sequence[int]) -> list[Any]:
    return [value for _, value in sorted(zip(order, shown, strict=True), key=lambda pair: pair[0])]


def _text(value: Any, _: Sequence[int], __: Sequence[str]) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise BadJudgement(f"text: at most {MAX_TEXT} characters")
    if "\x00" in value:  # PostgreSQL keeps none.
        raise BadJudgement("text: holds a zero character; leave it out")
    return value


def _some_text(value: Any, order: Sequence[int], criteria: Sequence[str]) -> str:
    if not _text(value, order, criteria).strip():
        raise BadJudgement("text: says nothing; write what the answer should have been")
    return value


def _number(value: Any, _: Sequence[int], __: Sequence[str]) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise BadJudgement(f"value={value!r}: a finite number")
    return float(value)


_Check = Callable[[Any, Sequence[int], Sequence[str]], Any]
_FIELDS: Mapping[JudgementKind, Mapping[str, _Check]] = {
    JudgementKind.PAIR: {"chosen": _chosen},
    JudgementKind.RANKING: {"ranks": _ranks},
    JudgementKind.RATING: {"ratings": _ratings},
    JudgementKind.SKIP: {"reason": _text},
    JudgementKind.CORRECTION: {"place": _place, "text": _some_text},
    JudgementKind.HARMFUL: {"place": _place},
    JudgementKind.REWARD: {"place": _place, "value": _number},
    JudgementKind.WITHDRAWAL: {},
}


def agrees_with_gold(content: Mapping[str, Any], gold: Mapping[str, Any]) -> bool:
    """Whether an answer says what a careful rater says: the same choice, the same best, ratings within one point."""
    if "chosen" in gold:
        return content.get("chosen") == gold["chosen"]
    if "ranks" in gold:
        ranks = content.get("ranks")
        return ranks is not None and _best(ranks) == _best(gold["ranks"])
    ratings = content.get("ratings")
    return ratings is not None and all(
        abs(mine[name] - right) <= 1
        for mine, rights in zip(ratings, gold["ratings"], strict=True)
        for name, right in rights.items()
        if name in mine
    )


def _best(ranks: Sequence[int]) -> frozenset[int]:
    return frozenset(place for place, rank in enumerate(ranks) if rank == min(ranks))
