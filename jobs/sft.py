"""SFT: learn the answers of the rows that have demonstrations.

    train.parquet -> door (processed once) -> Ray Train x DeepSpeed: token-mean cross-entropy -> checkpoints/sft

Vision and audio towers train here, on the media themselves; later stages share them frozen unless told otherwise.
Left out on purpose: resuming. The stage is short beside the loop, and starts again from the base checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors import supervised
from actors.door import Door
from actors.encoder import needs_of
from actors.metrics import ray_sinks
from actors.roles import Crew, crew_of
from jobs.command import main
from pipeline.config import Recipe
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    source, target = recipe.checkpoint("base"), recipe.checkpoint("sft")
    with crew_of(recipe, crew) as workers:
        roles = workers.roles({"encoder": source})
        door = Door(roles, recipe, "train", stage="sft", needs=needs_of(recipe, source, recipe.sft.parts))

        def data() -> dict[str, Any]:
            ids = list(door.infos)[: recipe.sft.rows]
            prompts = door.admit(ids)
            answers = [door.infos[prompt.id].demonstration for prompt in prompts]
            return {"items": list(map(supervised.Demonstration, prompts, answers))}

        with Tracker(
            recipe.run, "sft", num_steps=recipe.sft.num_steps, extra_sinks=ray_sinks(recipe.run, "sft")
        ) as tracker:
            for step, metrics in workers.training("sft").run(source=source, target=target, data=data):
                supervised.show(tracker, step, metrics)
                workers.start_next()
    return target


if __name__ == "__main__":
    main(run, __doc__)
