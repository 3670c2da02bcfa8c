"""When a pool grows and when it shrinks; real pools and a real autoscaler are in tests/jobs/test_autoscaling.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.loop.scaling import Scaler, resized
from pipeline.config import load_recipe

ELASTIC = ("rlhf.rollout.min_workers=1", "rlhf.rollout.max_workers=3", "rlhf.rollout.idle_steps=2")


class Pool:
    """One that gets its workers at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.size

    def resize(self, size: int) -> None:
        self.size = size
        self.asked.append(size)


def scaler(*overrides: str) -> tuple[Scaler, dict[str, Pool]]:
    recipe = load_recipe(None, overrides)
    pools = {role: Pool(getattr(recipe.rlhf, role).num_workers) for role in ("rollout", "encoder")}
    return Scaler(cast(Any, SimpleNamespace(**pools)), recipe), pools


GENERATION = {"draw": 0.5, "generate": 2.0, "score": 1.0, "update": 1.5, "sync": 0.1}
UPDATE = {**GENERATION, "update": 3.0}
READING = {**GENERATION, "draw": 3.0}


def test_rollouts_grow_while_generation_binds_and_shrink_after_enough_steps_in_which_it_does_not() -> None:
    scaler_, pools = scaler(*ELASTIC)
    for phases in (
        GENERATION,
        GENERATION,
        GENERATION,
        UPDATE,
        UPDATE,
        UPDATE,
        GENERATION,
        UPDATE,
        READING,
        UPDATE,
        UPDATE,
    ):
        scaler_.stepped(phases)
    assert pools["rollout"].asked == [2, 3, 3, 3, 2, 2, 3, 3, 2, 2, 1]
    assert pools["encoder"].asked == []  # It has no other sizes.


def test_encoders_grow_while_prompts_are_waited_for() -> None:
    scaler_, pools = scaler("rlhf.encoder.max_workers=2")
    for phases in (GENERATION, READING, READING):
        scaler_.stepped(phases)
    assert pools["encoder"].asked == [1, 2, 2]
    assert pools["rollout"].asked == []


@pytest.mark.parametrize(("size", "binds", "expected"), [(3, True, 3), (1, False, 1), (2, False, 1), (2, True, 3)])
def test_a_pool_stays_between_its_bounds(size: int, binds: bool, expected: int) -> None:
    settings = load_recipe(None, [*ELASTIC, "rlhf.rollout.idle_steps=1"]).rlhf.rollout
    assert resized(size, settings, binds=binds, num_idle=0) == (expected, 0)
