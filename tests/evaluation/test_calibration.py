"""Accuracy and calibration of a reward model on held-out comparisons, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from pipeline.evaluation.calibration import ScoredPair, calibration_json, measure

SURE, SURER = math.log(3), math.log(17 / 3)
"""Differences of the scores at which one choice has the probability 0.75, and 0.85."""


def _pair(
    difference: float, *, tie: bool = False, task: str = "digit", kinds: tuple[str, ...] = ("image",)
) -> ScoredPair:
    return ScoredPair(task, kinds, chosen=2.0 + difference, rejected=2.0, is_tie=tie)


# Of those at 0.75 two of three are right, of those at 0.85 one of two; and a tie.
PAIRS = [_pair(SURE), _pair(SURE), _pair(-SURE), _pair(SURER), _pair(-SURER), _pair(SURE, tie=True)]


def test_accuracy_is_the_share_of_decided_pairs_ranked_as_the_rater_did() -> None:
    found = measure(PAIRS)
    assert (found["num_pairs"], found["num_decided"], found["accuracy"]) == (6, 5, 0.6)
    assert found["accuracy_interval"] == pytest.approx([0.2307, 0.8824], abs=1e-4)


def test_calibration_by_hand() -> None:
    found = measure(PAIRS)
    middle, high = found["bins"]
    assert (middle["from"], middle["to"]) == pytest.approx((0.7, 0.8))
    assert (middle["num_pairs"], middle["confidence"], middle["outcome"]) == pytest.approx((4, 0.75, 2.5 / 4))
    assert (high["num_pairs"], high["confidence"], high["outcome"]) == pytest.approx((2, 0.85, 0.5))
    assert found["calibration_error"] == pytest.approx((4 * (0.75 - 0.625) + 2 * (0.85 - 0.5)) / 6)
    # 0.25 off where right, 0.75 where wrong, 0.25 at the tie; then 0.15 and 0.85.
    assert found["brier"] == pytest.approx((3 / 16 + 9 / 16 + 0.0225 + 0.7225) / 6)


def test_a_rater_who_chose_the_other_ones_turns_accuracy_and_outcomes_around() -> None:
    turned = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    assert measure(turned)["accuracy"] == pytest.approx(0.4)
    assert [each["outcome"] for each in measure(turned)["bins"]] == pytest.approx([1.5 / 4, 0.5])


def test_a_model_that_tells_nothing_apart_is_never_right_and_calibrated() -> None:
    found = measure([_pair(0.0)] * 4)
    assert (found["accuracy"], found["brier"], found["calibration_error"]) == (0.0, 0.25, 0.0)
    assert found["bins"] == [{"from": 0.5, "to": 0.6, "num_pairs": 4, "confidence": 0.5, "outcome": 0.5}]


def test_scores_far_apart_are_certain() -> None:
    found = measure([_pair(1e6), _pair(1e6)])
    assert (found["brier"], found["bins"][0]["to"], found["bins"][0]["confidence"]) == (0.0, 1.0, 1.0)


def test_ties_alone_have_no_accuracy() -> None:
    found = measure([_pair(1.0, tie=True)])
    assert (found["accuracy"], found["accuracy_interval"], found["num_decided"]) == (None, None, 0)


def test_tasks_and_modalities_are_told_apart() -> None:
    pairs = [_pair(1.0), _pair(-1.0, task="sum", kinds=()), _pair(1.0, task="mixed", kinds=("image", "audio"))]
    found: dict[str, Any] = json.loads(json.dumps(calibration_json(pairs), allow_nan=False))
    assert {name: each["accuracy"] for name, each in found["tasks"].items()} == {"digit": 1, "mixed": 1, "sum": 0}
    assert {name: each["num_pairs"] for name, each in found["modalities"].items()} == {
        "audio": 1,
        "image": 2,
        "text": 1,
    }
    assert found["overall"]["num_pairs"] == 3
