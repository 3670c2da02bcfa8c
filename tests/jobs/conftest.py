"""A local Ray and a run directory whose stages are done, so that a test starts where it wants to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.config import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]

SMALL = (
    "cluster.device=cpu",
    "run.sinks=[jsonl]",
    "rlhf.prompts_per_step=6",
    "rlhf.group_size=2",
    "rlhf.num_steps=3",
    "rlhf.save_every=2",
    "rlhf.sampling.max_new_tokens=6",
    "rlhf.rewards={learned: 1.0, exact_match: 1.0}",
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of one node with more CPUs than the machine has: workers mostly wait for each other."""
    from jobs.command import connect

    ray.shutdown()
    connect(num_cpus=8)
    yield
    ray.shutdown()


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_checkpoint: Path, demo_data: Path) -> MakeRecipe:
    """Makes a small recipe in a new run directory; `base`, `sft` and `reward_model` are the untrained checkpoint."""

    def make(*overrides: str, name: str = "run") -> Recipe:
        directory = tmp_path / name
        for stage in ("sft", "reward_model"):
            target = directory / "checkpoints" / stage
            if not target.exists():
                shutil.copytree(tiny_checkpoint, target)
        return load_recipe(
            None,
            [
                *SMALL,
                f"run.directory={directory}",
                f"data.path={demo_data}",
                f"model.path={tiny_checkpoint}",
                *overrides,
            ],
        )

    return make


def curve(recipe: Recipe, stage: str = "rlhf") -> list[dict[str, Any]]:
    """What a stage logged, a step a row, without what depends on the clock."""
    from pipeline.tracking import read_metrics

    return [
        {name: value for name, value in row.items() if not name.startswith(("time", "tokens_per_s"))}
        for row in read_metrics(recipe.run.directory / "metrics")[stage]
    ]
