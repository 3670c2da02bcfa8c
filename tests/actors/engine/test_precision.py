"""bfloat16 keeps in float32 what must be: a real DeepSpeed world of two ranks at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import worlds
from tests.worlds import precise

STAGES = (0, 1, 2, 3)


PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (0, 3), (3, 2))
"""Stages that write a checkpoint, and that go on from it."""


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What rank 0 saw."""
    root = tmp_path_factory.mktemp("precision")
    return worlds.run(precise.all_of_it, 2, str(tiny_checkpoint), str(root), STAGES, PAIRS, timeout_s=600)[0]


def test_many_scores_of_a_reward_model_take_nearly_as_many_values_as_in_float32(found: dict[str, Any]) -> None:
    for stage, scored in found["reward"].items():
        assert scored.scores.dtype == np.float32
        assert scored.num_distinct > 0.99 * precise.NUM_SCORES, stage
        # What a head that was cast with everything else gave.
        assert scored.num_distinct_bfloat16 < 0.5 * precise.NUM_SCORES


def test_an_exported_reward_model_keeps_its_float32_head_and_scores_as_before(found: dict[str, Any]) -> None:
    for stage, scored in found["reward"].items():
        weight = scored.head["head.linear.weight"]
        assert weight.dtype == np.float32
        # Finer than bfloat16, whose lower 16 bits are zero.
        assert (weight.view(np.uint32) & 0xFFFF).any(), stage
        assert np.array_equal(scored.reloaded, scored.scores), stage
        assert all(np.array_equal(scored.sent[name], array) for name, array in scored.head.items())


def test_gradients_of_many_passes_are_summed_in_float32(found: dict[str, Any]) -> None:
    for stage, (error, in_bfloat16) in found["sums"].items():
        assert error < 1e-6 < 1e-2 < in_bfloat16, (stage, error)


def test_learning_starts_from_the_float32_head_and_from_step_zero(found: dict[str, Any]) -> None:
    for stage, parameters in found["first"].items():
        assert parameters == dict.fromkeys(parameters, (0.0, True)) and len(parameters) == 3, stage


def test_a_head_goes_on_from_a_checkpoint_to_the_bit(found: dict[str, Any]) -> None:
    for (source, stage), (is_half_equal, is_whole_equal, loaded, scores) in found["resumed"].items():
        assert is_half_equal, (source, stage)
        assert loaded == scores, (source, stage)
        assert is_whole_equal or source != stage, source
