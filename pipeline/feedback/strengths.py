"""Which versions of the policy people prefer: strengths out of items whose completions are of several versions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from pipeline.feedback.aggregation import Comparison, bradley_terry, plackett_luce
from pipeline.feedback.exchange.labels import scores
from pipeline.feedback.records import ANSWERS, Judged, JudgementKind

MOST_ROWS = 12
"""Versions, or spans of versions, that are told apart in a run."""
PRIOR = 0.5
_Z = NormalDist().inv_cdf(0.975)

Choice = tuple[tuple[int, ...], float]
"""Those among whom one was chosen, and how often."""


@dataclass(frozen=True)
class Strength:
    """How much people prefer the answers of some versions of a run's policy, from `first` to `last`.

    value: of two the stronger wins with probability sigmoid of the difference; the mean over a run is 0. low, high: its
    95 % interval. num: answers of raters that compare these versions with others.
    """

    run: str
    first: int
    last: int
    num: int
    value: float
    low: float
    high: float


def version_strengths(judged: Sequence[Judged], *, aside: Collection[str] = ()) -> list[Strength]:
    """Strengths of the versions of each run, in order; of runs in which people have compared some.

    Where there are rankings of three versions or more: by Plackett and Luce, pairs being rankings of two. Else by
    Bradley and Terry, which is the same for pairs. A run with many versions is told in `MOST_ROWS` spans with
    about as many versions each. Ratings count as rankings by their means. Items whose judgement is known, repeats and
    raters who are set aside are left out. Judgements of one item count as independent of each other.
    """
    by_run: defaultdict[str, list[dict[int, list[float]]]] = defaultdict(list)
    for each in judged:
        versions = [candidate.weights_version for candidate in each.item.candidates]
        for said in each.judgements:
            if said.kind not in ANSWERS - {JudgementKind.SKIP} or said.is_repeat or said.rater in aside:
                continue
            of: dict[int, list[float]] = defaultdict(list)
            for version, score in zip(versions, scores(said, each.item), strict=True):
                if version is not None:
                    of[version].append(score)
            if each.item.gold is None and len(of) > 1:
                by_run[each.item.run].append(of)
    return [row for run, found in by_run.items() for row in _of_run(run, found)]


def _of_run(run: str, answers: Sequence[dict[int, list[float]]]) -> list[Strength]:
    versions = sorted({version for each in answers for version in each})
    spans = [span.tolist() for span in np.array_split(versions, min(MOST_ROWS, len(versions)))]
    row_of = {version: row for row, span in enumerate(spans) for version in span}
    rankings = [ranks for each in answers for ranks in _rankings(each, row_of, len(spans))]
    if not rankings:  # All within one span.
        return []
    values = _strengths(len(spans), rankings)
    errors = standard_errors(values, [*_choices(rankings), (tuple(range(len(spans))), PRIOR * len(spans))])
    num = Counter(row for ranks in rankings for row, rank in enumerate(ranks) if rank is not None)
    return [
        Strength(run, span[0], span[-1], num[row], value, value - _Z * error, value + _Z * error)
        for row, (span, value, error) in enumerate(zip(spans, values.tolist(), errors.tolist(), strict=True))
    ]


def _rankings(
    answer: dict[int, list[float]], row_of: dict[int, int], num_rows: int
) -> Iterable[tuple[int | None, ...]]:
    """An answer as the ranks of rows. Where a row has several completions in it, one ranking of each two rows' pair."""
    of_row: defaultdict[int, list[float]] = defaultdict(list)
    for version, found in answer.items():
        of_row[row_of[version]] += found
    if all(len(found) == 1 for found in of_row.values()):
        if len(of_row) > 1:
            yield _ranks({row: found[0] for row, found in of_row.items()}, num_rows)
        return
    for one, other in combinations(of_row, 2):
        for mine in of_row[one]:
            for theirs in of_row[other]:
                yield _ranks({one: mine, other: theirs}, num_rows)


def _ranks(scores: dict[int, float], num_rows: int) -> tuple[int | None, ...]:
    better = {row: 1 + sum(other > score for other in scores.values()) for row, score in scores.items()}
    return tuple(better.get(row) for row in range(num_rows))


def _strengths(num_rows: int, rankings: Sequence[tuple[int | None, ...]]) -> NDArray[np.float64]:
    counted = Counter(rankings)
    if all(num_rows - ranks.count(None) == 2 for ranks in counted):
        pairs = [
            Comparison(
                *sorted(rows, key=lambda row: ranks[row] or 0), weight=num, is_tie=ranks[rows[0]] == ranks[rows[1]]
            )
            for ranks, num in counted.items()
            for rows in [[row for row, rank in enumerate(ranks) if rank is not None]]
        ]
        return bradley_terry(num_rows, pairs, prior=PRIOR)
    return plackett_luce(num_rows, rankings, prior=PRIOR)


def _choices(rankings: Iterable[tuple[int | None, ...]]) -> list[Choice]:
    """The choices that make rankings: the best of all, the best of what is left, and so on; ties in one order."""
    found: Counter[tuple[int, ...]] = Counter()
    for ranks in rankings:
        left = sorted((rank, row) for row, rank in enumerate(ranks) if rank is not None)
        for start in range(len(left) - 1):
            found[tuple(sorted(row for _, row in left[start:]))] += 1
    return [(rows, float(num)) for rows, num in found.items()]


def standard_errors(strengths: ArrayLike, choices: Iterable[Choice]) -> NDArray[np.float64]:
    """Standard errors [N] of strengths s [N] with a mean of zero: by the curvature of log P at its maximum.

    The covariance is the inverse of H = sum over choices of weight * (diag(p) - p p^T), p = softmax(s) over those among
    whom one was chosen (Plackett and Luce's; of two it is Bradley and Terry's), within the strengths whose sum is zero.
    It does not depend on who won. Of two rows with n choices the error is 1 / (2 sqrt(n p (1 - p))).

    Args:
        choices: rows among whom one was chosen, and how often; with a prior's, so that no row is without.
    """
    values = np.asarray(strengths, np.float64)
    curvature = np.zeros((len(values), len(values)))
    for rows, weight in choices:
        p = softmax(values[list(rows)])
        curvature[np.ix_(rows, rows)] += weight * (np.diag(p) - np.outer(p, p))
    return np.sqrt(np.diag(np.linalg.pinv(curvature, hermitian=True)))
