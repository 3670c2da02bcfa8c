"""What is decided about a row among all others: ids that repeat, duplicates, contents that two splits share.

Rows come in the order of their sources, and the first of several equals stays, whichever worker prepared them.
Memory is about two kilobytes a row (more with near duplicates), and nothing of a medium.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.config import ConfigError, Leaks, Prepare
from pipeline.data.duplicates import Duplicates, Fingerprint
from pipeline.data.ingest.splits import NAMES
from pipeline.data.schema import Reason, RowError
from pipeline.data.table import Quarantine
from pipeline.records import Quarantined

Row = Mapping[str, Any]
"""A row of `worker.INDEX_SCHEMA`."""


class Decisions:
    """Takes the rows of the index in order, and says which stay."""

    def __init__(self, settings: Prepare) -> None:
        self._settings = settings
        self._ids: set[str] = set()
        self._duplicates = Duplicates(settings.steps)
        self._kept: dict[tuple[int, str], list[Row | None]] = defaultdict(list)
        self.bad = Quarantine()
        """Rows that something is wrong with; `data.max_bad_fraction` bounds them."""
        self.left_out = Quarantine()
        """Rows that are good, and left out because of other rows."""
        self.num_rows = 0

    def add(self, row: Row) -> None:
        """Takes the next row of the index."""
        self.num_rows += 1
        if row["reason"] is not None:
            self._refuse(self.bad, Quarantined(row["id"], row["reason"], row["detail"]))
            return
        place = self._kept[row["shard"], row["split"]]
        if row["id"] in self._ids:
            # By its place among all rows: its id is the other row's.
            name = f"{row['id']} (row {self.num_rows})"
            self._refuse(self.bad, Quarantined(name, Reason.DUPLICATE_ID.value, "ids are unique"))
            place.append(None)
            return
        self._ids.add(row["id"])
        try:
            self._duplicates.admit(row["id"], _fingerprint(row))
        except RowError as error:
            self._refuse(self.left_out, error.quarantined(row["id"]))
            place.append(None)
        else:
            place.append({name: value for name, value in row.items() if name not in _OF_FINGERPRINT})

    def resolve_leaks(self) -> None:
        """Leaves out what shares a content with a row of a later split, where the recipe says so.

        Raises:
            ConfigError: there are such rows and the recipe says `stop`.
        """
        if self._settings.split.leaks is Leaks.ALLOW:
            return
        owners: dict[str, str] = {}
        leaks: list[Quarantined] = []
        for split in reversed(NAMES):
            lists = [rows for (_, name), rows in self._kept.items() if name == split]
            for rows in lists:
                for index, row in enumerate(rows):
                    owner = row and next((owners[key] for key in contents(row) if key in owners), None)
                    if row and owner:
                        leaks.append(Quarantined(row["id"], Reason.LEAK.value, f"{split} and {owner} share a content"))
                        rows[index] = None
            owners |= {key: split for rows in lists for row in rows if row for key in contents(row)}
        if leaks and self._settings.split.leaks is Leaks.STOP:
            raise ConfigError(
                f"{len(leaks)} rows share a medium or a text with a row of another split, first {leaks[0].row_id} "
                f"({leaks[0].detail}); use prepare.split.by=group, or prepare.split.leaks=leave_out"
            )
        for leak in leaks:
            self._refuse(self.left_out, leak)

    def _refuse(self, quarantine: Quarantine, row: Quarantined) -> None:
        """Each row counts, also where several refused ones have the same id: the later ones get a number."""
        name, number = row.row_id, 1
        while name in self.bad or name in self.left_out:
            number += 1
            name = f"{row.row_id} #{number}"
        quarantine.add(replace(row, row_id=name))

    def kept(self) -> list[Row]:
        """The rows that stay, in order."""
        return [row for (_, rows) in sorted(self._kept.items()) for row in rows if row]

    def masks(self, split: str) -> dict[int, list[bool]]:
        """Of each shard with rows in a split: which of the rows that it put aside stay."""
        return {
            shard: [row is not None for row in rows]
            for (shard, name), rows in sorted(self._kept.items())
            if name == split
        }

    def report(self) -> str:
        """How many rows were read, refused and left out, by reason."""
        lines = [f"{self.num_rows} rows read"]
        lines += [f"refused: {number} {reason}" for reason, number in self.bad.counts().items()]
        lines += [f"left out: {number} {reason}" for reason, number in self.left_out.counts().items()]
        return "\n".join(lines)

    def quarantine(self) -> Quarantine:
        """All rows that do not stay."""
        every = Quarantine()
        for row in (*self.bad, *self.left_out):
            every.add(row)
        return every


_OF_FINGERPRINT = ("row_key", "signature", "picture_group", "picture_hashes")


def _fingerprint(row: Row) -> Fingerprint:
    signature = row["signature"]
    return Fingerprint(
        key=row["row_key"],
        signature=None if signature is None else np.frombuffer(signature, np.uint64),
        picture_group=row["picture_group"],
        picture_hashes=tuple(row["picture_hashes"]),
    )


def contents(row: Row) -> list[str]:
    """What no two splits may share: the row's media, or its text where it has none."""
    return list(row["media_keys"] or ()) or [row["prompt_key"]]
