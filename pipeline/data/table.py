"""Tables on disk: prompts (some rows at a time), preferences, and the quarantine.

Training reads the prompt table as a stream (`stream.py`). Here it is read by id or by the number of the row, where a
few rows are asked for, or all ids, tasks and answers of a small split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.layout import Group, Layout, Part
from pipeline.data.media_store import MediaStore
from pipeline.data.opinions import PREFERENCE_SCHEMA, opinion_of, opinion_row
from pipeline.data.schema import KEPT, PROMPT_SCHEMA, RowError, bare_prompt, from_row, media_places
from pipeline.records import MediaKind, Opinion, Preference, Prompt, PromptInfo, Quarantined

ROWS_PER_GROUP = 32
"""A random row costs the reading of its group: small groups make batches cheap, at some footer bytes a group."""

_CACHED_GROUPS = 16

QUARANTINE_SCHEMA = pa.schema([("row_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def write_prompts(path: Path, rows: Iterable[Mapping[str, Any]], *, schema: pa.Schema = PROMPT_SCHEMA) -> int:
    """Writes rows (see `schema.to_row`) as one Parquet file and returns their number.

    Rows are taken as they come, a group at a time: the table need not fit into memory.
    """
    remaining = iter(rows)
    groups = iter(lambda: list(islice(remaining, ROWS_PER_GROUP)), [])
    return write_groups(path, (pa.Table.from_pylist(group, schema=schema) for group in groups), schema=schema)


def write_groups(path: Path, groups: Iterable[pa.Table], *, schema: pa.Schema) -> int:
    """Writes tables of `ROWS_PER_GROUP` rows at most as the groups of one Parquet file; returns the number of rows.

    The file takes its name only when it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    num_rows = 0
    # Statistics would copy whole pictures into the footer.
    with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False, write_statistics=False) as out:
        for group in groups:
            out.write_table(group, row_group_size=ROWS_PER_GROUP)
            num_rows += len(group)
    partial.replace(path)
    return num_rows


def prompt_of(row: Mapping[str, Any], *, store: MediaStore, name: str, prefix: str = "") -> Prompt | Quarantined:
    """The prompt of a row, or why it cannot be used.

    name: what the quarantine calls a row without an id; prefix: what stands before ids, in a mixture of datasets.
    """
    try:
        prompt = from_row(store.filled(row))
    except RowError as error:
        return error.quarantined(prefix + (row.get("id") or name))
    return replace(prompt, id=prefix + prompt.id)


def info_of(prompt: Prompt) -> PromptInfo:
    """What the driver needs of a prompt, with its media or without."""
    kinds = set(media_places(prompt.messages))
    return PromptInfo(
        id=prompt.id,
        task=prompt.task,
        answer=prompt.answer,
        demonstration=prompt.demonstration or prompt.answer,
        modalities=tuple(kind for kind in MediaKind if kind in kinds),
        is_demonstrated=bool(prompt.demonstration),
        accepted=prompt.accepted,
    )


class PromptTable:
    """One split of a prompt table, for reading some of its rows. Opening it reads footers alone.

    Training reads `stream.RowStream` instead. Rows have numbers, from 0 in the order of the files; the first look-up by
    id reads all ids, and keeps 16 bytes of each.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the table in `path`, such as `data/train.parquet`, or its parts (`data/train-00000-of-00003.parquet`).

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: some of its parts are missing.
        """
        directory, _, name = str(path).rpartition("/")
        self.path = str(path)
        self.layout = Layout.read(directory or ".", name.removesuffix(".parquet"))
        """Its row groups."""
        self._store = MediaStore(directory or ".")
        self._rows = _RowReader(self.layout)
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.layout.total_rows

    def infos(self, num_rows: int | None = None) -> list[PromptInfo]:
        """What the tables say of each row (or the first `num_rows`), in file order. No media column is read.

        Raises:
            ValueError: two rows have the same id.
        """
        columns = ("id", "task", "answer", "accepted", "demonstration", "prompt")
        groups = _RowReader(self.layout.head(num_rows)).groups(columns)
        infos = [info_of(bare_prompt(row)) for group in groups for row in group.to_pylist()]
        for id, count in Counter(info.id for info in infos).most_common(1):
            if count > 1:
                raise self._ambiguous(id)
        return infos

    def rows(self, ids: Sequence[str]) -> list[int]:
        """The numbers of the rows with these ids.

        Raises:
            KeyError: an id is not in this table.
            ValueError: several rows have it.
        """
        hashes, numbers = self._hashes()
        found: list[int] = []
        unknown: list[str] = []
        for id in ids:
            start, end = (int(np.searchsorted(hashes, _hash(id), side=side)) for side in ("left", "right"))
            alike = self._rows.cells(numbers[start:end].tolist(), ("id",))
            matches = [row for row, cells in alike.items() if cells["id"] == id]
            if len(matches) > 1:
                raise self._ambiguous(id)
            found += matches
            unknown += [] if matches else [id]
        if unknown:
            raise KeyError(f"{self.path}: {len(unknown)} of {len(ids)} ids are not in this table, first {unknown[0]!r}")
        return found

    def read(self, ids: Sequence[str]) -> list[Prompt | Quarantined]:
        """The prompts of `ids`, in that order; a row that cannot be used comes as `Quarantined`.

        Raises:
            KeyError: an id is not in this table.
            ValueError: several rows have it.
        """
        return self.read_rows(self.rows(ids))

    def read_rows(self, rows: Sequence[int], *, prefix: str = "") -> list[Prompt | Quarantined]:
        """The prompts in rows of these numbers; a row that cannot be used comes as `Quarantined`."""
        found = {
            row: prompt_of(cells, store=self._store, name=f"row {row}", prefix=prefix)
            for row, cells in self._rows.cells(rows).items()
        }
        return [found[row] for row in rows]

    def cells(self, rows: Iterable[int], columns: tuple[str, ...]) -> dict[int, dict[str, Any]]:
        """These columns of the rows of these numbers, unchecked; those that are not in the table are missing."""
        return self._rows.cells(rows, columns)

    def tasks(self) -> set[str]:
        """The tasks of all rows; without the column there is one, without a name."""
        groups = self._rows.groups(("task",))
        return {task or "" for group in groups for task in (group["task"].to_pylist() if group.num_columns else [None])}

    def further(self, names: Iterable[str]) -> set[str]:
        """Which of these columns the table has, or some row among those that were kept of its source."""
        wanted, found = {*names}, set[str]()
        for group in self._rows.groups((*wanted, KEPT)):
            found |= wanted & {*group.column_names} - {KEPT}
            if found == wanted:
                break
            kept = group[KEPT].to_pylist() if KEPT in group.column_names else []
            found |= wanted & {name for each in kept if each for name in json.loads(each)}
        return found

    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of all ids, sorted, and the number of each one's row."""
        if self._index is None:
            ids = (id for group in self._rows.groups(("id",)) for id in group["id"].to_pylist())
            hashes = np.fromiter((_hash(id or "") for id in ids), np.uint64, len(self))
            order = np.argsort(hashes, kind="stable")
            self._index = hashes[order], order
        return self._index

    def _ambiguous(self, id: str) -> ValueError:
        return ValueError(f"{self.path}: two rows have the id {id!r}; ids must be unique in a split")


def _hash(id: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(id.encode(), digest_size=8).digest(), np.uint64)[0]


def write_preferences(path: Path, preferences: Iterable[Opinion]) -> int:
    """Writes opinions, as they come, as one Parquet file with `PREFERENCE_SCHEMA`; returns their number."""
    return write_prompts(path, map(opinion_row, preferences), schema=PREFERENCE_SCHEMA)


class PreferenceTable:
    """What raters said, on disk. Opening it reads the footer alone; rows have numbers, from 0."""

    def __init__(self, path: Path) -> None:
        """Opens what `write_preferences` wrote.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no preference table here; make one with `python -m jobs.reward_model`")
        self.path = path
        self.layout = Layout.read(str(path.parent), path.stem)
        """Its row groups."""
        self._rows = _RowReader(self.layout)

    def __len__(self) -> int:
        return self.layout.total_rows

    def read(self, rows: Iterable[int] | None = None) -> list[Opinion]:
        """What is said in rows of these numbers; None reads all."""
        numbers = list(range(len(self)) if rows is None else rows)
        cells = self._rows.cells(numbers)
        return [opinion_of(cells[number]) for number in numbers]

    def pairs(self) -> list[Preference]:
        """The comparisons of two completions, in the order of the rows; rankings and ratings are left out."""
        return [each for each in self.read() if isinstance(each, Preference)]

    def raters(self) -> list[str]:
        """Who said it, each once, sorted."""
        return sorted(set(self._column("rater")))

    def criteria(self) -> list[str]:
        """What ratings are about, each once, sorted."""
        rated = (ratings or () for ratings in self._column("ratings"))
        return sorted({each["criterion"] for ratings in rated for each in ratings})

    def prompt_ids(self) -> Iterator[str]:
        """The prompt of each row, in their order; a row group is in memory at a time."""
        return self._column("prompt_id")

    def _column(self, name: str) -> Iterator[Any]:
        """The cells of a column; none where the table has no such column."""
        groups = self._rows.groups([name])
        return (each for group in groups if group.num_columns for each in group[name].to_pylist())


class _RowReader:
    """Reads some rows of a split; the groups that were read last are kept."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._part = cache(lambda part: Part(layout.directory, layout.names[part]).file)
        self._kept = lru_cache(maxsize=_CACHED_GROUPS)(self.group)

    def cells(self, rows: Iterable[int], columns: tuple[str, ...] | None = None) -> dict[int, dict[str, Any]]:
        """The rows of these numbers."""
        found: dict[int, dict[str, Any]] = {}
        for row in sorted(set(rows)):  # by place, so that each group is read once
            group = self._layout.group_of(row)
            found[row] = self._kept(group, columns).slice(row - group.first, 1).to_pylist()[0]
        return found

    def groups(self, columns: Sequence[str]) -> Iterator[Any]:
        """All groups, one after the other; of the columns, those that are there."""
        for index in range(len(self._layout.num_rows)):
            group = self._layout.group(index)
            present = self._part(group.part).schema_arrow.names
            yield self.group(group, tuple(name for name in columns if name in present)).slice(0, group.num_rows)

    def group(self, group: Group, columns: tuple[str, ...] | None = None) -> Any:
        """A group as a table."""
        chosen = None if columns is None else list(columns)
        return self._part(group.part).read_row_group(group.place, columns=chosen, use_threads=False)


class TooManyBadRows(RuntimeError):
    """More rows are bad than `data.max_bad_fraction` allows, or nobody knows how many; the message says why."""


def check_bad_rows(counts: Mapping[str, int], first: Quarantined, num_rows: int, max_bad_fraction: float) -> None:
    """Stops a job whose data are bad.

    counts: bad rows by reason.

    Raises:
        TooManyBadRows: they are more than `max_bad_fraction` of `num_rows`.
    """
    num_bad = sum(counts.values())
    if num_bad / max(num_rows, 1) > max_bad_fraction:  # 29 of 100 are 0.29, but no more than 28.999... of them.
        raise TooManyBadRows(
            f"{num_bad} of {num_rows} rows were refused "
            f"({', '.join(f'{count} {reason}' for reason, count in counts.items())}); data.max_bad_fraction is "
            f"{max_bad_fraction:g}. First: {first.row_id}: {first.detail}"
        )


class Quarantine:
    """The rows refused so far. A row counts once, by its first reason, however often it is drawn."""

    def __init__(self) -> None:
        self._rows: dict[str, Quarantined] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Quarantined]:
        return iter(self._rows.values())

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._rows

    def add(self, row: Quarantined) -> None:
        """Takes a refused row in."""
        self._rows.setdefault(row.row_id, row)

    def counts(self) -> dict[str, int]:
        """Number of rows by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self._rows.values()).most_common())

    def check(self, num_rows: int, max_bad_fraction: float) -> None:
        """Stops a job whose data are bad.

        Raises:
            TooManyBadRows: more than `max_bad_fraction` of `num_rows` are here.
        """
        if self._rows:
            check_bad_rows(self.counts(), next(iter(self)), num_rows, max_bad_fraction)

    def write(self, path: Path) -> None:
        """Writes the rows as Parquet: row_id, reason, detail."""
        rows = [vars(row) for row in self._rows.values()]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), path)

    @classmethod
    def read(cls, path: Path) -> Quarantine:
        """Reads what `write` wrote."""
        quarantine = cls()
        for row in pq.read_table(path, schema=QUARANTINE_SCHEMA).to_pylist():
            quarantine.add(Quarantined(**row))
        return quarantine
