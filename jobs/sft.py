"""SFT: learn the answers of the rows that have demonstrations.

    train.parquet -> door (processed once) -> Ray Train x DeepSpeed: token-mean cross-entropy -> checkpoints/sft

Vision and audio towers train here, on the media themselves; later stages share them frozen.
Left out on purpose: resuming. The stage is short beside the loop, and starts again from the base checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import actors.supervised as supervised
from actors.door import Door
from actors.metrics import ray_sinks
from actors.roles import start_roles
from jobs.command import main
from pipeline.config import Recipe
from pipeline.tracking import Tracker


def run(recipe: Recipe) -> Path:
    """Trains and returns the checkpoint's directory."""
    source, target = recipe.checkpoint("base"), recipe.checkpoint("sft")
    with start_roles(recipe, {"encoder": source}) as roles:
        door = Door(roles, recipe, "train", stage="sft")

        def data() -> dict[str, Any]:
            ids = list(door.infos)[: recipe.sft.rows]
            prompts = door.admit(ids, towers=not recipe.sft.train_towers)
            return {"items": [supervised.Demonstration(prompt, door.infos[prompt.id].answer) for prompt in prompts]}

        with Tracker(
            recipe.run, "sft", num_steps=recipe.sft.num_steps, extra_sinks=ray_sinks(recipe.run, "sft")
        ) as tracker:
            for step, metrics in supervised.fit(
                supervised.train_sft, data=data, source=source, target=target, settings=recipe.sft, recipe=recipe
            ):
                supervised.show(tracker, step, metrics)
    return target


if __name__ == "__main__":
    main(run, __doc__)
