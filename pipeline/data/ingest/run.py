"""Preparing all shards on a cluster with Ray Data; what comes back describes the rows, in the order of the sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data

from pipeline.config import ConfigError, Recipe
from pipeline.data.in_order import in_order
from pipeline.data.ingest.formats import check_map
from pipeline.data.ingest.readers import RawRow, read
from pipeline.data.ingest.rows import NUM_TOKENS
from pipeline.data.ingest.shards import Shard
from pipeline.data.ingest.worker import ShardWorker

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
    return recipe.prepare.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))


def rows_of(
    recipe: Recipe,
    shards: Sequence[Shard],
    *,
    directory: Path,
    staging: Path,
    processor: Callable[[], PromptProcessor] | None,
) -> Iterator[dict[str, Any]]:
    """Prepares the shards in parallel and yields rows of `worker.INDEX_SCHEMA` in the order of the shards."""
    num_workers = min(len(shards), workers_of(recipe))
    with in_order():
        index: Any = ray.data.from_items(
            [{"number": number} for number in range(len(shards))], override_num_blocks=len(shards)
        ).map_batches(
            ShardWorker,
            batch_size=1,
            fn_constructor_args=(recipe, tuple(shards), directory, staging, processor),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers, initial_size=num_workers),
            num_cpus=1,
        )
    batches: Iterator[Any] = index.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        yield from batch.to_pylist()
