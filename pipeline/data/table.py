"""Tables on disk: prompts (read by id, a few row groups at a time), preferences, and the quarantine.

The driver needs ids, tasks and answers only (`PromptTable.infos`); whoever processes prompts reads the media
(`PromptTable.read`). `PromptOrder` says which prompts a step draws, from nothing but seed and step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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


class PromptTable:
    """One split of the prompt table. Reads are lazy: opening it touches the footer and the ids alone."""

    def __init__(self, path: Path) -> None:
        """Opens the table.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: two rows have the same id.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no prompt table here; make the built-in data with `python -m jobs.prepare`, "
                "or point data.path at a directory with train.parquet, validation.parquet and test.parquet"
            )
        self.path = path
        self._file = pq.ParquetFile(path, memory_map=True)
        self._group = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)
        self._places: dict[str, tuple[int, int]] = {}
        for group in range(self._file.num_row_groups):
            ids = self._file.read_row_group(group, columns=["id"], use_threads=False)["id"].to_pylist()
            for row, id in enumerate(ids):
                if id in self._places:
                    raise ValueError(f"{path}: two rows have the id {id!r}; ids must be unique in a split")
                self._places[id] = (group, row)

    def __len__(self) -> int:
        return len(self._places)

    def infos(self) -> list[PromptInfo]:
        """What the driver needs of each row, in file order. No media column is read."""
        present = self._file.schema_arrow.names
        columns = [name for name in ("id", "task", "answer", "demonstration", "prompt") if name in present]
        table = self._file.read(columns=columns, use_threads=False)
        return [_info(row) for row in table.to_pylist()]

    def read(self, ids: Sequence[str]) -> list[Prompt | Quarantined]:
        """The prompts of `ids`, in that order; a row that cannot be used comes as `Quarantined`.

        Raises:
            KeyError: an id is not in this table.
        """
        unknown = [id for id in ids if id not in self._places]
        if unknown:
            raise KeyError(f"{self.path}: {len(unknown)} of {len(ids)} ids are not in this table, first {unknown[0]!r}")
        found: dict[str, Prompt | Quarantined] = {}
        for id in sorted(set(ids), key=self._places.__getitem__):  # by place, so that each group is read once
            group, row = self._places[id]
            try:
                found[id] = from_row(self._group(group).slice(row, 1).to_pylist()[0])
            except RowError as error:
                found[id] = error.quarantined(id)
        return [found[id] for id in ids]

    def sources(self) -> dict[str, list[str]]:
        """The sources of each row by its id, for leakage checks."""
        table = self._file.read(columns=["id", "sources"], use_threads=False)
        return {row["id"]: row["sources"] or [] for row in table.to_pylist()}

    def _read_group(self, group: int) -> Any:
        return self._file.read_row_group(group, use_threads=False)


def _info(row: Mapping[str, Any]) -> PromptInfo:
    present = set(media_places(messages_of(row)))
    modalities = tuple(kind for kind in MediaKind if kind in present)
    answer = row["answer"] or ""
    return PromptInfo(
        id=row["id"],
        task=row["task"] or "",
        answer=answer,
        demonstration=row.get("demonstration") or answer,
        modalities=modalities,
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
