"""Strengths of a policy's versions: against closed formulas, and versions whose strengths are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest

from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.feedback.strengths import MOST_ROWS, standard_errors, version_strengths
from pipeline.records import Message

NUMBERS = count()


def judged(versions: Sequence[int | None], task: Task, rater: str = "ada", run: str = "run", **said: Any) -> Judged:
    candidates = tuple(Candidate(str(place), weights_version=version) for place, version in enumerate(versions))
    gold, repeat = said.pop("gold", None), said.pop("is_repeat", False)
    name = str(next(NUMBERS))
    item = Item(task, name, "demo", (Message("user", "Which?"),), (), candidates, run, 1, gold=gold)
    kind = JudgementKind(task.value)
    return Judged(item, (Judgement(name, item.id, rater, kind, said, 5.0, is_repeat=repeat),))


def pair(first: int | None, second: int | None, chosen: int | None, **more: Any) -> Judged:
    return judged((first, second), Task.PAIR, chosen=chosen, **more)


def test_of_two_versions_the_strengths_are_the_log_of_the_odds_whatever_the_place() -> None:
    # Version 9 wins 6 of 8 and ties once: 6.5 + 0.5 to 1.5 + 0.5, with half a win of each before.
    won = [pair(9, 0, 0)] * 3 + [pair(0, 9, 1)] * 3 + [pair(0, 9, 0), pair(0, 9, None)]
    old, new = version_strengths(won)
    assert (old.first, old.last, old.num, new.first, new.last, new.num) == (0, 0, 8, 9, 9, 8)
    assert new.value - old.value == pytest.approx(math.log(7 / 2))
    assert old.low < old.value < old.high and new.value == pytest.approx(-old.value)
    # 8 comparisons, and the best of both chosen once more before.
    p = 7 / 9
    assert new.high - new.value == pytest.approx(1.96 / (2 * math.sqrt(9 * p * (1 - p))), rel=1e-3)


def test_known_items_repeats_raters_who_are_set_aside_and_what_no_policy_wrote_compare_nothing() -> None:
    nothing = [
        pair(0, 1, 1, gold={"chosen": 1}),
        pair(0, 1, 1, is_repeat=True),
        pair(0, 1, 1, rater="bad"),
        pair(None, 1, 1),
        pair(3, 3, 1),
    ]
    assert version_strengths(nothing, aside={"bad"}) == []
    assert len(version_strengths([*nothing, pair(0, 1, 1)], aside={"bad"})) == 2


def test_rankings_of_three_versions_are_plackett_and_luces_and_ratings_count_by_their_means() -> None:
    dice, truth = np.random.default_rng(0), np.array([-1.0, 0.0, 1.0])
    ranked: list[Judged] = []
    for _ in range(400):
        order = np.argsort(-(truth + dice.gumbel(size=3)))
        ranked.append(judged((0, 1, 2), Task.RANKING, ranks=(np.argsort(order) + 1).tolist()))
    found = version_strengths(ranked)
    assert [each.value for each in found] == pytest.approx(truth.tolist(), abs=0.2)
    assert all(each.low < right < each.high for each, right in zip(found, truth, strict=True))
    rated = judged((0, 1), Task.RATING, ratings=[{"safe": 2, "helpful": 3}, {"safe": 5}])
    old, new = version_strengths([rated])
    assert new.value - old.value == pytest.approx(math.log(3))


def test_a_ranking_with_two_completions_of_one_version_compares_each_of_them_with_the_others() -> None:
    # Version 1 has places 0 and 2, and version 0 has place 1 between them: one win of each.
    old, new = version_strengths([judged((1, 0, 1), Task.RANKING, ranks=[1, 2, 3])])
    assert (old.value, new.value) == pytest.approx((0.0, 0.0)) and old.num == 2


def test_many_versions_are_told_in_spans_and_runs_apart() -> None:
    climbing = [pair(version, version + 5, 1) for version in range(60)]
    found = version_strengths([*climbing, pair(0, 1, 0, run="other")])
    of_run = [each for each in found if each.run == "run"]
    assert len(of_run) == MOST_ROWS and [each.run for each in found][-2:] == ["other", "other"]
    assert [each.first for each in of_run][1:] == [each.last + 1 for each in of_run][:-1]
    values = [each.value for each in of_run]
    assert values == sorted(values)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, hits, num = np.array([-0.6, 0.0, 0.6]), 0, 0
    for seed in range(60):
        dice = np.random.default_rng(seed)
        pairs = [sorted(dice.choice(3, size=2, replace=False).tolist()) for _ in range(60)]
        found = version_strengths(
            [pair(i, j, int(dice.random() < 1 / (1 + math.exp(truth[i] - truth[j])))) for i, j in pairs]
        )
        hits += sum(each.low <= right <= each.high for each, right in zip(found, truth, strict=True))
        num += len(found)
    assert 0.9 <= hits / num <= 0.99


def test_of_two_with_n_choices_the_error_is_known() -> None:
    p = 1 / (1 + math.exp(-1.0))
    found = standard_errors([0.5, -0.5], [((0, 1), 12.0)])
    assert found.tolist() == pytest.approx([1 / (2 * math.sqrt(12 * p * (1 - p)))] * 2)
