"""The scripted rater: which of two completions it holds to be better, which pairs it takes, and how often it errs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pipeline.feedback.scripted import ScriptedRater
from pipeline.records import Completion, FinishReason, Preference, RaterKind, Rollout

CUT = "..."
"""Ends the text of a completion that met the length limit."""


BASE: dict[str, Any] = {"error_rate": 0.0, "seed": 0}


def _completion(text: str) -> Completion:
    reason = FinishReason.LENGTH if text.endswith(CUT) else FinishReason.STOP
    text = text.removesuffix(CUT)
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    return Completion(ids, np.zeros(len(ids), np.float32), reason, 0, text)


def _group(*texts: str, name: str = "row-1") -> Rollout:
    return Rollout(name, tuple(map(_completion, texts)))


def _rater(**settings: Any) -> ScriptedRater:
    return ScriptedRater(**{**BASE, **settings})


def _pairs(found: list[Preference]) -> list[tuple[str, str]]:
    return [(each.chosen, each.rejected) for each in found]


# From the best to the worst; in a row of several all are equally good. "..." was cut off there.
OF_SEVEN = [
    ("7", "7 "),
    ("7 maybe", "it's 7"),
    ("7 for sure",),
    ("7...",),
    ("7 for...",),
    ("6", "8 for sure", "eight", "6 or 3"),  # one off
    ("8...",),
    ("3", "3 for sure"),
    ("a cat", "99", "1 and 2"),  # far off, or no number
    ("a cat...",),
    ("", " "),
    ("...",),
]
OF_SENTENCE = [
    ("three red cats",),
    ("there are three red cats",),
    ("three red cats...",),
    ("three red dogs", "three cats", "Three red dogs"),  # one of three words is wrong
    ("three red...",),
    ("cats",),
    ("a house", "three of the many cats that I saw there"),  # as many wrong words as the answer has, or more
    ("a house...",),
    ("",),
]


@pytest.mark.parametrize(("answer", "ladder"), [("7", OF_SEVEN), ("three red cats", OF_SENTENCE)])
def test_content_goes_before_manner_and_silence_is_last(answer: str, ladder: list[tuple[str, ...]]) -> None:
    rater = _rater()
    for better, worse in combinations(ladder, 2):
        for good in better:
            for bad in worse:
                for group in (_group(good, bad), _group(bad, good)):
                    (found,) = rater.compare(group, answer)
                    expected = (good.removesuffix(CUT), bad.removesuffix(CUT))
                    assert (found.chosen, found.rejected) == expected, (good, bad)
    for equals in ladder:
        assert rater.compare(_group(*equals), answer) == [], equals


def test_a_wrong_answer_is_better_the_nearer_it_comes() -> None:
    rater = _rater()
    assert _pairs(rater.compare(_group("3", "9", "6"), "7")) == [("6", "3")]
    assert _pairs(rater.compare(_group("8", "3 for sure 7"), "7")) == [("3 for sure 7", "8")], "not asked"
    generous = _rater(closeness=lambda text, answer: 1.0)
    assert _pairs(generous.compare(_group("8", "7 for sure"), "7")) == [("7 for sure", "8")], "right before near"


def test_what_is_recorded_can_be_learned_from() -> None:
    (found,) = _rater(error_rate=0.05).compare(_group("3", "7", name="row-9"), "7")
    assert found == Preference(
        prompt_id="row-9",
        chosen_ids=(ord("7"),),
        rejected_ids=(ord("3"),),
        chosen="7",
        rejected="3",
        rater="scripted (right, then finished, then plain; error rate 0.05)",
        rater_kind=RaterKind.SCRIPTED,
        error_rate=0.05,
    )


def test_it_errs_as_often_as_it_says_and_on_the_same_prompts_each_time() -> None:
    groups = [_group("7", "3", name=f"row-{number}") for number in range(2000)]
    chosen = [_rater(error_rate=0.2).compare(group, "7")[0].chosen for group in groups]
    assert 0.17 < chosen.count("3") / 2000 < 0.23
    assert chosen[100:] == [_rater(error_rate=0.2).compare(group, "7")[0].chosen for group in groups[100:]]
    assert chosen != [_rater(error_rate=0.2, seed=1).compare(group, "7")[0].chosen for group in groups]


MIXED = ("7", "3", "7 for sure", "", "7 for")


def test_of_several_pairs_the_first_is_the_best_with_the_worst_and_both_kinds_come_in_turn() -> None:
    found = {
        number: _pairs(_rater(pairs_per_prompt=number).compare(_group(*MIXED), "7")) for number in (1, 2, 3, 4, 50)
    }
    assert found[1] == [("7", "")]
    assert all(found[50][:number] == found[number] for number in found)
    right = {"7", "7 for", "7 for sure"}
    differs_in_content = [not {better, worse} <= right for better, worse in found[4]]
    assert differs_in_content == [True, False, True, False]
    ranked = ["7", "7 for", "7 for sure", "3", ""]
    assert sorted(found[50]) == sorted(combinations(ranked, 2))


def test_where_all_are_right_manner_is_what_differs_and_where_none_is_content() -> None:
    rater = _rater(pairs_per_prompt=3)
    assert _pairs(rater.compare(_group("7 for sure", "7"), "7")) == [("7", "7 for sure")]
    assert _pairs(rater.compare(_group("1", "", "99"), "7")) == [("1", "")]


def test_ties_are_told_where_they_are_asked_for_and_better_ones_are_not_at_hand() -> None:
    rater = _rater(ties=True, pairs_per_prompt=2)
    first, second = rater.compare(_group("1", "2", "1", "0", "12"), "7")
    assert (first.is_tie, first.chosen, first.rejected) == (True, "1", "2")
    assert (second.is_tie, second.chosen, second.rejected) == (True, "1", "0")
    better, tie = rater.compare(_group("1", "2", "7"), "7")
    assert (better.is_tie, better.chosen, tie.is_tie) == (False, "7", True)
    assert rater.compare(_group("7", "7", "7"), "7") == [], "the same answer twice is no comparison"
    assert _rater().compare(_group("1", "2"), "7") == []
