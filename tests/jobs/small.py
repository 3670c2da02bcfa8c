"""A small recipe in a run directory whose stages are done, so that a test starts where it wants to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Recipe, load_recipe
from pipeline.tracking import read_metrics

MakeRecipe = Callable[..., Recipe]

SMALL = (
    "cluster.device=cpu",
    "run.sinks=[jsonl]",
    "data.num_readers=1",
    "rlhf.prompts_per_step=6",
    "rlhf.group_size=2",
    "rlhf.num_steps=3",
    "rlhf.checkpoints.save_every=2",
    "rlhf.sampling.max_new_tokens=6",
    "rlhf.rewards={learned: 1.0, exact_match: 1.0}",
)


def small_recipe(directory: Path, checkpoint: Path, data: Path, *overrides: str) -> Recipe:
    """The recipe; `base`, `sft` and `reward_model` are all the untrained `checkpoint`."""
    stages_done(directory, checkpoint)
    return load_recipe(
        None, [*SMALL, f"run.directory={directory}", f"data.path={data}", f"model.path={checkpoint}", *overrides]
    )


def stages_done(directory: Path, checkpoint: Path) -> None:
    """Makes `checkpoint` what SFT and the training of the reward model left."""
    for stage in ("sft", "reward_model"):
        target = directory / "checkpoints" / stage
        if not target.exists():
            shutil.copytree(checkpoint, target)


OF_THE_CLOCK = ("time", "wait", "tokens_per_s", "feature_cache", "busy", "phase", "queue", "recovery", "feedback")


def curve(recipe: Recipe, stage: str = "rlhf", *, whole: bool = False) -> list[dict[str, Any]]:
    """What a stage logged, a step a row; unless it is `whole` without what depends on the clock or on how long its
    processes have lived."""
    return [
        {name: value for name, value in row.items() if whole or not name.startswith(OF_THE_CLOCK)}
        for row in read_metrics(recipe.run.directory / "metrics")[stage]
    ]
