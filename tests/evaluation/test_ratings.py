"""How near a reward model comes to held-out ratings, by hand."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.evaluation.ratings import ScoredRating, ratings_json

SURE = math.log(3)
"""A score that foresees 3/4."""


def _rating(score: float, value: float, criterion: str = "fluent") -> ScoredRating:
    return ScoredRating(criterion, "digit", ("image",), score=score, value=value, overall=0.0, length=3)


def test_accuracy_and_brier_by_criterion_by_hand() -> None:
    ratings = [
        _rating(SURE, 1.0),  # right, 1/4 off
        _rating(-SURE, 1.0),  # wrong, 3/4 off
        _rating(-SURE, 0.25),  # right, and 0 off
        _rating(SURE, 0.5),  # neither, 1/4 off
        _rating(0.5, 0.0, "safe"),
    ]
    found = json.loads(json.dumps(ratings_json(ratings), allow_nan=False))
    fluent = found["fluent"]
    assert (fluent["num_ratings"], fluent["num_decided"]) == (4, 3)
    assert fluent["accuracy"] == pytest.approx(2 / 3)
    assert fluent["brier"] == pytest.approx((1 / 16 + 9 / 16 + 1 / 16) / 4)
    # The mean rating is 11/16.
    assert fluent["constant_brier"] == pytest.approx((2 * 5**2 + 7**2 + 3**2) / 16**2 / 4)
    assert (found["safe"]["accuracy"], found["safe"]["constant_brier"]) == (0.0, 0.0)
    assert ratings_json([]) == {}


def test_three_of_five_stars_alone_have_no_accuracy_and_large_scores_no_overflow() -> None:
    found = ratings_json([_rating(1e6, 0.5), _rating(-1e6, 0.5)])["fluent"]
    assert (found["accuracy"], found["accuracy_interval"], found["brier"]) == (None, None, 0.25)
