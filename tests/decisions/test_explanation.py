"""Games whose values are known, and models whose decisions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config.fusion import FusionSettings, InputSizes, Modality
from pipeline.decisions.explanation import ablation_values, explain, model_probabilities, shapley_values
from pipeline.models.fusion.model import FusionModel
from pipeline.models.fusion.samples import Preprocessor, Sample

GLOVES = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
"""Players 0 and 1 have a left glove each, player 2 a right one; a pair is worth 1. By the six orders of arrival: the
right glove completes the pair in four of them, each left one in one."""


def test_the_glove_game_has_the_values_of_the_textbook() -> None:
    assert shapley_values(GLOVES)[0].tolist() == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    assert ablation_values(GLOVES)[0].tolist() == [0.0, 0.0, 1.0]


def test_two_players_by_hand() -> None:
    # v() 0.25, v(0) 0.5, v(1) 0.45, v(0, 1) 0.9: player 0 has half of 0.25 and half of 0.45.
    values = np.array([[0.25, 0.5, 0.45, 0.9]])
    assert shapley_values(values)[0].tolist() == pytest.approx([0.35, 0.3])
    assert ablation_values(values)[0].tolist() == pytest.approx([0.45, 0.4])


def test_values_add_up_and_are_linear_in_the_game() -> None:
    dice = np.random.default_rng(0)
    one, other = dice.random((2, 7, 32))
    assert shapley_values(one).sum(axis=1) == pytest.approx(one[:, -1] - one[:, 0])
    assert shapley_values(2 * one + other) == pytest.approx(2 * shapley_values(one) + shapley_values(other))


def test_players_that_do_the_same_have_the_same_and_one_that_does_nothing_has_nothing() -> None:
    # Worth 1 as soon as player 0 or player 1 is there; player 2 adds nothing: redundant modalities share the credit.
    values = np.array([[float(coalition & 3 > 0) for coalition in range(8)]])
    assert shapley_values(values)[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert ablation_values(values)[0].tolist() == [0.0, 0.0, 0.0]


def additive(states: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Action 0 has 1/2, plus 0.3 with the first modality and 0.1 with the second."""
    first = 0.5 + states["present"] @ np.array([0.3, 0.1])
    return np.stack([first, 1 - first], axis=1)


def test_an_absent_modality_contributes_nothing_and_nothing_known_is_one_of_k() -> None:
    states = {"present": np.array([[1, 1], [1, 0], [0, 1]], np.float32)}
    found = explain(additive, states, ("text", "audio"))
    assert found.probabilities.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert found.shapley.ravel().tolist() == pytest.approx([0.3, 0.1, 0.3, 0.0, 0.0, 0.1])
    # Without its only modality a row knows nothing.
    assert found.ablation.ravel().tolist() == pytest.approx([0.3, 0.1, 0.3, 0.0, 0.0, 0.1])
    assert found.shapley.sum(axis=1) == pytest.approx(found.probabilities - 0.5)
    assert found.means()["audio"] == {
        "ablation": pytest.approx(0.1),
        "shapley": pytest.approx(0.1),
        "share": pytest.approx(2 / 3),
    }


def test_a_fusion_model_is_asked_for_coalitions_of_what_a_row_has() -> None:
    torch.manual_seed(0)
    settings = FusionSettings(
        modalities=(Modality.TEXT, Modality.NUMBERS), hidden_size=16, sizes=InputSizes(num_numbers=2, text_length=8)
    )
    model = FusionModel(settings, 3)
    samples = [Sample("both", text="red", numbers=(1.0, 2.0)), Sample("one", text="blue")]
    states = {name: each.numpy() for name, each in Preprocessor(settings).batch(samples).items()}
    found = explain(model_probabilities(model), states, settings.modalities)
    alone = model_probabilities(model)({**states, "present": np.array([[True, False], [True, False]])})
    action = found.actions[0]
    assert found.ablation[0, 1] == pytest.approx(found.probabilities[0] - alone[0, action], abs=1e-6)
    assert found.shapley.sum(axis=1) == pytest.approx(found.probabilities - 1 / 3, abs=1e-6)
    assert found.shapley[1, 1] == 0 and found.ablation[1, 0] == pytest.approx(found.probabilities[1] - 1 / 3)


def test_more_modalities_than_can_be_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 5"):
        explain(additive, {"present": np.ones((1, 6), bool)}, tuple("abcdef"))
