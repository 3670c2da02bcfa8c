"""Recipes that start where a test wants to, and workers that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipeline.config import Recipe
from tests.jobs.ready import ReadyWorkers, start_all
from tests.jobs.small import MakeRecipe, small_recipe


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_checkpoint: Path, demo_data: Path) -> MakeRecipe:
    """Makes a small recipe in this test's own run directory."""

    def make(*overrides: str) -> Recipe:
        return small_recipe(tmp_path, tiny_checkpoint, demo_data, *overrides)

    return make


@pytest.fixture(scope="module")
def empty_ray() -> None:
    """A Ray like `local_ray`, of which no workers that tests share have a part."""
    from jobs.command import connect

    ray.shutdown()
    connect(address="local", num_cpus=8, include_dashboard=False)


@pytest.fixture(scope="session")
def started() -> list[ReadyWorkers]:
    """All that were started so far."""
    return []


@pytest.fixture(scope="module")
def workers(
    local_ray: None,
    started: list[ReadyWorkers],
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    demo_data: Path,
) -> ReadyWorkers:
    """Workers for one run after the other. They stay for the modules that follow, as long as their Ray does."""
    node = ray.get_runtime_context().get_node_id()
    if not started or started[-1].node != node:
        # Ranks that wait for each other end with an error, long before the test itself runs out of time.
        patience = "cluster.collective_timeout_s=120"
        recipe = small_recipe(tmp_path_factory.mktemp("workers"), tiny_checkpoint, demo_data, patience)
        started.append(start_all(node, recipe))
    return started[-1]
