"""How far raters agree, and whether they choose by the place on the page: what tells if judgements can be believed.

Agreement is measured beyond what chance would give: 1 is full agreement, 0 what raters reach who draw their answers
from one hat, and below 0 they disagree on purpose. What cannot be told from the answers at hand is None.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest

from pipeline.evaluation.intervals import CONFIDENCE, wilson

Unit = Mapping[str, float | None] | Sequence[float | None]
"""All ratings of one item: by rater, or in any order. None and NaN are ratings that are missing."""


class Level(StrEnum):
    """What two unequal ratings say."""

    NOMINAL = "nominal"  # that they differ: ratings are numbers that stand for classes
    ORDINAL = "ordinal"  # which is higher
    INTERVAL = "interval"  # by how much


def krippendorff_alpha(units: Sequence[Unit], *, level: Level) -> float | None:
    """Krippendorff's alpha ("Computing Krippendorff's alpha-reliability", 2011) of any number of raters.

    alpha = 1 - D_o / D_e. D_o is the mean squared difference of two ratings of one item, where an item of m ratings
    counts m times, and D_e that of any two of the n ratings, all of items that have two or more. The squared difference
    of c < k is 1 (nominal), (k - c)^2 (interval), or (n_c/2 + n_between + n_k/2)^2 (ordinal), n_c being how many of the
    n ratings are c: that is the squared difference of their ranks among all n, equal ratings sharing the mean rank.
    The paper's matrix of coincidences is summed here item by item, so that the cost grows with the number of
    ratings, not with the square of that of their values.

    Returns:
        None where no item has two ratings, or all such ratings are equal: then chance would agree as well.

    Raises:
        ValueError: a rating is infinite.
    """
    counts, values, times = _count(units)
    return _alpha(counts, values, times, level)


def bootstrap_alpha(
    units: Sequence[Unit], *, level: Level, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval (low, high) of `krippendorff_alpha`: percentiles of its bootstrap over items.

    Items with two or more ratings are drawn with replacement (Efron and Tibshirani 1993, chapter 13); ratings of one
    item stay together. The same seed gives the same interval. Resamples whose alpha is undefined are left out. It is
    too narrow for few items, and of no width where no two raters differed: say the number of items beside it.

    Returns:
        None where alpha itself is undefined, or fewer than two items have two ratings.

    Raises:
        ValueError: a rating is infinite, or `num_resamples` is below 1.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}: a bootstrap needs at least 1, for an interval about 1000")
    counts, values, times = _count(units)
    num = int(times.sum())
    if num < 2 or _alpha(counts, values, times, level) is None:
        return None
    dice = np.random.default_rng(seed)
    drawn = (dice.multinomial(num, times / num) for _ in range(num_resamples))
    found = [alpha for each in drawn if (alpha := _alpha(counts, values, each, level)) is not None]
    if not found:
        return None
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _count(units: Sequence[Unit]) -> tuple[csr_array, NDArray[np.float64], NDArray[np.int64]]:
    """How often each of V values occurs in each of P patterns, the values, and how many items have each pattern.

    Items with the same ratings are one pattern: of five ratings from 1 to 5 there are no more than 252. Those with
    fewer than two ratings are left out.
    """
    rows = (unit.values() if isinstance(unit, Mapping) else unit for unit in units)
    patterns = Counter(tuple(sorted(each for each in row if each is not None and not math.isnan(each))) for row in rows)
    kept = {pattern: times for pattern, times in patterns.items() if len(pattern) > 1}
    ratings = np.array([rating for pattern in kept for rating in pattern], np.float64)
    if np.isinf(ratings).any():
        raise ValueError("a rating is infinite: ratings are finite numbers, and None where one is missing")
    values, columns = np.unique(ratings, return_inverse=True)
    lines = np.repeat(np.arange(len(kept)), [len(pattern) for pattern in kept])
    counts = csr_array((np.ones(len(ratings)), (lines, columns)), shape=(len(kept), len(values)))
    return counts, values, np.array(list(kept.values()), np.int64)


def _alpha(counts: csr_array, values: NDArray[np.float64], times: NDArray[np.int64], level: Level) -> float | None:
    """Alpha of patterns with these counts [P, V] of the ascending values [V], each of them taken `times` [P]."""
    totals = times @ counts
    num = totals.sum()
    if np.count_nonzero(totals) < 2:
        return None
    sizes = counts.sum(axis=1)
    # Squared differences, summed over ordered pairs of ratings: of an item, and of all.
    if level is Level.NOMINAL:
        within = sizes**2 - counts.power(2).sum(axis=1)
        overall = num**2 - totals @ totals
    else:
        ranks = np.cumsum(totals) - totals / 2
        # Around the mean, so that large values that lie close together keep their digits.
        scale = ranks - num / 2 if level is Level.ORDINAL else values - values @ totals / num
        within = 2 * (sizes * (counts @ scale**2) - (counts @ scale) ** 2)
        overall = 2 * (num * (totals @ scale**2) - (totals @ scale) ** 2)
    return float(1 - (num - 1) * (times @ (within / (sizes - 1))) / overall)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (1960) of two raters' labels of the same items, in the same order.

    kappa = (p_o - p_e) / (1 - p_e), p_o the share of equal labels and p_e = sum over labels c of p_1(c) p_2(c).

    Returns:
        None for no items, and where both gave one and the same label to all.

    Raises:
        ValueError: the two are not equally long.
    """
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} labels and second {len(second)}: both need one of each shared item")
    num, ours, theirs = len(first), Counter(first), Counter(second)
    by_chance = sum(ours[label] * theirs[label] for label in ours)
    if by_chance == num**2:
        return None
    equal = sum(one == other for one, other in zip(first, second, strict=True))
    return (num * equal - by_chance) / (num**2 - by_chance)


def mean_pairwise_kappa(units: Sequence[Mapping[str, Hashable | None]], *, min_shared: int = 10) -> float | None:
    """Mean of `cohen_kappa` over all pairs of raters, each weighted by the number of items both labelled.

    That is Light's kappa (1971) with weights for raters who share few items. `units` holds the labels of each item by
    rater; None is a label that is missing. Pairs that share fewer than `min_shared` items, or whose kappa is undefined,
    are left out.

    Returns:
        None where no pair is left.
    """
    shared: defaultdict[tuple[str, str], list[tuple[Hashable, Hashable]]] = defaultdict(list)
    for unit in units:
        raters = sorted(rater for rater, label in unit.items() if label is not None)
        for one, other in combinations(raters, 2):
            shared[one, other].append((unit[one], unit[other]))
    enough = [labels for labels in shared.values() if len(labels) >= min_shared]
    kappas = [(cohen_kappa(*zip(*labels, strict=True)), len(labels)) for labels in enough]
    defined = [(kappa, num) for kappa, num in kappas if kappa is not None]
    num_labels = sum(num for _, num in defined)
    return sum(kappa * num for kappa, num in defined) / num_labels if num_labels else None


@dataclass(frozen=True)
class PositionBias:
    """With which share the completion that was shown first was chosen, and its 95 % interval."""

    share: float
    low: float
    high: float
    p_value: float
    """Of a share that far from 1/2 or farther, if the place did not matter."""


def position_bias(first_chosen: int, num: int) -> PositionBias | None:
    """Whether a rater chooses by the place: of `num` pairs shown in random order, in `first_chosen` the first won.

    Ties do not count. p is that of the exact two-sided binomial test of 1/2 (Clopper and Pearson 1934), the interval
    that of Wilson (1927).

    Returns:
        None for no pairs.

    Raises:
        ValueError: `first_chosen` is negative or above `num`.
    """
    if not 0 <= first_chosen <= num:
        raise ValueError(f"first_chosen is {first_chosen} of num = {num} pairs: it lies between 0 and num")
    if num == 0:
        return None
    share = first_chosen / num
    return PositionBias(share, *wilson(share, num), float(binomtest(first_chosen, num, 0.5).pvalue))
