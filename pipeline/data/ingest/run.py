"""Preparing all shards on a cluster with Ray Data; what comes back is the index, in the order of the sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data

from pipeline.config import Recipe
from pipeline.data.ingest.formats import check_map
from pipeline.data.ingest.readers import RawRow, read
from pipeline.data.ingest.shards import Shard
from pipeline.data.ingest.worker import ShardWorker

if TYPE_CHECKING:
    from pipeline.models.processing import PromptProcessor

_PEEKED_ROWS = 32


def check_maps(recipe: Recipe, shards: Sequence[Shard]) -> None:
    """Makes sure that the columns of `prepare.map` are there, by the first rows of each source.

    Raises:
        ConfigError: a column is missing; the message lists those found.
    """
    for number, source in enumerate(recipe.prepare.sources):
        names = {**recipe.prepare.map, **source.map}
        first = next(shard for shard in shards if shard.source == number)
        rows = islice(read(first, root=source.path), _PEEKED_ROWS)
        columns = set(chain.from_iterable(row.values for row in rows if isinstance(row, RawRow)))
        if names and columns:
            check_map(names, columns, source.path)


def index_of(
    recipe: Recipe,
    shards: Sequence[Shard],
    *,
    directory: Path,
    staging: Path,
    processor: Callable[[], PromptProcessor] | None,
) -> Iterator[dict[str, Any]]:
    """Prepares the shards in parallel and yields rows of `worker.INDEX_SCHEMA` in the order of the shards."""
    keep_order()
    num_workers = max(1, min(len(shards), int(ray.cluster_resources().get("CPU", 1))))
    index: Any = ray.data.from_items(
        [{"number": number} for number in range(len(shards))], override_num_blocks=len(shards)
    ).map_batches(
        ShardWorker,
        batch_size=1,
        fn_constructor_args=(recipe, tuple(shards), directory, staging, processor),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
        num_cpus=1,
    )
    batches: Iterator[Any] = index.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        yield from batch.to_pylist()


def keep_order() -> None:
    """Has Ray Data give results in the order of their inputs, and say nothing."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # What fails is raised.
