"""Length bias and blindness of a reward model, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.evaluation.bias import blindness, length_bias
from pipeline.evaluation.calibration import ScoredPair, measure
from pipeline.evaluation.ratings import ScoredRating


def _pair(chosen: float, rejected: float, lengths: tuple[int, int] = (1, 1), **options: Any) -> ScoredPair:
    return ScoredPair("task", ("image",), chosen, rejected, lengths=lengths, **options)


def test_a_model_that_scores_by_length_is_right_where_the_longer_one_was_chosen_and_wrong_elsewhere() -> None:
    pairs = [_pair(5.0, 2.0, (5, 2)), _pair(1.0, 4.0, (1, 4)), _pair(3.0, 3.0, (3, 3), is_tie=True)]
    found = length_bias(pairs, [])
    assert found["correlation"] == pytest.approx(1.0) and found["within_pairs"] == pytest.approx(1.0)
    assert (found["num_completions"], found["chosen_longer"]["accuracy"], found["chosen_shorter"]["accuracy"]) == (
        6,
        1.0,
        0.0,
    )
    turned = length_bias([replace(each, chosen=-each.chosen, rejected=-each.rejected) for each in pairs], [])
    assert turned["correlation"] == pytest.approx(-1.0)
    assert (turned["chosen_longer"]["accuracy"], turned["chosen_shorter"]["accuracy"]) == (0.0, 1.0)


def test_the_correlations_by_hand() -> None:
    # Prompts of long answers score high, but of two answers the shorter one does.
    pairs = [_pair(1.0, 0.0, (1, 3)), _pair(5.0, 4.0, (5, 7))]
    found = length_bias(pairs, [])
    # Scores -1.5 -2.5 2.5 1.5 and lengths -3 -1 1 3 around their means.
    assert found["correlation"] == pytest.approx((4.5 + 2.5 + 2.5 + 4.5) / (17 * 20) ** 0.5)
    assert found["within_pairs"] == pytest.approx(-1.0)
    rating = ScoredRating("fluent", "task", (), score=9.0, value=1.0, overall=2.5, length=4)
    with_mean = length_bias(pairs, [rating])
    # At both means it adds nothing but a point.
    assert with_mean["num_completions"] == 5
    assert with_mean["correlation"] == pytest.approx(found["correlation"])


def test_where_all_are_alike_or_there_are_none_nothing_is_said() -> None:
    for pairs in ([], [_pair(1.0, 0.0)], [ScoredPair("task", (), 1.0, 0.0)]):
        found = json.loads(json.dumps(length_bias(pairs, []), allow_nan=False))
        assert (found["correlation"], found["chosen_longer"]["accuracy"]) == (None, None)
    assert measure([]) == {
        "num_pairs": 0,
        "num_decided": 0,
        "accuracy": None,
        "accuracy_interval": None,
        "brier": None,
        "calibration_error": None,
        "bins": [],
    }


def test_a_model_that_does_not_look_is_as_right_without_media() -> None:
    seeing = [_pair(2.0, 1.0, blind=(1.0, 1.5)), _pair(2.0, 1.0, blind=(2.0, 1.0)), _pair(0.0, 1.0, blind=(0.0, 1.0))]
    tie = _pair(1.0, 1.0, is_tie=True, blind=(3.0, 1.0))
    sound = replace(seeing[1], modalities=("image", "audio"))
    found = json.loads(json.dumps(blindness([*seeing, tie, sound, ScoredPair("t", (), 1.0, 0.0)]), allow_nan=False))
    image = found["image"]
    assert (image["num_pairs"], image["num_decided"]) == (5, 4)
    assert (image["accuracy"], image["blind_accuracy"], set(image["gap"])) == (0.75, 0.5, {"value", "low", "high"})
    assert image["change"] == pytest.approx((1.5 + 2.0) / 5)
    assert image["gap"]["low"] < image["gap"]["value"] < image["gap"]["high"]
    assert (found["audio"]["accuracy"], found["audio"]["blind_accuracy"], found["audio"]["change"]) == (1.0, 1.0, 0.0)
    assert set(found) == {"audio", "image"} and blindness([_pair(1.0, 0.0)]) == {}
