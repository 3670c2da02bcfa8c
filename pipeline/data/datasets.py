"""The prompt tables of a run, one a dataset, and how their rows are named.

A row is known by its dataset and its number there. In a mixture ids begin with the dataset's name, because two
datasets may well have the same ids, and nobody reads all of them to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from pipeline.config import ConfigError, Dataset
from pipeline.data.media_store import MediaStore
from pipeline.data.table import PromptTable, prompt_of
from pipeline.records import Prompt, PromptInfo, Quarantined


class RowKey(NamedTuple):
    """A row: which dataset of the run, and its number there."""

    dataset: int
    row: int


@dataclass(frozen=True)
class RowRef:
    """A row, and where it lies in the object store: its block and its place there. Without a block it is read anew."""

    key: RowKey
    block: ray.ObjectRef[pa.Table] | None = None
    place: int = 0


class Source:
    """One split of one dataset."""

    def __init__(self, dataset: Dataset, split: str, prefix: str):
        self.dataset = dataset
        self.prefix = prefix
        """What its ids begin with."""
        self.split = split
        self._store = MediaStore(dataset.path)

    @cached_property
    def table(self) -> PromptTable:
        """Its table, opened when it is first asked for."""
        return PromptTable(f"{self.dataset.path}/{self.split}.parquet")

    def prompt(self, cells: Mapping[str, Any], row: int) -> Prompt | Quarantined:
        """The prompt of a row that was read elsewhere."""
        return prompt_of(cells, store=self._store, name=f"row {row}", prefix=self.prefix)


class Datasets:
    """One split of all datasets of a run."""

    def __init__(self, datasets: Sequence[Dataset], split: str):
        prefixes = [f"{each.label}/" for each in datasets] if len(datasets) > 1 else [""]
        self.sources = [Source(each, split, prefix) for each, prefix in zip(datasets, prefixes, strict=True)]

    def check(self, field: str) -> Datasets:
        """Makes sure that each table has rows of the split: before models are loaded, which takes long.

        field: of the recipe, which names the split; the message says it.

        Raises:
            ConfigError: a table has no such split, or no row in it.
        """
        for source in self.sources:
            try:
                found = len(source.table)
            except FileNotFoundError as error:
                raise ConfigError(f"{field}={source.split}: {error}") from None
            if not found:
                raise ConfigError(f"{field}={source.split}: {source.table.path} has no row; name a split that has some")
        return self

    @property
    def num_rows(self) -> int:
        """Rows of all tables."""
        return sum(len(source.table) for source in self.sources)

    def infos(self, num_rows: int | None = None) -> list[PromptInfo]:
        """What the tables say of their rows without media: of all, or of the first `num_rows` of each.

        Raises:
            ValueError: two rows of a table have the same id.
        """
        return [
            replace(info, id=source.prefix + info.id)
            for source in self.sources
            for info in source.table.infos(num_rows)
        ]

    def tasks(self) -> set[str]:
        """The tasks of all rows; a row group is in memory at a time, without media."""
        return {task for source in self.sources for task in source.table.tasks()}

    def further(self, names: Sequence[str]) -> set[str]:
        """Which of these columns a table has, or some row among those that were kept of its source."""
        return {name for source in self.sources for name in source.table.further(names)}

    def keys(self, ids: Sequence[str]) -> list[RowKey]:
        """The rows with these ids.

        Raises:
            KeyError: an id is in none of the tables.
            ValueError: several rows of a table have it.
        """
        found: dict[str, RowKey] = {}
        for member, source in enumerate(self.sources):
            own = [id for id in ids if id.startswith(source.prefix)]
            rows = source.table.rows([id.removeprefix(source.prefix) for id in own]) if own else []
            found |= {id: RowKey(member, row) for id, row in zip(own, rows, strict=True)}
        unknown = [id for id in ids if id not in found]
        if unknown:
            names = ", ".join(source.dataset.label for source in self.sources)
            raise KeyError(f"the id {unknown[0]!r} begins with the name of no dataset; there are {names}")
        return [found[id] for id in ids]

    def read(self, rows: Sequence[RowRef]) -> list[Prompt | Quarantined]:
        """The prompts of rows, from the object store or else from the tables; what cannot be used is `Quarantined`."""
        blocks = list({row.block: None for row in rows if row.block is not None})
        # Asked for nothing, Ray would all the same look for a cluster, or start one.
        tables = dict(zip(blocks, ray.get(blocks) if blocks else [], strict=True))
        found: dict[RowKey, Prompt | Quarantined] = {}
        absent: dict[int, list[int]] = {}
        for row in rows:
            member, number = row.key
            if row.block is None:
                absent.setdefault(member, []).append(number)
            else:
                cells = tables[row.block].slice(row.place, 1).to_pylist()[0]
                found[row.key] = self.sources[member].prompt(cells, number)
        for member, numbers in absent.items():
            source = self.sources[member]
            prompts = source.table.read_rows(numbers, prefix=source.prefix)
            found |= {RowKey(member, number): prompt for number, prompt in zip(numbers, prompts, strict=True)}
        return [found[row.key] for row in rows]

    def cells(self, keys: Sequence[RowKey], columns: tuple[str, ...]) -> dict[RowKey, dict[str, Any]]:
        """These columns of rows, unchecked, read from the tables; those that a table lacks are missing."""
        numbers: dict[int, list[int]] = {}
        for member, number in keys:
            numbers.setdefault(member, []).append(number)
        return {
            RowKey(member, number): cells
            for member, rows in numbers.items()
            for number, cells in self.sources[member].table.cells(rows, columns).items()
        }
