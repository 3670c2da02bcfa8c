"""Agreement of raters against published values, hand-made ones, and the definition carried out step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.evaluation.intervals import wilson
from pipeline.feedback.agreement import (
    Level,
    bootstrap_alpha,
    cohen_kappa,
    krippendorff_alpha,
    mean_pairwise_kappa,
    position_bias,
)

Ratings = Sequence[Sequence[float | None]]

NA = None
# Krippendorff 2011, section C: four observers, twelve units.
FOUR_OBSERVERS: Ratings = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NA, NA, NA],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NA, 3],
        [NA, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NA],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NA],
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("level", "published"), [(Level.NOMINAL, 0.743), (Level.ORDINAL, 0.815), (Level.INTERVAL, 0.849)]
)
def test_alpha_is_what_krippendorff_published(level: Level, published: float) -> None:
    assert krippendorff_alpha(FOUR_OBSERVERS, level=level) == pytest.approx(published, abs=5.1e-4)
    by_rater = [dict(zip("abcd", unit, strict=True)) for unit in FOUR_OBSERVERS]
    assert krippendorff_alpha(by_rater, level=level) == pytest.approx(published, abs=5.1e-4)
    missing = [[math.nan if rating is None else rating for rating in unit] for unit in FOUR_OBSERVERS]
    assert krippendorff_alpha(missing, level=level) == pytest.approx(published, abs=5.1e-4)


def test_alpha_of_two_observers_is_what_krippendorff_published() -> None:
    # Sections A and B of the same paper: Meg and Owen, Ben and Gerry.
    binary = list(zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0], strict=True))
    assert krippendorff_alpha(binary, level=Level.NOMINAL) == pytest.approx(0.095, abs=5.1e-4)
    letters = zip("aabbdcccedda", "babbbccceddd", strict=True)
    codes = [[float(ord(each)) for each in unit] for unit in letters]
    assert krippendorff_alpha(codes, level=Level.NOMINAL) == pytest.approx(0.692, abs=5.1e-4)


def _nominal(low: int, high: int, values: Sequence[float], totals: Sequence[float]) -> float:
    return float(low != high)


def _ordinal(low: int, high: int, values: Sequence[float], totals: Sequence[float]) -> float:
    return (sum(totals[low : high + 1]) - (totals[low] + totals[high]) / 2) ** 2


def _interval(low: int, high: int, values: Sequence[float], totals: Sequence[float]) -> float:
    return (values[low] - values[high]) ** 2


DIFFERENCE: dict[Level, Callable[[int, int, Sequence[float], Sequence[float]], float]] = {
    Level.NOMINAL: _nominal,
    Level.ORDINAL: _ordinal,
    Level.INTERVAL: _interval,
}


def _by_definition(units: Ratings, level: Level) -> float:
    """Alpha by the matrix of coincidences, as in sections C and D of the paper."""
    rows = [[rating for rating in unit if rating is not None] for unit in units]
    rows = [row for row in rows if len(row) > 1]
    values = sorted({rating for row in rows for rating in row})
    place = {value: number for number, value in enumerate(values)}
    matrix = np.zeros((len(values), len(values)))
    for row in rows:
        for one in range(len(row)):
            for other in range(len(row)):
                if one != other:
                    matrix[place[row[one]], place[row[other]]] += 1 / (len(row) - 1)
    totals = matrix.sum(axis=1).tolist()
    pairs = [(low, high) for low in range(len(values)) for high in range(low + 1, len(values))]
    distances = [DIFFERENCE[level](low, high, values, totals) for low, high in pairs]
    observed = sum(matrix[pair] * distance for pair, distance in zip(pairs, distances, strict=True))
    expected = sum(
        totals[low] * totals[high] * distance for (low, high), distance in zip(pairs, distances, strict=True)
    )
    return float(1 - (sum(totals) - 1) * observed / expected)


@pytest.mark.parametrize("level", list(Level))
def test_alpha_is_its_definition_for_any_raters_and_gaps(level: Level) -> None:
    dice = np.random.default_rng(0)
    for _ in range(20):
        truth = dice.integers(0, 6, size=(30, 1))
        ratings = truth + dice.integers(-1, 2, size=(30, 5))
        missing = dice.random((30, 5)) < 0.5
        units = [
            [None if gone else 1.5 * float(rating) for rating, gone in zip(*row, strict=True)]
            for row in zip(ratings, missing, strict=True)
        ]
        assert krippendorff_alpha(units, level=level) == pytest.approx(_by_definition(units, level))


def test_each_level_sees_what_it_should() -> None:
    # Order is all that counts for ordinal ratings, and whether they are equal for nominal ones.
    stretching: dict[float | None, float | None] = {1: 1, 2: 10, 3: 11, 4: 500, 5: 501, NA: NA}
    naming: dict[float | None, float | None] = {1: 4, 2: 1, 3: 5, 4: 2, 5: 3, NA: NA}
    stretched = [[stretching[each] for each in unit] for unit in FOUR_OBSERVERS]
    renamed = [[naming[each] for each in unit] for unit in FOUR_OBSERVERS]
    for level, changed, is_same in (
        (Level.ORDINAL, stretched, True),
        (Level.INTERVAL, stretched, False),
        (Level.NOMINAL, renamed, True),
        (Level.ORDINAL, renamed, False),
    ):
        same = krippendorff_alpha(changed, level=level) == pytest.approx(
            krippendorff_alpha(FOUR_OBSERVERS, level=level)
        )
        assert same is is_same
    # And the zero of an interval scale is anywhere.
    moved = [[None if each is None else each + 1e9 for each in unit] for unit in FOUR_OBSERVERS]
    assert krippendorff_alpha(moved, level=Level.INTERVAL) == pytest.approx(0.849, abs=5.1e-4)


def test_a_hundred_thousand_ratings_of_as_many_values_need_no_matrix() -> None:
    # A matrix of coincidences would take 80 GB.
    ratings = np.random.default_rng(0).normal(size=(20_000, 5)) + np.arange(20_000)[:, None] / 20_000 * math.sqrt(12)
    units = ratings.tolist()
    # Variances are 1 between and 1 within items.
    assert krippendorff_alpha(units, level=Level.INTERVAL) == pytest.approx(0.5, abs=0.02)
    assert krippendorff_alpha(units, level=Level.NOMINAL) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("units", [[], [[1, NA], [2]], [[NA, NA]], [[3, 3], [3, 3, 3]], [[1], [3, 3]]])
def test_what_cannot_be_told_is_none(units: Ratings, level: Level) -> None:
    assert krippendorff_alpha(units, level=level) is None
    assert bootstrap_alpha(units, level=level) is None


def test_alpha_is_one_for_those_who_agree_and_below_zero_for_those_who_never_do() -> None:
    for level in Level:
        assert krippendorff_alpha([[1, 1], [2, 2], [5, 5, 5]], level=level) == pytest.approx(1.0)
        # Each of n = 4: D_o = 1, D_e = 2 * 2 * 2 / (4 * 3).
        assert krippendorff_alpha([[1, 2], [1, 2]], level=level) == pytest.approx(1 - 3 / 2)


def test_infinite_ratings_are_refused() -> None:
    with pytest.raises(ValueError, match="a rating is infinite"):
        krippendorff_alpha([[1, math.inf]], level=Level.INTERVAL)
    with pytest.raises(ValueError, match="num_resamples is 0"):
        bootstrap_alpha(FOUR_OBSERVERS, level=Level.ORDINAL, num_resamples=0)


def test_the_interval_is_the_same_for_a_seed_and_holds_alpha() -> None:
    by_rater = [dict(zip("abcd", unit, strict=True)) for unit in FOUR_OBSERVERS]
    for level in Level:
        alpha = krippendorff_alpha(FOUR_OBSERVERS, level=level)
        found = bootstrap_alpha(FOUR_OBSERVERS, level=level, num_resamples=200)
        assert alpha is not None and found is not None and found[0] < alpha < found[1] <= 1
        assert found == bootstrap_alpha(by_rater, level=level, num_resamples=200)
        assert found != bootstrap_alpha(FOUR_OBSERVERS, level=level, num_resamples=200, seed=1)
    assert bootstrap_alpha([[1, 2]], level=Level.NOMINAL) is None, "one item says nothing of others"


def test_it_draws_items_and_as_many_as_there_are() -> None:
    """Of 40 items 10 are split, 15 are all 0, 15 all 1: alpha depends on the numbers of each that are drawn."""
    units = [[0, 1]] * 10 + [[0, 0]] * 15 + [[1, 1]] * 15
    found = bootstrap_alpha(units, level=Level.NOMINAL, num_resamples=4000)
    drawn = np.random.default_rng(1).multinomial(40, [0.25, 0.375, 0.375], size=4000)
    split, zeros, ones = drawn.T
    alphas = 1 - 79 * (2 * split) / (2 * (split + 2 * zeros) * (split + 2 * ones))
    assert found == pytest.approx(tuple(np.quantile(alphas, [0.025, 0.975])), abs=0.03)


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    """Two raters who are right in 90 %: D_o = 2 * 0.9 * 0.1, D_e = 1/2, alpha = 0.64."""
    dice = np.random.default_rng(0)
    held = 0
    for _ in range(80):
        right = dice.random((100, 2)) < 0.9
        truth = dice.integers(0, 2, size=(100, 1))
        units = np.where(right, truth, 1 - truth)
        found = bootstrap_alpha(units.astype(float).tolist(), level=Level.NOMINAL, num_resamples=100)
        held += found is not None and found[0] <= 0.64 <= found[1]
    assert held >= 70


def test_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)
    assert cohen_kappa([1, 2, 3], [1, 2, 3]) == 1.0
    assert cohen_kappa([1, 2], [2, 1]) == -1.0
    assert cohen_kappa([1, 1], [1, 2]) == 0.0, "a rater who always says the same agrees by chance"


def test_kappa_is_none_where_chance_alone_would_agree_and_lengths_must_fit() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([1, 1], [1, 1]) is None
    with pytest.raises(ValueError, match="first has 1 labels and second 2"):
        cohen_kappa([1], [1, 2])


def test_pairs_of_raters_weigh_by_what_they_share() -> None:
    # ann and bob share four items (kappa 1), ann and cid two (kappa -1), bob and cid two (kappa -1).
    units = [
        {"ann": 0, "bob": 0, "cid": 1},
        {"cid": 0, "bob": 1, "ann": 1},
        {"bob": 0, "ann": 0, "cid": None},
        {"ann": 1, "bob": 1},
        {"cid": 1},
    ]
    assert mean_pairwise_kappa(units, min_shared=2) == pytest.approx((4 * 1 - 2 - 2) / 8)
    assert mean_pairwise_kappa(units, min_shared=3) == pytest.approx(1.0)
    assert mean_pairwise_kappa(units, min_shared=5) is None
    assert mean_pairwise_kappa(units) is None
    # dan and eve gave one label to all: their kappa is undefined, and no zero.
    same = [{"dan": 0, "eve": 0}] * 4
    assert mean_pairwise_kappa([*units, *same], min_shared=3) == pytest.approx(1.0)
    assert mean_pairwise_kappa(same, min_shared=1) is None


def test_bias_to_a_place_by_hand() -> None:
    # 2 * (45 + 10 + 1) / 2^10 for eight of ten, 2 / 2^10 for ten.
    for first_chosen, p_value in ((8, 112 / 1024), (2, 112 / 1024), (0, 2 / 1024), (5, 1.0)):
        found = position_bias(first_chosen, 10)
        assert found is not None and found.p_value == pytest.approx(p_value)
        assert found.share == first_chosen / 10 and (found.low, found.high) == wilson(found.share, 10)
    assert position_bias(0, 0) is None


@pytest.mark.parametrize(("first_chosen", "num"), [(-1, 4), (5, 4), (1, 0)])
def test_more_than_all_or_fewer_than_none_are_refused(first_chosen: int, num: int) -> None:
    with pytest.raises(ValueError, match=f"first_chosen is {first_chosen} of num = {num}"):
        position_bias(first_chosen, num)
