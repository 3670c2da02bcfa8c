"""Many judgements made one: against closed formulas, published tables, and simulated raters whose errors are known."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.feedback.aggregation import (
    Comparison,
    bradley_terry,
    dawid_skene,
    plackett_luce,
    position_propensities,
    reliability,
    weak_label_weights,
)

# Bradley and Terry.


def test_of_two_the_strengths_are_the_log_of_the_odds() -> None:
    # (3 + 1/2) / (1 + 1/2) wins.
    found = bradley_terry(2, [Comparison(0, 1)] * 3 + [Comparison(1, 0)])
    assert found.tolist() == pytest.approx([math.log(3.5 / 1.5) / 2, -math.log(3.5 / 1.5) / 2])
    # Who never lost has a strength all the same, the greater the weaker the prior.
    never, weaker = bradley_terry(2, [Comparison(1, 0)]), bradley_terry(2, [Comparison(1, 0)], prior=0.01)
    assert never[1] - never[0] == pytest.approx(math.log(3))
    assert weaker[1] - weaker[0] == pytest.approx(math.log(1.01 / 0.01))


def test_a_tie_is_half_a_win_of_each_and_a_weight_so_many_comparisons() -> None:
    tied = bradley_terry(2, [Comparison(1, 0, is_tie=True), Comparison(0, 1)])
    assert tied[0] - tied[1] == pytest.approx(math.log(2 / 1))
    weighted = [Comparison(0, 1, 2.0), Comparison(1, 2, 0.5, is_tie=True), Comparison(2, 0, 3.0)]
    counted = [Comparison(0, 1)] * 8 + [Comparison(1, 2), Comparison(2, 1)] + [Comparison(2, 0)] * 12
    quarters = [each._replace(weight=0.25) for each in counted]
    assert bradley_terry(3, weighted).tolist() == pytest.approx(bradley_terry(3, quarters).tolist())


def test_strengths_are_where_expected_and_actual_wins_are_equal() -> None:
    dice = np.random.default_rng(0)
    wins = dice.integers(0, 5, size=(6, 6)) * (1 - np.eye(6))
    compared = [Comparison(one, other, float(wins[one, other])) for one, other in permutations(range(6), 2)]
    strengths = bradley_terry(6, compared, prior=1.0)
    beats = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    with_prior = wins + (1 - np.eye(6)) / 5
    expected = ((with_prior + with_prior.T) * beats * (1 - np.eye(6))).sum(axis=1)
    assert expected == pytest.approx(with_prior.sum(axis=1))
    assert strengths.mean() == pytest.approx(0.0)


def test_turned_around_every_comparison_turns_the_strengths() -> None:
    compared = [Comparison(0, 1), Comparison(1, 2, 2.0), Comparison(0, 3), Comparison(3, 2, is_tie=True)]
    turned = [each._replace(winner=each.loser, loser=each.winner) for each in compared]
    assert bradley_terry(4, compared).tolist() == pytest.approx((-bradley_terry(4, turned)).tolist())


def test_strengths_are_found_again() -> None:
    dice = np.random.default_rng(0)
    truth = np.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    pairs = [dice.choice(5, size=2, replace=False) for _ in range(4000)]
    won = [dice.random() < 1 / (1 + math.exp(truth[other] - truth[one])) for one, other in pairs]
    compared = [Comparison(*(pair if first else pair[::-1])) for pair, first in zip(pairs, won, strict=True)]
    assert bradley_terry(5, compared).tolist() == pytest.approx(truth.tolist(), abs=0.15)


def test_what_nobody_judged_is_average() -> None:
    assert bradley_terry(3, []).tolist() == pytest.approx([0.0, 0.0, 0.0])
    assert bradley_terry(1, []).tolist() == plackett_luce(1, [[1]]).tolist() == [0.0]
    # 0 and 1 were never compared with 2 and 3.
    apart = bradley_terry(4, [Comparison(0, 1), Comparison(2, 3)])
    assert apart.tolist() == pytest.approx([apart[0], -apart[0], apart[0], -apart[0]]) and apart[0] > 0


@pytest.mark.parametrize(
    ("comparison", "prior", "message"),
    [
        (Comparison(0, 3), 0.5, "item 3 is none of num_items = 3"),
        (Comparison(-1, 0), 0.5, "item -1 is none of num_items = 3"),
        (Comparison(1, 1), 0.5, "comparison of 1 and 1"),
        (Comparison(1, 0, -1.0), 0.5, "weight -1.0"),
        (Comparison(1, 0, math.nan), 0.5, "weight nan"),
        (Comparison(1, 0), 0.0, "prior is 0.0"),
    ],
)
def test_comparisons_of_no_meaning_are_refused(comparison: Comparison, prior: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bradley_terry(3, [comparison], prior=prior)


# Plackett and Luce.


def test_a_ranking_of_two_is_a_comparison() -> None:
    ranked = plackett_luce(2, [[1, 2], [1, 2], [2, 1], [1, 1]])
    compared = [Comparison(0, 1), Comparison(0, 1), Comparison(1, 0), Comparison(0, 1, is_tie=True)]
    assert ranked.tolist() == pytest.approx(bradley_terry(2, compared).tolist())


def _score(strengths: NDArray[np.float64], orders: list[tuple[int, ...]], prior: float) -> NDArray[np.float64]:
    """Gradient of the mean log-likelihood of these orders, and of the prior: choices of the best of all."""
    gradient = prior * (1 - len(strengths) * np.exp(strengths) / np.exp(strengths).sum())
    for order in orders:
        for place, chosen in enumerate(order):
            left = np.exp(strengths[list(order[place:])])
            gradient[list(order[place:])] -= left / left.sum() / len(orders)
            gradient[chosen] += 1 / len(orders)
    return gradient


@pytest.mark.parametrize(
    ("ranks", "orders"),
    [
        ([2, 1, 3, 4], [(1, 0, 2, 3)]),
        ([1, None, 2, None], [(0, 2)]),
        ([1, 1, 2, 3], [(0, 1, 2, 3), (1, 0, 2, 3)]),
        ([5, 1, 1, 1], [(*order, 0) for order in permutations((1, 2, 3))]),
        ([1, 2, 1, 2], [(*best, *worst) for best in permutations((0, 2)) for worst in permutations((1, 3))]),
        (
            [1, 1, 1, 2, 2, 2],
            [(*best, *worst) for best in permutations((0, 1, 2)) for worst in permutations((3, 4, 5))],
        ),
        ([3, 3, 3, 1, 3, None], [(3, *order) for order in permutations((0, 1, 2, 4))]),
        ([1, 1, 1, 1, 1, 2], [(*order, 5) for order in permutations(range(5))]),
    ],
)
def test_strengths_are_where_the_mean_over_all_orders_is_likeliest(
    ranks: list[int | None], orders: list[tuple[int, ...]]
) -> None:
    found = plackett_luce(len(ranks), [ranks], prior=0.3)
    assert _score(found, orders, 0.3) == pytest.approx(np.zeros(len(ranks)), abs=1e-6)
    assert found.mean() == pytest.approx(0.0)
    shown = [(found[item], rank) for item, rank in enumerate(ranks) if rank is not None]
    for strength, rank in shown:
        for other, other_rank in shown:
            assert strength == pytest.approx(other) if rank == other_rank else (strength > other) == (rank < other_rank)


def test_each_ranking_counts_once_whether_it_has_ties_or_not() -> None:
    rankings: list[list[int | None]] = [[1, 2, 3, 4], [1, 1, 1, 1], [1, 1, 1, 2], [2, 2, 1, None]]
    orders = [
        [(0, 1, 2, 3)],
        list(permutations(range(4))),
        [(*each, 3) for each in permutations(range(3))],
        [(2, 0, 1), (2, 1, 0)],
    ]
    found = plackett_luce(4, rankings, prior=0.2)
    # The prior counts once for all four.
    whole = sum((_score(found, each, 0.2 / 4) for each in orders), np.zeros(4))
    assert whole == pytest.approx(np.zeros(4), abs=1e-6)


def test_many_that_tie_are_equal_and_what_else_is_known_of_them_is_kept() -> None:
    assert plackett_luce(7, [[1] * 7]).tolist() == pytest.approx([0.0] * 7)
    for num, error in ((5, 1e-6), (6, 0.1)):
        # All tie in one ranking, another orders them.
        order = (3, 1, 4, 2, 0, 5)[:num]
        found = plackett_luce(num, [[1] * num, [order.index(item) + 1 for item in range(num)]])
        exact = _score(found, list(permutations(range(num))), 0.25) + _score(found, [order], 0.25)
        assert exact == pytest.approx(np.zeros(num), abs=error)
        assert np.argsort(-found).tolist() == list(order)


def test_strengths_are_found_again_from_rankings_of_some() -> None:
    dice = np.random.default_rng(0)
    truth = np.array([-1.2, -0.4, 0.0, 0.4, 1.2])
    rankings: list[list[int | None]] = []
    for _ in range(800):
        shown = dice.choice(5, size=4, replace=False)
        order = shown[np.argsort(-(truth[shown] + dice.gumbel(size=4)))].tolist()
        rankings.append([order.index(item) + 1 if item in order else None for item in range(5)])
    assert plackett_luce(5, rankings).tolist() == pytest.approx(truth.tolist(), abs=0.15)


def test_rankings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a ranking has 2 ranks, num_items is 3"):
        plackett_luce(3, [[1, 2, 3], [1, 2]])
    with pytest.raises(ValueError, match=r"prior is -1\.0"):
        plackett_luce(2, [[1, 2]], prior=-1.0)


# Dawid and Skene.

# Their table 1: patients 1 to 45, assessed three times by the first of five anaesthetists, and once by each other one.
ANAESTHETISTS = """
1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223 2322223 4444444 2223343 1111111 2223212 1211111
1112111 1111111 1111111 2222221 2221322 2222222 2222221 2223222 2212222 1111111 1111111 2322222 1111111 1111111 1121121
1111111 3333233 1111111 2222222 2223232 4334343 2212232 2323233 3333432 1111111 1111111 1212111 2322222 1211111 2222222
"""


def test_it_finds_what_dawid_and_skene_published() -> None:
    observers = "1112345"
    labels = [
        (f"patient {number}", observer, int(digit) - 1)
        for number, digits in enumerate(ANAESTHETISTS.split(), start=1)
        for observer, digit in zip(observers, digits, strict=True)
    ]
    found = dawid_skene(labels, 4, prior=1e-6, tolerance=1e-9)
    assert found.has_converged and found.raters == tuple("12345") and len(found.items) == 45
    assert found.class_prior.tolist() == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=5.1e-3)
    first = [[0.89, 0.11, 0.00, 0.00], [0.07, 0.88, 0.05, 0.00], [0.00, 0.34, 0.66, 0.00], [0.00, 0.00, 0.56, 0.44]]
    last = [[1.00, 0.00, 0.00, 0.00], [0.16, 0.73, 0.11, 0.00], [0.00, 0.21, 0.79, 0.00], [0.00, 0.00, 0.33, 0.67]]
    assert found.confusion[0] == pytest.approx(np.array(first), abs=6e-3)
    assert found.confusion[4] == pytest.approx(np.array(last), abs=6e-3)
    # Five of the seven assessments of patient 2 say 3, and the model 4.
    assert found.posteriors[1] == pytest.approx(np.array([0, 0, 0, 1]), abs=5.1e-3)
    assert found.posteriors[2] == pytest.approx(np.array([0, 1, 0, 0]), abs=5.1e-3)
    assert found.posteriors[6] == pytest.approx(np.array([0.98, 0.02, 0, 0]), abs=5.1e-3)


def test_one_step_by_hand() -> None:
    # From the vote (1, 0), prior 1: class prior (1 + 1, 0 + 1) / 3, confusion (1 + 2, 1) / 4 and (1, 2) / 3.
    # Posterior ~ (2/3 * 3/4, 1/3 * 1/3) = (1/2, 1/9).
    found = dawid_skene([("item", "rater", 0)], 2, prior=1.0, max_iterations=1)
    assert found.posteriors.tolist() == [pytest.approx([9 / 11, 2 / 11])]
    # And after it: (9/11 + 1, 2/11 + 1) / 3, (9/11 + 2, 1) and (2/11 + 1, 2) by their sums.
    assert found.class_prior.tolist() == pytest.approx([20 / 33, 13 / 33])
    assert found.confusion[0].tolist() == [pytest.approx([31 / 42, 11 / 42]), pytest.approx([13 / 35, 22 / 35])]
    assert not found.has_converged


def _simulate(accuracies: list[float], num_items: int, seed: int) -> tuple[list[tuple[str, str, int]], Any]:
    """Labels by raters of these accuracies, and the truth: classes 0 and 1, two of three are 0."""
    dice = np.random.default_rng(seed)
    truth = (dice.random(num_items) < 1 / 3).astype(int)
    labels = [
        (f"item {number}", f"rater {rater}", int(label if dice.random() < accuracy else 1 - label))
        for number, label in enumerate(truth)
        for rater, accuracy in enumerate(accuracies)
    ]
    return labels, truth


def test_it_knows_how_often_raters_err_and_beats_the_vote_where_one_works_against_the_rest() -> None:
    accuracies = [0.85, 0.8, 0.75, 0.7, 0.1]
    labels, truth = _simulate(accuracies, 1000, seed=0)
    found = dawid_skene(labels, 2)
    assert found.has_converged
    assert found.posteriors.sum(axis=1) == pytest.approx(np.ones(1000))
    assert found.class_prior.tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    assert reliability(found.posteriors, found.confusion).tolist() == pytest.approx(accuracies, abs=0.04)
    votes = np.array([label for _, _, label in labels]).reshape(1000, 5).sum(axis=1) > 2
    right, by_vote = np.mean(found.posteriors.argmax(axis=1) == truth), np.mean(votes == truth)
    assert right > 0.93 and by_vote < 0.87
    # It means what it says: what it holds for certain to 80 or 90 % is right about so often.
    confidence = found.posteriors.max(axis=1)
    assert np.mean(found.posteriors.argmax(axis=1) == truth) == pytest.approx(confidence.mean(), abs=0.02)


def test_raters_need_not_see_all_items_and_the_order_of_labels_is_all_one() -> None:
    labels, truth = _simulate([0.9, 0.85, 0.8, 0.6, 0.6], 1500, seed=1)
    dice = np.random.default_rng(2)
    some = [labels[place] for place in dice.permutation(len(labels))[: len(labels) * 3 // 5]]
    found = dawid_skene(some, 2)
    errors = dict(zip(found.raters, reliability(found.posteriors, found.confusion), strict=True))
    for rater, accuracy in enumerate([0.9, 0.85, 0.8, 0.6, 0.6]):
        assert errors[f"rater {rater}"] == pytest.approx(accuracy, abs=0.06)
    again = dawid_skene(sorted(some), 2)
    one, other = (dict(zip(each.items, each.posteriors[:, 0], strict=True)) for each in (found, again))
    assert one == pytest.approx(other, abs=1e-4)
    known = np.array([truth[int(item.split()[1])] for item in found.items])
    assert np.mean(found.posteriors.argmax(axis=1) == known) > 0.85


def test_of_a_rater_with_one_label_little_is_held() -> None:
    labels, _ = _simulate([0.9, 0.9, 0.9], 200, seed=3)
    found = dawid_skene([*labels, ("item 0", "new", 0), ("item 1", "new", 0)], 2)
    assert 0.5 < reliability(found.posteriors, found.confusion)[3] < 0.85
    surer = dawid_skene([*labels, ("item 0", "new", 0), ("item 1", "new", 0)], 2, prior=0.01)
    assert abs(surer.confusion[3, 0, 0] - 0.5) > abs(found.confusion[3, 0, 0] - 0.5)


def test_reliability_by_hand() -> None:
    posteriors = np.array([[1.0, 0.0], [0.5, 0.5]])
    confusion = np.array([[[0.8, 0.2], [0.4, 0.6]], [[0.1, 0.9], [0.5, 0.5]]])
    # 3/4 of the items are of the first class.
    assert reliability(posteriors, confusion).tolist() == pytest.approx([0.75 * 0.8 + 0.25 * 0.6, 0.75 * 0.1 + 0.125])


@pytest.mark.parametrize(
    ("labels", "prior", "message"),
    [
        ([], 0.5, "labels is empty"),
        ([("a", "ann", 2)], 0.5, "label 2 of a by ann"),
        ([("a", "ann", -1)], 0.5, "label -1 of a by ann"),
        ([("a", "ann", 0)], 0.0, "prior is 0.0"),
    ],
)
def test_labels_of_no_class_are_refused(labels: list[tuple[str, str, int]], prior: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dawid_skene(labels, 2, prior=prior)


# Clicks.


def test_propensities_are_rates_relative_to_the_best_place() -> None:
    assert position_propensities([30, 60, 15], [100, 100, 50]).tolist() == pytest.approx([0.5, 1.0, 0.5])


def test_a_click_where_few_look_weighs_more_up_to_a_limit_and_clicks_weigh_scale_on_average() -> None:
    # Inverse propensities 1, 2, 2, 20 -> 10, of which the mean is 3.75.
    found = weak_label_weights([0, 1, 1, 2], [1.0, 0.5, 0.05], scale=0.3)
    assert found.tolist() == pytest.approx([0.08, 0.16, 0.16, 0.8])
    assert found.mean() == pytest.approx(0.3)
    # A place where nobody ever chose has the limit, and 1 is no weighting.
    assert weak_label_weights([0, 1], [1.0, 0.0], scale=1.0, max_inverse=3.0).tolist() == pytest.approx([0.5, 1.5])
    assert weak_label_weights([0, 1], [1.0, 0.1], scale=0.2, max_inverse=1.0).tolist() == pytest.approx([0.2, 0.2])
    assert weak_label_weights([], [1.0], scale=0.2).tolist() == []


def test_weighted_clicks_say_how_good_completions_are_wherever_they_were_shown() -> None:
    """The good one is always last and the bad one first: clicks favour the bad one, weighted clicks do not."""
    dice = np.random.default_rng(0)
    looked_at, liking = np.array([0.9, 0.6, 0.3]), np.array([0.2, 0.3, 0.5])
    # First at random, to learn the propensities.
    order = dice.permuted(np.tile(np.arange(3), (30_000, 1)), axis=1)
    clicked = (dice.random(order.shape) < looked_at) & (dice.random(order.shape) < liking[order])
    propensities = position_propensities(clicked.sum(axis=0), [len(order)] * 3)
    assert propensities.tolist() == pytest.approx([1, 2 / 3, 1 / 3], abs=0.03)
    fixed = (dice.random((30_000, 3)) < looked_at) & (dice.random((30_000, 3)) < liking)
    places = np.nonzero(fixed)[1]
    weights = weak_label_weights(places, propensities, scale=1.0)
    raw, weighted = np.bincount(places), np.bincount(places, weights)
    assert raw[0] > raw[2]
    assert (weighted / weighted.sum()).tolist() == pytest.approx(liking.tolist(), abs=0.02)


def test_clicks_of_no_meaning_are_refused() -> None:
    for chosen, shown in (([1, 2], [1]), ([1, 0], [1, 0]), ([2, 0], [1, 1]), ([-1, 1], [1, 1])):
        with pytest.raises(ValueError, match="each place needs"):
            position_propensities(chosen, shown)
    with pytest.raises(ValueError, match="num_chosen is 0 at every place"):
        position_propensities([0, 0], [5, 5])
    with pytest.raises(ValueError, match="item 2 is none"):
        weak_label_weights([2], [1.0, 0.5], scale=1.0)
    with pytest.raises(ValueError, match="propensities are"):
        weak_label_weights([0], [1.5], scale=1.0)
    with pytest.raises(ValueError, match=r"scale is 0\.0"):
        weak_label_weights([0], [1.0], scale=0.0)
    with pytest.raises(ValueError, match=r"max_inverse 0\.5"):
        weak_label_weights([0], [1.0], scale=1.0, max_inverse=0.5)
