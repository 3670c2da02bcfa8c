"""The files of a split, out of the rows that stay: prompts, comparisons and judgements.

staged/<split>/<shard>.parquet --masks--> [sort] --> rows_per_file rows --> <split>-00000-of-00003.parquet, ...
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from pipeline.data.in_order import in_order
from pipeline.data.ingest.worker import staged_file
from pipeline.data.preferences import (
    JUDGEMENTS,
    PREFERENCES,
    Kinds,
    judgement_row,
    judgement_schema,
    pair_row,
    pair_schema,
)
from pipeline.data.schema import PROMPT_SCHEMA
from pipeline.data.table import ROWS_PER_GROUP, write_prompts

PROMPTS = "prompts"

_WRITTEN = pa.schema([("table", pa.string()), ("path", pa.string()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Contents:
    """What the tables hold: the kinds of media in each, and whether comparisons have margins."""

    preferences: Kinds
    judgements: Kinds
    has_margin: bool

    def schemas(self) -> dict[str, pa.Schema]:
        return {
            PROMPTS: PROMPT_SCHEMA,
            PREFERENCES: pair_schema(self.preferences, has_margin=self.has_margin),
            JUDGEMENTS: judgement_schema(self.judgements),
        }


def directory_of(table: str, directory: Path) -> Path:
    """Prompts lie in the directory itself, the others in directories of their names."""
    return directory if table == PROMPTS else directory / table


def write_split(
    split: str,
    masks: Mapping[int, list[bool]],
    *,
    staging: Path,
    directory: Path,
    contents: Contents,
    rows_per_file: int,
    num_workers: int,
    is_sorted: bool,
) -> dict[str, int]:
    """Writes the files of a split and returns the number of rows by table.

    masks: of each shard, in order, which of the rows that it put aside stay.
    """
    shards = [
        {"path": str(staged_file(staging, shard, split)), "mask": mask} for shard, mask in masks.items() if any(mask)
    ]
    if not shards:
        return {}
    with in_order():
        rows = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            _staying, batch_size=1, batch_format="numpy"
        )
        if is_sorted:
            rows = rows.sort("sort_value")
        written = rows.map_batches(
            PartWriter,
            batch_size=rows_per_file,
            batch_format="pyarrow",
            fn_constructor_args=(staging / "parts", contents),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
        )
    files: dict[str, list[Path]] = {}
    counts: dict[str, int] = {}
    for part in written.iter_rows():
        files.setdefault(part["table"], []).append(Path(part["path"]))
        counts[part["table"]] = counts.get(part["table"], 0) + part["rows"]
    for table, paths in files.items():
        target = directory_of(table, directory)
        target.mkdir(parents=True, exist_ok=True)
        for index, path in enumerate(paths):
            path.replace(target / part_name(split, index, len(paths)))
    return counts


def part_name(split: str, index: int, total: int) -> str:
    """The name of one of `total` files of a split, as the Hugging Face hub has them."""
    return f"{split}.parquet" if total == 1 else f"{split}-{index:05d}-of-{total:05d}.parquet"


def _staying(batch: Any) -> Iterator[pa.Table]:
    """The rows of staged files that stay, a row group at a time."""
    for path, mask in zip(batch["path"], batch["mask"], strict=True):
        first = 0
        for rows in pq.ParquetFile(path).iter_batches(batch_size=ROWS_PER_GROUP, use_threads=False):
            staying = pa.array([bool(stays) for stays in mask[first : first + len(rows)]])
            first += len(rows)
            if staying.true_count:
                yield pa.Table.from_batches([rows]).filter(staying)


class PartWriter:
    """Writes the rows of a batch as files with names of their own, and says which: the order gives the final names."""

    def __init__(self, directory: Path, contents: Contents) -> None:
        self._directory = directory
        self._contents = contents
        directory.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows: dict[str, list[dict[str, Any]]] = {PROMPTS: [], PREFERENCES: [], JUDGEMENTS: []}
        for row in batch.to_pylist():
            if row["label"] is not False:  # a bad completion is nobody's reference answer
                rows[PROMPTS].append(row)
            if row["label"] is not None:
                rows[JUDGEMENTS].append(judgement_row(row, self._contents.judgements))
            if row["rejected"] is not None:
                rows[PREFERENCES].append(pair_row(row, self._contents.preferences))
        written: list[dict[str, Any]] = []
        for table, schema in self._contents.schemas().items():
            if rows[table]:
                path = self._directory / f"{uuid.uuid4().hex}.parquet"
                write_prompts(path, rows[table], schema=schema)
                written.append({"table": table, "path": str(path), "rows": len(rows[table])})
        return pa.Table.from_pylist(written, schema=_WRITTEN)
