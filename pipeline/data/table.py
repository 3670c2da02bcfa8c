"""Tables on disk: prompts (some rows at a time), preferences, and the quarantine.

Training reads the prompt table as a stream (`stream.py`). Here it is read by id or by the number of the row, where a
few rows are asked for, or all ids, tasks and answers of a small split. `PromptOrder` orders what fits into memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.layout import Group, Layout, MediaStore, Part
from pipeline.data.schema import (
    PREFERENCE_SCHEMA,
    PROMPT_SCHEMA,
    RowError,
    from_row,
    media_places,
    messages_of,
)
from pipeline.records import MediaKind, Preference, Prompt, PromptInfo, Quarantined, RaterKind

ROWS_PER_GROUP = 32
"""A random row costs the reading of its group: small groups make batches cheap, at some footer bytes a group."""

_CACHED_GROUPS = 16

QUARANTINE_SCHEMA = pa.schema([("row_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def write_prompts(path: Path, rows: Iterable[Mapping[str, Any]], *, schema: pa.Schema = PROMPT_SCHEMA) -> int:
    """Writes rows (see `schema.to_row`) as one Parquet file and returns their number.

    Rows are taken as they come, a group at a time: the table need not fit into memory. The file takes its name only
    when it is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    remaining = iter(rows)
    num_rows = 0
    # Statistics would copy whole pictures into the footer.
    with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False, write_statistics=False) as out:
        while group := list(islice(remaining, ROWS_PER_GROUP)):
            out.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=ROWS_PER_GROUP)
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
    """What the driver needs of a prompt."""
    return PromptInfo(
        id=prompt.id,
        task=prompt.task,
        answer=prompt.answer,
        demonstration=prompt.demonstration or prompt.answer,
        modalities=_each_once(medium.kind for medium in prompt.media),
    )


def _each_once(kinds: Iterable[MediaKind]) -> tuple[MediaKind, ...]:
    present = set(kinds)
    return tuple(kind for kind in MediaKind if kind in present)


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
        self._rows_of = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)
        self._ids_of = lru_cache(maxsize=_CACHED_GROUPS)(partial(self._read_group, columns=["id"]))
        self._part = cache(lambda part: Part(self.layout.directory, self.layout.names[part]).file)
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.layout.total_rows

    def infos(self, num_rows: int | None = None) -> list[PromptInfo]:
        """What the tables say of each row (or the first `num_rows`), in file order. No media column is read.

        Raises:
            ValueError: two rows have the same id.
        """
        infos: list[PromptInfo] = []
        layout = self.layout.head(num_rows)
        for index in range(len(layout.num_rows)):
            group = layout.group(index)
            present = self._part(group.part).schema_arrow.names
            columns = [name for name in ("id", "task", "answer", "demonstration", "prompt") if name in present]
            infos += map(_info, self._read_group(group, columns).slice(0, group.num_rows).to_pylist())
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
            matches = [int(row) for row in numbers[start:end] if self._id(int(row)) == id]
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
        found: dict[int, Prompt | Quarantined] = {}
        for row in sorted(set(rows)):  # by place, so that each group is read once
            group = self.layout.group_of(row)
            cells = self._rows_of(group).slice(row - group.first, 1).to_pylist()[0]
            found[row] = prompt_of(cells, store=self._store, name=f"row {row}", prefix=prefix)
        return [found[row] for row in rows]

    def sources(self) -> dict[str, list[str]]:
        """The sources of each row by its id, for leakage checks."""
        parts = [
            self._part(part).read(columns=["id", "sources"], use_threads=False)
            for part in range(len(self.layout.names))
        ]
        return {row["id"]: row["sources"] or [] for table in parts for row in table.to_pylist()}

    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of all ids, sorted, and the number of each one's row."""
        if self._index is None:
            hashes = np.empty(len(self), np.uint64)
            for index in range(len(self.layout.num_rows)):
                group = self.layout.group(index)
                ids = self._ids_of(group)["id"].to_pylist()
                hashes[group.first : group.first + group.num_rows] = [_hash(id or "") for id in ids]
            order = np.argsort(hashes, kind="stable")
            self._index = hashes[order], order
        return self._index

    def _id(self, row: int) -> str:
        group = self.layout.group_of(row)
        return self._ids_of(group)["id"][row - group.first].as_py()

    def _read_group(self, group: Group, columns: list[str] | None = None) -> Any:
        return self._part(group.part).read_row_group(group.place, columns=columns, use_threads=False)

    def _ambiguous(self, id: str) -> ValueError:
        return ValueError(f"{self.path}: two rows have the id {id!r}; ids must be unique in a split")


def _hash(id: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(id.encode(), digest_size=8).digest(), np.uint64)[0]


def _info(row: Mapping[str, Any]) -> PromptInfo:
    answer = row.get("answer")
    return PromptInfo(
        id=row["id"] or "",
        task=row["task"] or "",
        answer=answer,
        demonstration=row.get("demonstration") or answer,
        modalities=_each_once(media_places(messages_of(row))),
    )


class PromptOrder:
    """Which prompts each step draws: endless epochs, each a fresh permutation, cut into batches.

    A batch depends on (seed, step, size) alone, so a run that resumes draws what it would have drawn. Batches run
    across the end of an epoch. There, prompts that the old epoch has already put into the batch move back in the
    new epoch, so that no batch holds an id twice (as long as `size <= len(ids)`).
    """

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        if not ids:
            raise ValueError("no ids to draw from")
        self._ids = tuple(ids)
        self._seed = seed
        self._known: tuple[int, int, NDArray[np.int64]] | None = None  # size, epoch, order: where the last walk ended

    def batch(self, step: int, size: int) -> list[str]:
        """The ids of batch number `step` (from 0)."""
        if step < 0 or size < 1:
            raise ValueError(f"step={step}, size={size}: a step counts from 0 and a batch holds at least one prompt")
        batch: list[str] = []
        position = step * size
        while len(batch) < size:
            epoch, start = divmod(position, len(self._ids))
            taken = self._order(epoch, size)[start : start + size - len(batch)]
            batch.extend(self._ids[index] for index in taken)
            position += len(taken)
        return batch

    def _order(self, epoch: int, size: int) -> NDArray[np.int64]:
        """The order of an epoch: indices int64 [len(ids)]. Each leans on the one before, so they are made in turn."""
        if self._known is None or self._known[0] != size or self._known[1] > epoch:
            self._known = (size, 0, self._permutation(0))
        _, current, order = self._known
        while current < epoch:
            current += 1
            num_straddling = (current * len(self._ids)) % size  # of the batch that began in the epoch before
            order = self._apart(self._permutation(current), order, num_straddling, size - num_straddling)
        self._known = (size, current, order)
        return order

    def _apart(
        self, order: NDArray[np.int64], previous: NDArray[np.int64], num_before: int, num_after: int
    ) -> NDArray[np.int64]:
        """`order`, with none of the last `num_before` of `previous` among its first `num_after`."""
        if num_before == 0 or num_before + num_after > len(order):
            return order
        free = np.flatnonzero(~np.isin(order, previous[-num_before:]))[:num_after]
        return np.concatenate([order[free], np.delete(order, free)])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._ids))


def write_preferences(path: Path, preferences: Sequence[Preference]) -> None:
    """Writes comparisons as one Parquet file with `PREFERENCE_SCHEMA`."""
    rows = [{**vars(preference), "rater_kind": preference.rater_kind.value} for preference in preferences]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=PREFERENCE_SCHEMA), path, compression="zstd")


def read_preferences(path: Path) -> list[Preference]:
    """Reads what `write_preferences` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no preference table here; make one with `python -m jobs.reward_model`")
    rows = cast("list[dict[str, Any]]", pq.read_table(path, schema=PREFERENCE_SCHEMA).to_pylist())
    return [_preference(**row) for row in rows]


def _preference(
    *, chosen_ids: list[int], rejected_ids: list[int], rater_kind: str, error_rate: float | None, **texts: str
) -> Preference:
    return Preference(
        chosen_ids=tuple(chosen_ids),
        rejected_ids=tuple(rejected_ids),
        rater_kind=RaterKind(rater_kind),
        error_rate=error_rate,
        **texts,
    )


class TooManyBadRows(RuntimeError):
    """More rows in quarantine than `data.max_bad_fraction` allows; the message counts them by reason."""


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
        if len(self) > max_bad_fraction * num_rows:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
            first = next(iter(self._rows.values()))
            raise TooManyBadRows(
                f"{len(self)} of {num_rows} rows were refused ({counts}); data.max_bad_fraction is "
                f"{max_bad_fraction:g}. First: {first.row_id}: {first.detail}"
            )

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
