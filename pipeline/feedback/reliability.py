"""How often each rater is right, by what all of them say of the same items: no known answers are needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pipeline.feedback.aggregation import dawid_skene, reliability
from pipeline.feedback.exchange.labels import scores
from pipeline.feedback.records import ANSWERS, Judged, JudgementKind

MIN_OTHERS = 2
"""Where two disagree, nothing tells which of them is right; it takes a third one."""


class Reliability(NamedTuple):
    """Expected share of right answers of a rater, and how many items of his it was found by."""

    value: float
    num_items: int


def reliabilities(judged: Sequence[Judged]) -> dict[str, Reliability]:
    """Of each rater with items that others have judged too: his expected accuracy, by Dawid and Skene (1979).

    The classes of a pair are: the first one is better, the second one is, or neither. A ranking or ratings count as
    pairs of every two. Repeats are left out, and so are raters who were forgotten, and those who share items with fewer
    than `MIN_OTHERS`. See `aggregation.dawid_skene` for what it supposes.
    """
    shared = [(each.item.id, votes) for each in judged if len(votes := _by_rater(each)) > 1]
    num_items = Counter(rater for _, votes in shared for rater in votes)
    others: defaultdict[str, set[str]] = defaultdict(set)
    for _, votes in shared:
        for rater in votes:
            others[rater] |= votes.keys() - {rater}
    if not any(len(each) >= MIN_OTHERS for each in others.values()):
        return {}
    labels = [
        (f"{item}/{pair}", rater, label)
        for item, votes in shared
        for rater, classes in votes.items()
        for pair, label in enumerate(classes)
    ]
    found = dawid_skene(labels, 3)
    values = zip(found.raters, reliability(found.posteriors, found.confusion).tolist(), strict=True)
    return {rater: Reliability(value, num_items[rater]) for rater, value in values if len(others[rater]) >= MIN_OTHERS}


def _by_rater(judged: Judged) -> dict[str, list[int]]:
    """The class of each pair of an item's completions, by rater."""
    return {
        said.rater: [_class(*pair) for pair in combinations(scores(said, judged.item), 2)]
        for said in judged.judgements
        if said.rater is not None and not said.is_repeat and said.kind in ANSWERS - {JudgementKind.SKIP}
    }


def _class(first: float, second: float) -> int:
    return 2 if first == second else int(second > first)
