"""Pretrain: a joint embedding of text, pictures, sounds and videos, from the rows of the prompt table.

    rows, shuffled -> media decoded, each row with a pair at least -> Ray Train x DeepSpeed:
    a warm-up on media alone (by config), then a contrastive loss over the whole batch -> checkpoints/pretrain

The pairs are a row's media, and its answer or its question as the text. Where there is no table yet, the built-in data
are made. `python -m jobs.retrieve evaluate` measures what was learned. Left out on purpose: checkpoints in between;
when a rank dies the stage begins again, by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from actors.loop.crew import Crew, crew_of
from actors.loop.metrics import ray_sinks
from jobs.command import main, record_stage
from pipeline.config import ConfigError, Dtype, Recipe
from pipeline.data import demo
from pipeline.data.datasets import Datasets
from pipeline.models.dual_encoder.rows import SampleReader
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Trains and returns the checkpoint's directory.

    Raises:
        ConfigError: the recipe asks for bfloat16, or no row has a pair.
    """
    if recipe.model.dtype is not Dtype.FLOAT32:
        raise ConfigError(f"model.dtype={recipe.model.dtype}: joint embeddings are learned in float32; use that")
    make_table(recipe)
    Datasets(recipe.datasets, recipe.pretrain.split).check("pretrain.split")
    started = time.monotonic()
    with crew_of(recipe, crew, training="pretrain") as workers:
        workers.insist("pretrain", partial(train, recipe, workers))
    record_stage(recipe, "pretrain", time.monotonic() - started)
    return recipe.checkpoint("pretrain")


def make_table(recipe: Recipe) -> None:
    """Makes the built-in data where the run names no table and has none."""
    is_named = recipe.data.path is not None or recipe.data.mixture or recipe.prepare.sources
    if not is_named and not any(recipe.data_path.glob("*.parquet")):
        demo.build(recipe.data_path, prepare=recipe.prepare, seed=recipe.run.seed)


def train(recipe: Recipe, workers: Crew) -> None:
    """The whole stage."""
    settings, target = recipe.pretrain, recipe.checkpoint("pretrain")
    reader = SampleReader(Datasets(recipe.datasets, settings.split), recipe.data, text=settings.text)
    rows = reader.shuffled(settings.pairs, seed=recipe.run.seed, batch_size=settings.batch_size)
    num_steps = settings.num_warm_steps + settings.num_steps

    def data() -> Iterator[dict[str, Any]]:
        for _ in range(num_steps):
            yield {"items": list(islice(rows, settings.batch_size))}

    with Tracker(recipe.run, "pretrain", num_steps=num_steps, extra_sinks=ray_sinks(recipe.run, "pretrain")) as tracker:
        training = workers.training("pretrain")
        # Workers build their encoder, or load it from where the recipe says: there is no other source.
        for step, metrics in training.run(source=target, target=target, data=data()):
            tracker.log(step, {**metrics, "counts/rows_refused": float(len(reader.quarantine))})
    if len(reader.quarantine):
        reader.quarantine.write(recipe.run.directory / "pretrain_quarantine.parquet")


if __name__ == "__main__":
    main(run, __doc__)
