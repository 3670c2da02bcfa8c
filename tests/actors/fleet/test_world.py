"""A world's calls: what is learned of them, and what Ray's timeline shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.engine.place import Place
from actors.fleet.worker import Worker
from actors.fleet.world import World
from pipeline.config import Deadlines, Device, Recipe, Workers, load_recipe

pytestmark = pytest.mark.usefixtures("local_ray")


class Scale(Worker):
    """Says what something weighs."""

    imports_models = False

    def warm_up(self, device: Device) -> None:
        pass

    def setup(self, place: Place, path: Path) -> None:
        pass

    def weights(self, number: int) -> int:
        time.sleep(0.2)
        return number


@pytest.fixture(scope="module")
def world(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World[Scale]]:
    recipe: Recipe = load_recipe(None, [])
    deadlines = Deadlines(first_s=60.0, least_s=3.0, factor=1.0)
    recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"deadlines": deadlines})})
    seating: Any = SimpleNamespace(options={"scale": [{"num_cpus": 0}]}, device=Device.CPU)
    found = World(Scale, "scale", seating, recipe, Workers())
    found.setup(tmp_path_factory.mktemp("scale")).result()
    yield found
    found.shutdown()


def test_what_is_offered_has_a_deadline_that_is_learned(world: World[Scale]) -> None:
    weights, answer = world.offer(Scale.weights, 7)
    assert answer.deadline_s == 60.0
    assert answer.result() == [None] and ray.get(weights) == 7
    assert world.offer(Scale.weights, 8)[1].deadline_s == 3.0


def test_waiting_seconds_are_those_between_calls(world: World[Scale]) -> None:
    started = time.monotonic()
    world.on_all(Scale.weights, 1).result()
    world.waited_s()
    time.sleep(0.3)
    world.on_all(Scale.weights, 1).result()
    assert 0.3 <= world.waited_s() <= time.monotonic() - started - 0.4  # but for the two calls themselves
    assert world.waited_s() == 0.0


def test_rays_timeline_shows_worker_and_method(world: World[Scale]) -> None:
    world.on_all(Scale.weights, 1).result()
    until = time.monotonic() + 30  # events are collected now and then
    timeline: Any = ray.timeline
    while "task::Scale.weights" not in {event["cat"] for event in timeline()}:
        assert time.monotonic() < until
        time.sleep(0.5)
