"""What a worker does with a shard: read, prepare, put the good rows aside; tell the driver of each, without media."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from pipeline.config import Recipe
from pipeline.data.ingest.readers import read
from pipeline.data.ingest.rows import RowPreparer
from pipeline.data.ingest.shards import Shard
from pipeline.data.ingest.staging import StagingFile
from pipeline.records import Quarantined

if TYPE_CHECKING:
    from pipeline.models.processing import PromptProcessor

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("place", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("split", pa.string()),
        ("dataset", pa.string()),
        ("task", pa.string()),
        ("modalities", pa.list_(pa.string())),
        ("num_tokens", pa.int64()),
        ("has_answer", pa.bool_()),
        ("num_answer_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("is_pair", pa.bool_()),
        ("has_margin", pa.bool_()),
        ("label", pa.bool_()),
        ("sort_value", pa.float64()),
        ("prompt_key", pa.string()),
        ("row_key", pa.string()),
        ("media_keys", pa.list_(pa.string())),
        ("signature", pa.binary()),
        ("picture_group", pa.string()),
        ("picture_hashes", pa.list_(pa.uint64())),
        ("files", pa.list_(pa.string())),
        ("unread", pa.list_(pa.string())),
    ]
)
"""What the driver learns of a row. Refused rows have a reason; the others lie at their place of their shard's file."""

_INDEX_ROWS = 256
_MOST_TRIES = 4
"""As many workers may die of one shard, or while they are built."""


class ShardWorker:
    """Prepares shards, one call each; lives in a Ray Data actor."""

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Shard],
        directory: Path,
        staging: Path,
        processor: Callable[[], PromptProcessor] | None,
    ) -> None:
        self._recipe = recipe
        self._shards = shards
        self._staging = staging
        actor = ray.get_runtime_context().get_actor_id()  # The same when Ray starts it anew.
        with _few_tries(staging / "tries" / f"worker-{actor}", "while they were built"):
            self._prepare = RowPreparer(recipe, directory=directory, processor=processor and processor())

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """Prepares the shards of a batch and yields rows of `INDEX_SCHEMA`."""
        for number in batch["number"]:
            yield from self._shard(int(number), self._shards[number])

    def _shard(self, number: int, shard: Shard) -> Iterator[pa.Table]:
        source = self._recipe.prepare.sources[shard.source]
        index: list[dict[str, Any]] = []
        where = f"at {shard.path}" + ("" if shard.end is None else f", {shard.start} to {shard.end}")
        tries = _few_tries(self._staging / "tries" / f"{number:06d}", where)
        with tries, StagingFile(self._staging, number) as staged:
            for raw in read(shard, root=source.path.rstrip("/")):
                row = self._prepare(raw, shard.source)
                if isinstance(row, Quarantined):
                    index.append({"shard": number, "id": row.row_id, "reason": row.reason, "detail": row.detail})
                else:
                    index.append({"shard": number, "place": staged.add(row.row), **row.index})
                if len(index) == _INDEX_ROWS:
                    yield pa.Table.from_pylist(index, schema=INDEX_SCHEMA)
                    index = []
        yield pa.Table.from_pylist(index, schema=INDEX_SCHEMA)


@contextmanager
def _few_tries(file: Path, what: str) -> Generator[None]:
    """Bounds how many workers may die of one thing: Ray Data by itself would give it to new ones for ever.

    file: counts, wherever the workers are; gone when the thing is done.

    Raises:
        RuntimeError: they died; nothing is left out in silence.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as tries:
        tries.write(b".")
    if file.stat().st_size > _MOST_TRIES:
        raise RuntimeError(
            f"{_MOST_TRIES} workers died, one after the other, {what}; see Ray's log for what killed them. If memory "
            "ran out, take prepare.num_workers down"
        )
    yield
    file.unlink(missing_ok=True)
