"""What the engine does with gradients that are not finite, in real DeepSpeed worlds at every ZeRO stage."""

from __future__ import annotations

import math

import pytest

from pipeline.config import Dtype
from tests import worlds
from tests.worlds import skipping

STAGES = (0, 1, 2, 3)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_without_a_finite_gradient_is_skipped_and_leaves_no_trace(num_ranks: int, dtype: Dtype) -> None:
    for found in worlds.run(skipping.outcomes, num_ranks, STAGES, dtype):
        for stage, outcome in found.items():
            assert outcome == {
                "was_skipped": False,
                "is_skipped": True,
                "norm": math.inf,
                "untouched": True,
                "same_rate": True,
                "skipped_after": False,
                "goes_on": True,
            }, (stage, num_ranks)


@pytest.mark.parametrize("stage", [0, 3])
def test_several_such_steps_in_a_row_stop_the_run_and_say_why(stage: int) -> None:
    ((count, message),) = worlds.run(skipping.in_a_row, 1, stage)
    assert count == 5
    assert "the gradients of 5 optimizer steps in a row were not finite" in message
    assert "lower learning_rate" in message
