"""Recipes that start where a test wants to."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Recipe
from tests.jobs.small import MakeRecipe, small_recipe


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_checkpoint: Path, demo_data: Path) -> MakeRecipe:
    """Makes a small recipe in this test's own run directory."""

    def make(*overrides: str) -> Recipe:
        return small_recipe(tmp_path, tiny_checkpoint, demo_data, *overrides)

    return make
