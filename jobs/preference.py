"""Preference: learn from preferences without a loop, by DPO and its kin.

    preferences.parquet (brought with the data, from people, or made here as in the reward model's stage)
      -> their prompts through the door -> encoder -> Ray Train x DeepSpeed:
           log probabilities under the reference, once -> reference_logprobs/, which later runs read
           lessons, a batch a step -> DPO, IPO, SimPO, ORPO, KTO, ... -> checkpoints/preference
           held-out lessons, at the end -> held_out/* among the metrics

The reference is the policy before its first step (with adapters alone: without them), so nothing is loaded twice.
Left out on purpose: checkpoints in between. When a rank dies the stage begins again by itself, but for the reference's
part, which is on disk by then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from actors.loop.crew import Crew, crew_of
from actors.loop.door import Door, nothing
from actors.loop.lessons import lessons
from actors.loop.metrics import ray_sinks
from actors.roles.encoder import needs_of
from actors.training import supervised
from actors.training.references import ReferenceLogprobs
from jobs.command import main
from jobs.reward_model import given_table, lacks, there_or_made
from pipeline.config import Recipe
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    table = given_table(recipe, recipe.checkpoint(recipe.preference.start), recipe.preference, stage="preference")
    with crew_of(recipe, crew, training="preference") as workers:
        workers.insist("preference", partial(train, recipe, workers, table))
    return recipe.checkpoint("preference")


def train(recipe: Recipe, workers: Crew, table: Path) -> None:
    """The whole stage, but for preferences that are there."""
    settings = recipe.preference
    source, is_there = recipe.checkpoint(settings.start), table.is_file()
    roles = workers.roles({"encoder": source} if is_there else {"encoder": source, "rollout": source})
    needs = needs_of(recipe, source, settings.parts, recipe.rlhf.policy.parts)
    asked = nothing if is_there else lacks
    door = Door(roles, recipe, recipe.preferences.split, stage="preference", needs=needs, lacks=asked)
    references = None
    if settings.loss.needs_reference:
        references = ReferenceLogprobs.of(recipe.run.directory, source, recipe.model.dtype)
    # Of each batch that lies ready: metrics tell of the step, and not of how far reading is ahead of it.
    drawn: deque[dict[str, float]] = deque()

    def data() -> Iterator[dict[str, Any]]:
        yield from lessons(recipe, door, there_or_made(recipe, roles, door, table), references, drawn)

    sinks = ray_sinks(recipe.run, "preference")
    with Tracker(recipe.run, "preference", num_steps=settings.num_steps, extra_sinks=sinks) as tracker:
        training = workers.training("preference")
        for step, metrics in training.run(source=source, target=recipe.checkpoint("preference"), data=data()):
            if "references" in metrics:
                if references is not None:
                    references.add(metrics["references"])
                continue
            refused = drawn.popleft() if drawn and step >= 0 else {}
            supervised.show(tracker, step, {**metrics, **refused})


if __name__ == "__main__":
    main(run, __doc__)
