"""SFT: learn the answers of the rows that have demonstrations.

    train rows, as a stream -> door (each once) -> Ray Train x DeepSpeed: token-mean cross-entropy -> checkpoints/sft

Vision and audio towers train here, on the media themselves; later stages share them frozen unless told otherwise.
Left out on purpose: checkpoints in between. The stage is short beside the loop; when a rank of it dies it begins again
from the base checkpoint, by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from actors.loop.crew import Crew, crew_of
from actors.loop.door import Batches, Door, check_some, given
from actors.loop.metrics import ray_sinks
from actors.roles.encoder import needs_of
from actors.training import supervised
from jobs.command import main
from pipeline.config import Recipe
from pipeline.data.datasets import Datasets
from pipeline.records import PromptInfo
from pipeline.tracking import Tracker

ENCODED_AHEAD = 2
"""Batches that the encoders are at while the next one is sent."""


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory."""
    check_some(Datasets(recipe.datasets, "train").check("the demonstrations' split"), lacks, recipe.sft.rows)
    with crew_of(recipe, crew, training="sft") as workers:
        workers.insist("sft", partial(train, recipe, workers))
    return recipe.checkpoint("sft")


def train(recipe: Recipe, workers: Crew) -> None:
    """The whole stage, from the base checkpoint on."""
    source, settings = recipe.checkpoint("base"), recipe.sft
    roles = workers.roles({"encoder": source})
    needs = needs_of(recipe, source, settings.parts)
    door = Door(roles, recipe, "train", stage="sft", needs=needs, lacks=lacks)
    batches = Batches(door, recipe, size=settings.batch_size, num_rows=settings.rows)
    # Of each batch that lies ready: metrics tell of the step, and not of how far reading is ahead of it.
    drawn: deque[dict[str, float]] = deque()

    def data() -> Iterator[dict[str, Any]]:
        for step in range(settings.num_steps):
            batches.announce(min(1 + ENCODED_AHEAD, settings.num_steps - step))
            prompts = batches.take()
            drawn.append({**batches.metrics(), **door.metrics()})
            yield {"items": [supervised.Demonstration(prompt, given(prompt.info.demonstration)) for prompt in prompts]}

    # Spread over the stage: its own workers need the cores most while the encoders see each row for the first time.
    steps_a_start = max(1, settings.num_steps // (workers.num_planned + 2))
    tracker = Tracker(recipe.run, "sft", num_steps=settings.num_steps, extra_sinks=ray_sinks(recipe.run, "sft"))
    with tracker, closing(batches):
        training = workers.training("sft")
        for step, metrics in training.run(source=source, target=recipe.checkpoint("sft"), data=data()):
            supervised.show(tracker, step, {**metrics, **(drawn.popleft() if step >= 0 else {})})
            if step % steps_a_start == 0:
                workers.start_next()
    batches.record_rows("sft")


def lacks(info: PromptInfo) -> str | None:
    """What a row lacks to be learned."""
    if info.demonstration is not None:
        return None
    return "neither demonstration nor answer; give SFT a data.path, or first sft.rows, in which every row has one"


if __name__ == "__main__":
    main(run, __doc__)
