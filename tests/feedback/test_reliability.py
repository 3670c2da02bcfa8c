"""How reliable raters are by each other's judgements: simulated raters whose errors are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pipeline.config.feedback import Feedback
from pipeline.feedback.overview import set_aside, standings
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.feedback.reliability import reliabilities
from pipeline.records import Message


def judged(number: int, content: Mapping[str, Mapping[str, Any]], task: Task = Task.PAIR, num: int = 2) -> Judged:
    candidates = tuple(Candidate(str(place)) for place in range(num))
    item = Item(task, str(number), "demo", (Message("user", "Which?"),), (), candidates)
    kind = JudgementKind(task.value)
    return Judged(
        item,
        tuple(Judgement(f"{rater}-{number}", item.id, rater, kind, said, 5.0) for rater, said in content.items()),
    )


def simulated(accuracies: Mapping[str, float], num: int, per_item: int = 3, seed: int = 0) -> list[Judged]:
    """Pairs whose better one is known, each judged by some raters who are right so often."""
    dice = np.random.default_rng(seed)
    found: list[Judged] = []
    for number in range(num):
        truth = int(dice.integers(2))
        raters = dice.choice(list(accuracies), size=per_item, replace=False).tolist()
        choices = {rater: truth if dice.random() < accuracies[rater] else 1 - truth for rater in raters}
        found.append(judged(number, {rater: {"chosen": choice} for rater, choice in choices.items()}))
    return found


def test_reliabilities_are_the_raters_accuracies() -> None:
    truth = {"ada": 0.95, "bo": 0.9, "cy": 0.8, "dee": 0.5, "eve": 0.1}
    found = reliabilities(simulated(truth, 1500))
    assert {rater: each.value for rater, each in found.items()} == pytest.approx(truth, abs=0.06)
    assert sum(each.num_items for each in found.values()) == 3 * 1500


def test_rankings_and_ratings_are_judgements_of_every_two() -> None:
    ranks = {"ada": [1, 2, 3], "bo": [1, 2, 3], "cy": [3, 2, 1]}
    points = {"ada": (5, 1), "bo": (4, 2), "cy": (1, 4)}
    ranked = [
        judged(number, {rater: {"ranks": each} for rater, each in ranks.items()}, Task.RANKING, 3)
        for number in range(20)
    ]
    rated = [
        judged(
            number,
            {rater: {"ratings": [{"safe": one}, {"safe": two}]} for rater, (one, two) in points.items()},
            Task.RATING,
        )
        for number in range(20)
    ]
    for shared in (ranked, rated):
        found = reliabilities(shared)
        assert {rater: each.num_items for rater, each in found.items()} == {"ada": 20, "bo": 20, "cy": 20}
        assert found["ada"].value == found["bo"].value > 0.9 and found["cy"].value < 0.1


def test_of_two_who_disagree_nothing_is_known() -> None:
    assert reliabilities(simulated({"ada": 1.0, "bo": 0.3}, 50, per_item=2)) == {}
    # Also where there are others elsewhere.
    apart = simulated({"ada": 1.0, "bo": 0.3}, 50, per_item=2) + [
        judged(1000 + number, {name: {"chosen": 0} for name in ("cy", "dee", "eve")}) for number in range(5)
    ]
    assert reliabilities(apart).keys() == {"cy", "dee", "eve"}
    assert reliabilities([]) == {}


def test_who_is_unreliable_is_set_aside_with_the_reason_and_never_after_few_judgements() -> None:
    shared = simulated({"ada": 0.95, "bo": 0.9, "cy": 0.85, "dee": 0.3}, 120)
    settings = Feedback()
    known = standings(shared, settings)
    assert set_aside(shared, settings) == {"dee"}
    reason = known["dee"].reason
    assert reason is not None and f"by {known['dee'].num_shared} items" in reason and "min_reliability=0.5" in reason
    assert known["ada"].reason is None and (known["ada"].reliability or 0) > 0.85
    few = standings(shared[:60], settings)
    assert 0 < few["dee"].num_shared < settings.min_shared_items
    assert (few["dee"].reliability, few["dee"].reason) == (None, None)
    assert set_aside(shared, Feedback(min_reliability=0)) == frozenset()


def test_honest_raters_of_hard_questions_are_seldom_set_aside_and_blind_ones_often() -> None:
    honest = {name: 0.75 for name in ("ada", "bo", "cy", "dee")}
    aside = [set_aside(simulated({**honest, "eve": 0.5}, 100, seed=seed), Feedback()) for seed in range(40)]
    assert sum(len(each - {"eve"}) for each in aside) <= 5  # of 160
    assert sum("eve" in each for each in aside) >= 15  # of 40
