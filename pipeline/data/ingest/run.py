"""Preparing all shards, on a cluster or here; what comes back describes the rows, in the order of the sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from pipeline.config import ConfigError, Recipe
from pipeline.data.ingest.formats import check_map
from pipeline.data.ingest.pool import Actors, Pool
from pipeline.data.ingest.processes import Processes
from pipeline.data.ingest.readers import RawRow, read
from pipeline.data.ingest.rows import NUM_TOKENS
from pipeline.data.ingest.shards import Shard
from pipeline.data.ingest.worker import ShardWorker, described

if TYPE_CHECKING:
    from pipeline.models.processing import PromptProcessor

_PEEKED_ROWS = 32


def check_columns(recipe: Recipe, shards: Sequence[Shard]) -> None:
    """Makes sure, by the first rows of each source, that the columns which the recipe names are there.

    Raises:
        ConfigError: one is missing; the message lists those found.
    """
    settings = recipe.prepare
    every: set[str] = set()
    for number, source in enumerate(settings.sources):
        names = {**settings.map, **source.map}
        first = next(shard for shard in shards if shard.source == number)
        rows = islice(read(first, root=source.path), _PEEKED_ROWS)
        columns = set(chain.from_iterable(row.values for row in rows if isinstance(row, RawRow)))
        if names and columns:
            check_map(names, columns, source.path)
        every |= columns
    named = {"prepare.split.column": settings.split.column, "prepare.sort_by": settings.sort_by}
    for field, column in named.items():
        if every and column not in (None, NUM_TOKENS, *every):
            raise ConfigError(f"{field}={column}: no source has that column; found: {', '.join(sorted(every))}")


def workers_of(recipe: Recipe) -> int:
    """How many workers prepare at the same time, at most."""
    num_cpus = ray.cluster_resources().get("CPU", 1) if ray.is_initialized() else len(os.sched_getaffinity(0))
    return recipe.prepare.num_workers or max(1, int(num_cpus))


def workers_for(
    recipe: Recipe,
    shards: Sequence[Shard],
    *,
    directory: Path,
    staging: Path,
    processor: Callable[[], PromptProcessor] | None,
) -> Pool:
    """As many workers as there are CPUs, or shards where those are fewer: few rows start one.

    They are actors where this process has joined a cluster.
    """
    arguments = (recipe, tuple(shards), directory, staging, processor)
    workers = Processes(partial(ShardWorker, *arguments))
    if ray.is_initialized():
        actor: Any = ray.remote(ShardWorker).options(num_cpus=1, scheduling_strategy="SPREAD")
        workers = Actors(partial(actor.remote, *map(ray.put, arguments)))
    return Pool(workers, min(len(shards), workers_of(recipe)))


def rows_of(pool: Pool, shards: Sequence[Shard], staging: Path) -> Iterator[dict[str, Any]]:
    """Prepares the shards in parallel and yields rows of `worker.INDEX_COLUMNS` in the order of the shards."""
    numbers = range(len(shards))
    prepared = pool.map(ShardWorker.prepare.__name__, numbers, lambda number: shards[number].where)
    for number, _ in zip(numbers, prepared, strict=True):
        yield from described(staging, number)
