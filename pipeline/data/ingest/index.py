"""All rows of a run, on disk: which of them stay, and what the tables and the card are made of.

A SQLite database with a cache of fixed size, so that memory does not grow with the rows. It lives as long as the run
does and nobody else opens it: no journal, no locks (which many shared filesystems lack).
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.preferences import JUDGEMENTS, PREFERENCES
from pipeline.data.table import QUARANTINE_SCHEMA, check_bad_rows
from pipeline.records import MediaKind, Quarantined

CACHE_MIB = 16
MOST_UNREAD = 200
_FETCHED_ROWS = 4096

PROMPTS = "prompts"
_ROWS_OF = {PROMPTS: "label IS NOT 0", PREFERENCES: "is_pair", JUDGEMENTS: "label IS NOT NULL"}
"""Which rows are in which table. A bad completion is nobody's reference answer: its prompt has none."""

_COLUMNS = (
    *("number", "shard", "place", "split", "id", "dataset", "task", "modalities", "num_tokens", "num_answer_tokens"),
    *("has_answer", "seconds", "is_pair", "has_margin", "label", "sort_value"),
)
_SCHEMA = f"""
    CREATE TABLE rows (number INTEGER PRIMARY KEY, {", ".join(_COLUMNS[1:])}, stays INTEGER DEFAULT 1);
    CREATE UNIQUE INDEX ids ON rows (id);
    CREATE TABLE unread (dataset, path, num_rows INTEGER, PRIMARY KEY (dataset, path)) WITHOUT ROWID;
    CREATE TABLE repeats (id PRIMARY KEY, times INTEGER) WITHOUT ROWID;
    CREATE TABLE contents (key, number INTEGER, PRIMARY KEY (key, number)) WITHOUT ROWID;
    CREATE TABLE owners (key PRIMARY KEY, split) WITHOUT ROWID;
    CREATE TABLE leaks (number, id, owner);
    CREATE TABLE files (name, number INTEGER, PRIMARY KEY (name, number)) WITHOUT ROWID;
    CREATE TABLE refused (name UNIQUE, reason, detail, is_bad INTEGER);
"""

_ADD = f"INSERT OR IGNORE INTO rows ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_ADD_UNREAD = "INSERT INTO unread VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET num_rows = num_rows + 1"


class Index:
    """Rows of `worker.INDEX_COLUMNS` by their number in the order of the sources."""

    def __init__(self, path: Path | str, *, keeps_unanswered: bool = False) -> None:
        """Makes the database; `:memory:` keeps it off the disk.

        keeps_unanswered: whether prompts stay of which nothing but a bad completion is known.
        """
        self._keeps_unanswered = keeps_unanswered
        self._rows_of = {**_ROWS_OF, PROMPTS: "TRUE"} if keeps_unanswered else _ROWS_OF
        self.database = sqlite3.connect(f"file:{quote(str(path))}?nolock=1", uri=True, isolation_level=None)
        """Others may keep tables of their own here."""
        self.database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_MIB * 1024}; {_SCHEMA}"
        )
        self.database.execute("BEGIN")  # to the end: what is not kept need not be committed

    def close(self) -> None:
        self.database.close()

    def add(self, number: int, row: Mapping[str, Any], *, contents: Iterable[bytes]) -> str:
        """Takes a row in, with what no two splits may share.

        Returns: the id that it has here: its own, or where that is taken its own, a dash and the next number from 2.
        """
        values = {**row, "number": number, "modalities": "+".join(row["modalities"])}
        if self._keeps_unanswered and row["label"] is False:
            values["has_answer"] = False
        id: str = row["id"]
        while not self.database.execute(_ADD, [values[column] for column in _COLUMNS]).rowcount:
            id = values["id"] = f"{row['id']}-{self._times(row['id'])}"
        for key in contents:
            self.database.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (key, number))
        for name in row["files"] or ():
            self.database.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", (name, number))
        for path in row.get("unread") or ():
            self.database.execute(_ADD_UNREAD, (row["dataset"], _spelt(path)))
        return id

    def _times(self, id: str) -> int:
        """How often an id was met so far, with this time."""
        statement = "INSERT INTO repeats VALUES (?, 2) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        return self.database.execute(statement, (id,)).fetchone()[0]

    def leave_out(self, number: int) -> None:
        """The row does not stay."""
        self.database.execute("UPDATE rows SET stays = 0 WHERE number = ?", (number,))

    def own(self, split: str) -> None:
        """The contents of the rows of a split that stay are its own, unless they are another's already."""
        self.database.execute(
            "INSERT OR IGNORE INTO owners SELECT key, split FROM contents CROSS JOIN rows USING (number) "
            "WHERE stays AND split = ?",
            (split,),
        )

    def leaks(self, split: str) -> Iterator[tuple[int, str, str]]:
        """Rows of a split with a content that another split owns: number, id and that split."""
        self.database.execute("DELETE FROM leaks")
        # Apart, so that rows may be left out while this goes on. The order of the joins is that of their indices.
        self.database.execute(
            "INSERT INTO leaks SELECT number, id, MIN(owners.split) FROM owners CROSS JOIN contents USING (key) "
            "CROSS JOIN rows USING (number) WHERE stays AND rows.split = ? GROUP BY number",
            (split,),
        )
        yield from self._each("SELECT * FROM leaks")

    def refuse(self, number: int, row: Quarantined, *, is_bad: bool) -> None:
        """Counts a row that does not stay. Where its name is taken, its number among all rows tells it apart."""
        statement = "INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?)"
        name, detail = _spelt(row.row_id), _spelt(row.detail)
        while not self.database.execute(statement, (name, row.reason, detail, is_bad)).rowcount:
            name = f"{name} (row {number})"

    def reasons(self, *, is_bad: bool) -> dict[str, int]:
        """Refused rows by reason, the most frequent first."""
        return dict(
            self._each(
                "SELECT reason, COUNT(*) FROM refused WHERE is_bad = ? GROUP BY reason ORDER BY 2 DESC, MIN(rowid)",
                is_bad,
            )
        )

    def unread(self) -> list[tuple[str, str, int]]:
        """What nobody reads, the most frequent first: the dataset, the column or key, and in how many good rows it is.

        Of very many, as of keys that are data, the first.
        """
        return list(self._each(f"SELECT * FROM unread ORDER BY num_rows DESC, dataset, path LIMIT {MOST_UNREAD}"))

    def check(self, num_rows: int, max_bad_fraction: float) -> None:
        """Stops a job whose data are bad.

        Raises:
            TooManyBadRows: more than `max_bad_fraction` of `num_rows` are.
        """
        first = next(self._each("SELECT name, reason, detail FROM refused WHERE is_bad LIMIT 1"), None)
        if first:
            check_bad_rows(self.reasons(is_bad=True), Quarantined(*first), num_rows, max_bad_fraction)

    def write_quarantine(self, path: Path) -> None:
        """Writes all refused rows as Parquet: row_id, reason, detail."""
        path.parent.mkdir(parents=True, exist_ok=True)
        cursor = self.database.execute("SELECT name, reason, detail FROM refused ORDER BY rowid")
        with pq.ParquetWriter(path, QUARANTINE_SCHEMA) as out:
            while rows := cursor.fetchmany(_FETCHED_ROWS):
                columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
                out.write_table(pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA))

    def size(self, table: str, split: str) -> int:
        """Rows of a table's split."""
        statement = f"SELECT COUNT(*) FROM rows WHERE stays AND split = ? AND {self._rows_of[table]}"
        return next(self._each(statement, split))[0]

    def places(self, table: str, split: str, *, is_sorted: bool) -> Iterator[tuple[int, int, str]]:
        """Shard, place and id of each row of a split, in order, or by ascending sort value (unknown ones last)."""
        order = "sort_value NULLS LAST, number" if is_sorted else "number"
        which = f"stays AND split = ? AND {self._rows_of[table]}"
        yield from self._each(f"SELECT shard, place, id FROM rows WHERE {which} ORDER BY {order}", split)

    def kinds(self, table: str) -> frozenset[MediaKind]:
        """The kinds of media in the rows of a table."""
        every = self._each(f"SELECT DISTINCT modalities FROM rows WHERE stays AND {self._rows_of[table]}")
        return frozenset(MediaKind(kind) for (kinds,) in every for kind in kinds.split("+") if kind)

    def has_margins(self) -> bool:
        """Whether any row that stays has one."""
        return any(self._each("SELECT 1 FROM rows WHERE stays AND has_margin LIMIT 1"))

    def uses(self, file: str) -> bool:
        """Whether a row that stays has this file in the media store."""
        statement = "SELECT 1 FROM files JOIN rows USING (number) WHERE stays AND name = ? LIMIT 1"
        return any(self._each(statement, file))

    def counts(self, column: str) -> dict[Any, dict[str, int]]:
        """Rows that stay by a column and split."""
        found: dict[Any, dict[str, int]] = defaultdict(dict)
        for value, split, count in self._each(
            f"SELECT {column}, split, COUNT(*) FROM rows WHERE stays GROUP BY 1, 2 ORDER BY 1, 2"
        ):
            found[value][split] = count
        return dict(found)

    def histogram(self, column: str) -> dict[str, dict[float, int]]:
        """How often each known number of a column is in each split, rounded to tenths."""
        found: dict[str, dict[float, int]] = defaultdict(dict)
        for split, value, count in self._each(
            f"SELECT split, ROUND({column}, 1), COUNT(*) FROM rows WHERE stays AND {column} IS NOT NULL "
            "GROUP BY 1, 2 ORDER BY 1, 2"
        ):
            found[split][value] = count
        return dict(found)

    def total(self, column: str) -> float:
        """The sum of a column over the rows that stay."""
        return next(self._each(f"SELECT TOTAL({column}) FROM rows WHERE stays"))[0]

    def _each(self, statement: str, *values: Any) -> Iterator[Any]:
        yield from self.database.execute(statement, values)


def _spelt(text: str) -> str:
    """A text of strangers as it can be written: half of a surrogate pair, which JSON can spell, becomes a `?`."""
    return text.encode(errors="replace").decode()
