"""What judgements say, in the terms that formats share: comparisons of two completions, and verdicts on single ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Any, TypeVar, cast

from pipeline.data.schema import Reason, RowError, media_places
from pipeline.feedback.judging import checked
from pipeline.feedback.records import (
    ANSWERS,
    Item,
    Judged,
    Judgement,
    JudgementKind,
    MediumRef,
    RaterRole,
    Task,
)
from pipeline.records import MediaKind, Message

Media = Callable[[MediumRef], bytes]
"""Gives the bytes of a medium's file."""
Keep = Callable[[MediaKind, bytes], MediumRef]
"""Stores a medium's file."""
Report = Counter[str]
"""How much was left out, by reason (`Left`, a `JudgementKind`, or what the format calls it)."""

GOOD, BAD = 4, 2
"""A mean rating of at least 4 makes a completion good, one of at most 2 makes it bad."""

_T = TypeVar("_T")


class Left(StrEnum):
    """Why something is not in what was written or read."""

    # Judgements, and what follows from them.
    WITHDRAWN = "withdrawn"
    REPEATED = "repeated"  # of one rater's answers to an item, all but the last: where votes are counted
    TIE = "tie"
    UNDECIDED = "undecided"  # a mean rating between bad and good, or as many votes for one as for the other
    UNFINISHED = "unfinished"
    CONTRADICTION = "contradiction"
    # Items.
    MEDIA = "media"
    MEDIUM_ELSEWHERE = "medium_elsewhere"
    MEDIUM_TYPE = "medium_type"
    SYSTEM_MESSAGE = "system_message"
    DIVERGING_TURNS = "diverging_turns"
    TAG_IN_ANSWER = "tag_in_answer"
    SAME_ANSWERS = "same_answers"
    NO_ANSWER = "no_answer"
    SURROGATE = "surrogate"  # half of a pair: no file can hold it
    # What is known of an item or a judgement, and has no place there.
    GOLD = "gold"
    SKIP_REASON = "skip_reason"
    MODEL = "model"
    BOTH_BAD = "both_bad"
    MARGIN = "margin"
    NOT_A_PAIR = "not_a_pair"


@dataclass(frozen=True)
class Comparison:
    """What is said of two completions of an item, by one judgement or (None) by the most votes."""

    first: int
    second: int
    """Places of the completions, `first` before `second`."""
    chosen: int | None
    """The place of the better one; None is a tie."""
    judgement: Judgement | None = None


def standing(judged: Judged, report: Report) -> list[Judgement]:
    """The judgements that nobody took back, checked.

    Raises:
        ValueError: one does not hold what its kind and its item ask for.
    """
    withdrawn = {each.withdraws for each in judged.judgements if each.kind is JudgementKind.WITHDRAWAL}
    report[Left.WITHDRAWN] += sum(each.key in withdrawn for each in judged.judgements)
    left = [each for each in judged.judgements if each.key not in withdrawn]
    report[JudgementKind.WITHDRAWAL] += sum(each.kind is JudgementKind.WITHDRAWAL for each in left)
    return [check(each, judged.item) for each in left if each.kind is not JudgementKind.WITHDRAWAL]


def check(judgement: Judgement, item: Item) -> Judgement:
    """The judgement, if it can be one of this item.

    Raises:
        ValueError: it does not hold what its kind and its item ask for.
    """
    if item.task is Task.PAIR and len(item.candidates) != 2:
        raise ValueError(f"item {item.id}: {len(item.candidates)} candidates; a pair has 2, a ranking may have more")
    given = judgement.content.get("ratings")
    ratings = cast("list[Any]", given) if isinstance(given, list) else []
    criteria = {name for each in ratings if isinstance(each, Mapping) for name in each}
    try:
        checked(
            judgement.kind,
            judgement.content,
            task=item.task,
            order=range(len(item.candidates)),
            criteria=sorted(criteria, key=str),
            role=RaterRole.EXPERT,
        )
    except ValueError as error:
        raise ValueError(f"judgement {judgement.key!r} of item {item.id}: {error}") from None
    return judgement


def comparisons(judged: Judged, report: Report, *, aggregate: bool = False) -> list[Comparison]:
    """All comparisons of two completions that an item's answers imply, ties among them.

    A pair says one; a ranking says one of every two completions; ratings say one of every two by their means over the
    criteria. aggregate: one of every two completions, by the most votes, of which each rater has one; where several
    outcomes have as many, it is a tie.

    Raises:
        ValueError: see `standing`; or the item's tags and media differ.
    """
    check_media(judged.item)
    told = [(each, scores(each, judged.item)) for each in _answers(judged, report, aggregate=aggregate)]
    found = [
        Comparison(first, second, _better(first, second, of), judgement)
        for judgement, of in told
        for first, second in combinations(range(len(judged.item.candidates)), 2)
    ]
    if not aggregate:
        return found
    votes: dict[tuple[int, int], list[int | None]] = {}
    for each in found:
        votes.setdefault((each.first, each.second), []).append(each.chosen)
    return [Comparison(first, second, majority(given)) for (first, second), given in votes.items()]


def verdicts(judged: Judged, report: Report, *, aggregate: bool = False) -> list[tuple[int, bool]]:
    """The places of completions that are good or bad by the mean of their ratings (`GOOD`, `BAD`), and which it is.

    aggregate: one a completion at most, by the most votes.

    Raises:
        ValueError: see `comparisons`.
    """
    check_media(judged.item)
    votes: dict[int, list[bool | None]] = {}
    for judgement in _answers(judged, report, aggregate=aggregate):
        if judgement.kind is not JudgementKind.RATING:
            report[judgement.kind] += 1
            continue
        for place, mean in enumerate(scores(judgement, judged.item)):
            votes.setdefault(place, []).append(True if mean >= GOOD else False if mean <= BAD else None)
    if aggregate:
        votes = {place: [majority(given)] for place, given in votes.items()}
    report[Left.UNDECIDED] += sum(vote is None for given in votes.values() for vote in given)
    return [(place, vote) for place, given in votes.items() for vote in given if vote is not None]


def scores(judgement: Judgement, item: Item) -> list[float]:
    """One number a completion, more is better: of an answer to the item."""
    content = judgement.content
    if judgement.kind is JudgementKind.RANKING:
        return [-rank for rank in content["ranks"]]
    if judgement.kind is JudgementKind.RATING:
        return [sum(each.values()) / len(each) for each in content["ratings"]]
    return [float(place == content["chosen"]) for place in range(len(item.candidates))]


def majority(votes: Iterable[_T]) -> _T | None:
    """What most votes are for; None where nothing has more than the rest."""
    top = Counter(votes).most_common(2)
    return None if len(top) == 2 and top[0][1] == top[1][1] else top[0][0]


def _better(first: int, second: int, of: Sequence[float]) -> int | None:
    return None if of[first] == of[second] else first if of[first] > of[second] else second


def _answers(judged: Judged, report: Report, *, aggregate: bool) -> list[Judgement]:
    """The answers to the item but skips; aggregate: the last one of each rater alone."""
    answers: list[Judgement] = []
    for each in standing(judged, report):
        if each.kind in ANSWERS - {JudgementKind.SKIP}:
            answers.append(each)
        else:
            report[each.kind] += 1
    if not aggregate:
        return answers
    last = {each.key if each.rater is None else (each.rater,): each for each in answers}
    report[Left.REPEATED] += len(answers) - len(last)
    return list(last.values())


def gathered(found: Iterable[tuple[Item, Judgement]]) -> list[Judged]:
    """Judgements by their items, in order; a rater's further answers to an item are marked as repeats."""
    items: dict[str, Item] = {}
    judgements: dict[str, list[Judgement]] = {}
    for item, judgement in found:
        items.setdefault(item.id, item)
        of_item = judgements.setdefault(item.id, [])
        is_repeat = judgement.rater is not None and any(
            {each.kind, judgement.kind} <= ANSWERS and each.rater == judgement.rater for each in of_item
        )
        of_item.append(replace(judgement, is_repeat=is_repeat))
    return [Judged(item, tuple(judgements[key])) for key, item in items.items()]


def check_media(item: Item) -> None:
    """Makes sure that the tags in an item's messages are those of its media.

    Raises:
        ValueError: they are not.
    """
    tags, media = media_places(item.messages), [medium.kind for medium in item.media]
    if tags != media:
        raise ValueError(
            f"item {item.id}: media={[str(kind) for kind in media]}, tags in messages={[str(kind) for kind in tags]}; "
            "put one tag where each medium belongs, in their order"
        )


def has_tag(text: str) -> bool:
    """Whether a completion says what stands for a medium: others would look for a file there."""
    return bool(media_places([Message("assistant", text)]))


def refusal(place: str, field: str, value: Any, cure: str) -> RowError:
    """The refusal of a value that others wrote. place: the file, and the row in it."""
    return RowError(Reason.WRONG_TYPE, f"{place}: {field}={str(value)[:80]!r}: {cure}")


def without_nothing(report: Report) -> Report:
    """The counts that are not zero, by name, each as plain text."""
    return Counter({str(reason): report[reason] for reason in sorted(report) if report[reason]})


def slices(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """The rows, `size` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
