"""Where the rows of a split lie: its files and their row groups.

A split is one file, `train.parquet`, or several parts, `train-00000-of-00003.parquet` and so on, in one directory on
disk or at an address.
"""

from __future__ import annotations

import os
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from pipeline.data.filesystems import filesystem, is_uri

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
_FOOTERS_AT_ONCE = 8
_OURS = ("train", "rl", "validation", "test")
"""The splits that `jobs.prepare` makes; a table of somebody else may have others."""


class Group(NamedTuple):
    """A row group: its part, its place there, the number of its first row in the split, rows used, rows it has."""

    part: int
    place: int
    first: int
    num_rows: int
    size: int


def parts_of(directory: str, split: str) -> tuple[str, ...]:
    """The names of a split's files, in order.

    Raises:
        FileNotFoundError: there is none.
        ValueError: parts are missing, or there is a whole file beside them.
    """
    system, inner = filesystem(directory)
    names: list[str] = []
    if system.get_file_info(inner).type == fs.FileType.Directory:
        found = system.get_file_info(fs.FileSelector(inner))
        names = [posixpath.basename(each.path) for each in found if each.type == fs.FileType.File]
    whole = f"{split}.parquet"
    parts = sorted(name for name in names if name.startswith(split) and _PART.fullmatch(name[len(split) :]))
    if whole in names and parts:
        raise ValueError(f"{directory}: {whole} and {parts[0]} are both here; remove one of the two")
    if whole in names:
        return (whole,)
    if not parts:
        tables = {_PART.sub("", name).removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        if others := sorted(tables - {"quarantine"}):
            share = f"a larger share of {split} (prepare.split.{split}; of the built-in data prepare.{split}_rows)"
            if split == "train":
                share = "smaller shares of the others (prepare.split.rl, validation, test)"
            again = f", or make the table again with `python -m jobs.prepare` and {share}" * (split in _OURS)
            raise FileNotFoundError(
                f"{directory}/{whole}: no row of the prompt table here is in the split {split}, but in "
                f"{', '.join(others)}; name one of these (evaluate.split, rlhf.split, preferences.split){again}"
            )
        raise FileNotFoundError(
            f"{directory}/{whole}: no prompt table here, nor parts of one; make one with `python -m jobs.prepare`, or "
            "point data.path at a directory with train.parquet, validation.parquet and test.parquet"
        )
    total = int(parts[0][-len("00000.parquet") : -len(".parquet")])
    expected = tuple(f"{split}-{number:05d}-of-{total:05d}.parquet" for number in range(total))
    if tuple(parts) != expected:
        odd = sorted(set(expected).symmetric_difference(parts))
        raise ValueError(f"{directory}: the parts of {split} are not whole, see {', '.join(odd[:3])}; copy them again")
    return expected


@dataclass(frozen=True)
class Layout:
    """The row groups of a split, in order. Its memory grows with their number, not with that of rows.

    part, place, num_rows, size, num_bytes: int64 [G], as in `Group`; bytes are those of the columns, uncompressed.
    """

    directory: str
    names: tuple[str, ...]
    part: NDArray[np.int64]
    place: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    size: NDArray[np.int64]
    num_bytes: NDArray[np.int64]

    @classmethod
    def read(cls, directory: str, split: str) -> Layout:
        """Reads the footers of all parts.

        Raises:
            FileNotFoundError: there is no such split.
            ValueError: its parts are not whole.
        """
        directory = directory if is_uri(directory) else os.path.abspath(directory)
        names = parts_of(directory, split)

        def groups(name: str) -> list[tuple[int, int]]:
            with Part(directory, name) as file:
                footer = file.metadata
            return [
                (footer.row_group(place).num_rows, footer.row_group(place).total_byte_size)
                for place in range(footer.num_row_groups)
            ]

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            found = list(threads.map(groups, names))
        columns = [
            (part, place, rows, rows, num_bytes)
            for part, groups_of_part in enumerate(found)
            for place, (rows, num_bytes) in enumerate(groups_of_part)
            if rows
        ]
        return cls(directory, names, *np.array(columns, np.int64).reshape(-1, 5).T)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """int64 [G]: the number of each group's first row in the split."""
        return np.cumsum(self.num_rows) - self.num_rows

    @property
    def total_rows(self) -> int:
        """Rows of the split."""
        return int(self.num_rows.sum())

    def head(self, num_rows: int | None) -> Layout:
        """The first `num_rows` rows alone; None takes all."""
        if num_rows is None or num_rows >= self.total_rows:
            return self
        used = np.clip(num_rows - self.first, 0, self.num_rows)
        kept = used > 0
        columns = (self.part, self.place, used, self.size, self.num_bytes)
        return Layout(self.directory, self.names, *(column[kept] for column in columns))

    def group(self, index: int) -> Group:
        """The row group number `index`."""
        columns = (self.part, self.place, self.first, self.num_rows, self.size)
        return Group(*(int(column[index]) for column in columns))

    def group_of(self, row: int) -> Group:
        """The row group that holds a row."""
        return self.group(int(np.searchsorted(self.first, row, side="right")) - 1)


class Part:
    """An open file of a split; use it in a `with`, or close it."""

    def __init__(self, directory: str, name: str):
        system, inner = filesystem(directory)
        self._source = system.open_input_file(posixpath.join(inner, name))
        # Where files lie far away, all ranges of a read are asked for at once.
        self.file = pq.ParquetFile(self._source, pre_buffer=is_uri(directory))

    def __enter__(self) -> pq.ParquetFile:
        return self.file

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.file.close(force=True)
        self._source.close()
