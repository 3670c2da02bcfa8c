"""Good rows put aside until it is known which of them stay: a file a shard, of which any row is found by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.schema import MEDIA_COLUMNS, STAGED_SCHEMA

_BATCH_ROWS = 32
_BATCH_BYTES = 2**28
"""Arrow counts the bytes of a batch in 31 bits."""
_OPEN_FILES = 4
"""What was read of an open file counts as memory of the process."""


def _path(directory: Path, shard: int) -> Path:
    return directory / f"{shard:06d}.arrow"


class StagingFile:
    """Takes the rows of a shard, which need not fit into memory. Made again, it begins anew."""

    def __init__(self, directory: Path, shard: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Not compressed: media are, and rows that are not wanted are not read.
        self._file: Any = pa.ipc.new_file(str(_path(directory, shard)), STAGED_SCHEMA)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._num_batches = 0

    def __enter__(self) -> StagingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> int:
        """Takes a row of `STAGED_SCHEMA` in and returns its place."""
        place = self._num_batches * _BATCH_ROWS + len(self._rows)
        self._rows.append(row)
        self._bytes += sum(len(file["bytes"] or b"") for column in MEDIA_COLUMNS.values() for file in row[column])
        if len(self._rows) == _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        if self._rows:
            self._file.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=STAGED_SCHEMA))
            self._rows, self._bytes = [], 0
            self._num_batches += 1


class Staged:
    """Reads rows of all shards, in any order; of a file, only what is asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, Any] = {}

    def rows(self, shards: Sequence[int], places: Sequence[int]) -> pa.Table:
        """The rows at these places of these shards, in this order."""
        wanted = groupby(zip(shards, places, strict=True), key=lambda at: (at[0], at[1] // _BATCH_ROWS))
        found = [
            self._file(shard).get_batch(batch).take(pa.array([place % _BATCH_ROWS for _, place in these]))
            for (shard, batch), these in wanted
        ]
        return pa.Table.from_batches(found, schema=STAGED_SCHEMA)

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            if len(self._files) == _OPEN_FILES:
                self._files.pop(next(iter(self._files)))
            self._files[shard] = pa.ipc.open_file(pa.memory_map(str(_path(self._directory, shard))))
        return self._files[shard]
