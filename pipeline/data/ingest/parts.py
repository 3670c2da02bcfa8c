"""The files of all tables, out of the rows that stay: prompts, comparisons and judgements.

index --places in order--> rows_per_file rows --> a worker takes them out of the staging files
                                                   --> <split>-00000-of-00003.parquet, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.ingest.index import PROMPTS, Index
from pipeline.data.ingest.pool import Pool
from pipeline.data.ingest.splits import NAMES
from pipeline.data.ingest.staging import Staged
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
from pipeline.data.table import ROWS_PER_GROUP, write_groups

TABLES = (PROMPTS, PREFERENCES, JUDGEMENTS)
_PLAN = pa.schema([("shard", pa.int64()), ("place", pa.int64()), ("id", pa.string())])


@dataclass(frozen=True)
class Contents:
    """What the tables hold: the kinds of media in each, and whether comparisons have margins."""

    preferences: Kinds
    judgements: Kinds
    has_margin: bool

    @classmethod
    def of(cls, index: Index) -> Contents:
        return cls(index.kinds(PREFERENCES), index.kinds(JUDGEMENTS), index.has_margins())

    def schema(self, table: str) -> pa.Schema:
        if table == PREFERENCES:
            return pair_schema(self.preferences, has_margin=self.has_margin)
        return judgement_schema(self.judgements) if table == JUDGEMENTS else PROMPT_SCHEMA

    def rows(self, table: str, staged: pa.Table) -> pa.Table:
        """Staged rows as rows of a table."""
        schema = self.schema(table)
        if table == PROMPTS:
            return pa.Table.from_arrays(_answered(staged).select(schema.names).columns, schema=schema)
        rows = staged.to_pylist()
        if table == PREFERENCES:
            return pa.Table.from_pylist([pair_row(row, self.preferences) for row in rows], schema=schema)
        return pa.Table.from_pylist([judgement_row(row, self.judgements) for row in rows], schema=schema)


def _answered(staged: pa.Table) -> pa.Table:
    """Staged rows with null in place of answers that were judged bad."""
    labels = staged["label"].to_pylist()
    for name in ("answer", "demonstration"):
        texts = [None if label is False else text for label, text in zip(labels, staged[name].to_pylist(), strict=True)]
        staged = staged.set_column(staged.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    return staged


def directory_of(table: str, directory: Path) -> Path:
    """Prompts lie in the directory itself, the others in directories of their names."""
    return directory if table == PROMPTS else directory / table


def part_name(split: str, index: int, total: int) -> str:
    """The name of one of `total` files of a split, as the Hugging Face hub has them."""
    return f"{split}.parquet" if total == 1 else f"{split}-{index:05d}-of-{total:05d}.parquet"


@dataclass(frozen=True)
class Part:
    """A file of a table, and the plan of its rows."""

    table: str
    path: Path
    plan: Path
    contents: Contents

    def write(self, staging: Path) -> None:
        """Writes the file out of what was put aside."""
        groups = (self.contents.rows(self.table, rows) for rows in planned(self.plan, Staged(staging)))
        write_groups(self.path, groups, schema=self.contents.schema(self.table))


def rows_by_table(index: Index) -> dict[str, dict[str, int]]:
    """The number of rows by table and split, of those that have any."""
    every = {table: {split: index.size(table, split) for split in NAMES} for table in TABLES}
    return {
        table: {split: n for split, n in counts.items() if n} for table, counts in every.items() if any(counts.values())
    }


def write_tables(
    index: Index, pool: Pool, *, staging: Path, directory: Path, rows_per_file: int, sort_train: bool
) -> None:
    """Writes the files of all splits.

    sort_train: the train split goes by ascending sort value.
    """
    parts: list[Part] = []
    contents = Contents.of(index)
    for table, counts in rows_by_table(index).items():
        for split, num_rows in counts.items():
            places = index.places(table, split, is_sorted=sort_train and split == "train")
            num_parts = -(-num_rows // rows_per_file)
            for number in range(num_parts):
                path = directory_of(table, directory) / part_name(split, number, num_parts)
                plan = staging / "plans" / f"{len(parts):06d}.parquet"
                write_plan(plan, list(islice(places, rows_per_file)))
                parts.append(Part(table, path, plan, contents))
    for _ in pool.map("write", parts, lambda part: f"at {part.path}"):
        pass


def write_plan(path: Path, places: list[tuple[int, int, str]]) -> None:
    """Which rows a file is made of: on disk, so that nothing grows with their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(list(zip(*places, strict=True)), schema=_PLAN), path)


def planned(plan: Path, staged: Staged) -> Iterator[pa.Table]:
    """The rows of a file, a row group at a time.

    Raises:
        RuntimeError: another row lies in a place than the one that was decided about.
    """
    for group in pq.read_table(plan, schema=_PLAN).to_batches(max_chunksize=ROWS_PER_GROUP):
        shards, places, ids = (column.to_pylist() for column in group.columns)
        rows = staged.rows(shards, places)
        own = rows["id"].to_pylist()  # without the number of those that repeat
        # A shard whose worker died is prepared again; a decoder that ran out of time once may not do so twice.
        if any(theirs not in (id, id.rpartition("-")[0]) for theirs, id in zip(own, ids, strict=True)):
            raise RuntimeError(f"{plan.name}: a shard that was prepared twice gave other rows; run jobs.prepare again")
        yield rows.set_column(rows.schema.get_field_index("id"), "id", group["id"])
