"""Preference learning on real DeepSpeed worlds: mixed modalities, any number of ranks, a reference without a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.records import EncodedPrompt, Opinion, Preference, Ranking, RaterKind, Rating
from tests import worlds
from tests.worlds import preferring
from tests.worlds.judging import difference

SHARED: dict[str, Any] = {"rater": "anna", "rater_kind": RaterKind.HUMAN}
# Passes of few lessons, so that there are several a rank.
BASE = ("micro_batch_tokens=120", "learning_rate=1e-3")
LORA = "parts={language_model: {mode: lora}, head: {mode: freeze}}"


def _opinions(prompts: list[EncodedPrompt]) -> list[Opinion]:
    """Some of each kind, on prompts with and without media."""
    first, second, third, fourth, *_ = (prompt.id for prompt in prompts)
    three = ((40,), (50, 60, 61), (70, 71))
    return [
        Preference(first, (40, 41), (50,), "", "", **SHARED, margin=0.5),
        # The second of these is a conversation, in which the user says token 62.
        Preference(third, (60,), (61, 62, 63), "", "", **SHARED, weight=0.2, rejected_given=((1, 2),)),
        Ranking(second, three, ("",) * 3, (2, 1, 2), **SHARED),
        Rating(fourth, (40, 42), "", {"helpful": 0.75, "grounded": 1.0}, **SHARED),
        Preference(fourth, (43, 44), (45, 46, 47), "", "", **SHARED, weight=2.0),
        Rating(first, (43,), "", {"overall": 0.0}, **SHARED, weight=0.5),
    ]


@pytest.mark.parametrize(
    ("stage", "loss"), [(0, "dpo"), (3, "dpo"), (0, "kto"), (3, "kto"), (2, "orpo"), (1, "ipo"), (0, "simpo")]
)
def test_two_ranks_learn_what_one_does(
    tiny_checkpoint: Path, prompts: list[EncodedPrompt], stage: int, loss: str
) -> None:
    overrides = [*BASE, f"zero_stage={stage}", f"loss={loss}", "sft_weight=0.5"]
    arguments = (str(tiny_checkpoint), _opinions(prompts), prompts, overrides, 3)
    ((alone, reference, measured, moved),) = worlds.run(preferring.trained, 1, *arguments)
    (steps, references, found, together), (others, same, again, _) = worlds.run(preferring.trained, 2, *arguments)
    assert steps == others and references == same and found == again
    assert references == pytest.approx(reference, rel=1e-5)
    # Which of two rewards of 0 is larger is for rounding to say.
    assert 0 <= alone[0].pop("rewards/accuracy") <= 1 and 0 <= steps[0].pop("rewards/accuracy") <= 1
    for one, two in zip([*alone, measured], [*steps, found], strict=True):
        assert two == pytest.approx(one, rel=2e-4, abs=2e-5)
    assert difference(moved, together) < 1e-2
    losses = [step["loss"] for step in alone]
    assert losses[0] > losses[1] > losses[2] > measured["loss"]
    assert measured["rewards/margin"] > alone[0]["rewards/margin"]
    assert (len(reference) > 0) == (loss not in ("orpo", "simpo"))
    if reference:
        # Before it has learned the policy is its own reference.
        assert alone[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_a_policy_without_its_adapters_is_the_reference_whatever_these_have_learned(
    tiny_checkpoint: Path, prompts: list[EncodedPrompt], num_ranks: int, stage: int
) -> None:
    overrides = [*BASE, f"zero_stage={stage}", LORA]
    arguments = (str(tiny_checkpoint), _opinions(prompts), prompts, overrides, 3)
    steps, before, measured, moved = worlds.run(preferring.trained, num_ranks, *arguments)[0]
    late = worlds.run(preferring.trained, num_ranks, *arguments, True)[0][1]
    assert late == pytest.approx(before, rel=1e-5)
    assert measured["loss"] < steps[0]["loss"]
    learned = {name for name, change in moved.items() if np.abs(change).max() > 0}
    assert learned and all(".lora_" in name for name in learned)
