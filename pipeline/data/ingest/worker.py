"""What a worker does with a shard: read, prepare, put the good rows aside; tell the driver of each, without media."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, SplitBy
from pipeline.data.ingest.parts import Part
from pipeline.data.ingest.readers import RawRow, read
from pipeline.data.ingest.rows import RowPreparer, stated_split
from pipeline.data.ingest.shards import Shard
from pipeline.data.ingest.staging import StagingFile
from pipeline.records import Quarantined

if TYPE_CHECKING:
    from pipeline.models.processing import PromptProcessor

INDEX_COLUMNS = (
    *("shard", "place", "id", "reason", "detail", "split", "dataset", "task", "modalities", "num_tokens", "has_answer"),
    *("num_answer_tokens", "seconds", "is_pair", "has_margin", "label", "sort_value", "prompt_key", "row_key"),
    *("media_keys", "signature", "picture_group", "picture_hashes", "files", "unread"),
)
"""What the driver learns of a row. Refused rows have a reason; the others lie at their place of their shard's file."""


class ShardWorker:
    """Prepares shards and writes parts of the tables, one call each; lives in an actor of a `Pool`."""

    def __init__(
        self,
        recipe: Recipe,
        shards: Sequence[Shard],
        directory: Path,
        staging: Path,
        processor: Callable[[], PromptProcessor] | None,
    ) -> None:
        self._recipe, self._shards, self._directory, self._staging = recipe, shards, directory, staging
        self._processor = processor

    def build(self) -> None:
        """Makes what all shards need; apart, so that what it raises arrives as it is."""
        processor = self._processor and self._processor()
        self._prepare = RowPreparer(self._recipe, directory=self._directory, processor=processor)

    def prepare(self, number: int) -> None:
        """Prepares a shard; `described` reads what it tells of each row."""
        shard = self._shards[number]
        source = self._recipe.prepare.sources[shard.source]
        with StagingFile(self._staging, number) as staged, _index_of(self._staging, number).open("wb") as told:
            for raw in read(shard, root=source.path.rstrip("/")):
                row = self._prepare(raw, shard.source)
                if isinstance(row, Quarantined):
                    found = {"shard": number, "id": row.row_id, "reason": row.reason, "detail": row.detail}
                else:
                    left = self._split_left(source.path, raw.path) if isinstance(raw, RawRow) else []
                    found = {"shard": number, "place": staged.add(row.row), "reason": None, **row.index}
                    found["unread"] = [*row.index["unread"], *left]
                pickle.dump(found, told)

    def _split_left(self, source: str, path: str) -> list[str]:
        """The split that a file's name says, as something that is not read, where rows are shared out otherwise."""
        if self._recipe.prepare.split.by is SplitBy.COLUMN:
            return []
        stated = stated_split(source, path)
        # Where all is train, there is nothing to keep apart.
        left = f"the split {stated} of names of files (prepare.split.by=column takes it)"
        return [] if stated in (None, "train") else [left]

    def write(self, part: Part) -> None:
        """Writes a file of a table."""
        part.write(self._staging)


def described(staging: Path, shard: int) -> Iterator[dict[str, Any]]:
    """Rows of `INDEX_COLUMNS`, one at a time: what the worker that prepared a shard tells of it."""
    with _index_of(staging, shard).open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)


def _index_of(staging: Path, shard: int) -> Path:
    return staging / f"{shard:06d}.index"
