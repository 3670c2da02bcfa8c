"""A local Ray for the stages, and recipes that start where a test wants to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config import Recipe
from tests.jobs.small import MakeRecipe, small_recipe


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of one node with more CPUs than the machine has: workers mostly wait for each other."""
    from jobs.command import connect

    ray.shutdown()
    connect(address="local", num_cpus=8)
    yield
    ray.shutdown()


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_checkpoint: Path, demo_data: Path) -> MakeRecipe:
    """Makes a small recipe in this test's own run directory."""

    def make(*overrides: str) -> Recipe:
        return small_recipe(tmp_path, tiny_checkpoint, demo_data, *overrides)

    return make
