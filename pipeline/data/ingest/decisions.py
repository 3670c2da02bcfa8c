"""What is decided about a row among all others: ids that repeat, duplicates, contents that two splits share.

Rows come in the order of their sources, and the first of several equals stays, whichever worker prepared them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.config import ConfigError, Leaks, Prepare
from pipeline.data.duplicates import Duplicates, Fingerprint
from pipeline.data.ingest.index import Index
from pipeline.data.ingest.splits import LEAKS_CURE, NAMES
from pipeline.data.schema import Reason, RowError
from pipeline.data.table import TooManyBadRows
from pipeline.records import Quarantined

Row = Mapping[str, Any]
"""A row of `worker.INDEX_COLUMNS`."""


class Decisions:
    """Takes rows in order into the index, and says which stay."""

    def __init__(self, settings: Prepare, index: Index) -> None:
        self._leaks = settings.split.leaks
        self._index = index
        self._duplicates = Duplicates(settings.steps, index.database)
        self.num_rows = 0
        self._num_repeats = 0

    def add(self, row: Row) -> None:
        """Takes the next row.

        Raises:
            TooManyBadRows: it is the rest of a file, which holds nobody knows how many.
        """
        self.num_rows += 1
        number = self.num_rows
        if row["reason"] is not None:
            self._index.refuse(number, Quarantined(row["id"], row["reason"], row["detail"]), is_bad=True)
            if row["reason"] == Reason.LOST_ROWS:
                raise TooManyBadRows(
                    f"{row['id']}: the rest of this file cannot be read, and nobody knows how many rows that is: "
                    f"{row['detail']}. Repair it or fetch it anew; or name the other files as prepare.sources"
                )
            return
        id = self._index.add(number, row, contents=() if self._leaks is Leaks.ALLOW else contents(row))
        self._num_repeats += id != row["id"]
        try:
            self._duplicates.admit(id, _fingerprint(row))
        except RowError as error:
            self._leave_out(number, error.quarantined(id))

    def resolve_leaks(self) -> None:
        """Leaves out what shares a content with a row of a later split, where the recipe says so.

        Raises:
            ConfigError: there are such rows and the recipe says `stop`.
        """
        num_leaks, first = 0, ""
        for split in reversed(NAMES):
            for number, id, owner in self._index.leaks(split):
                detail = f"{split} and {owner} share a content"
                num_leaks, first = num_leaks + 1, first or f"{id} ({detail})"
                self._leave_out(number, Quarantined(id, Reason.LEAK.value, detail))
            self._index.own(split)
        if num_leaks and self._leaks is Leaks.STOP:
            raise ConfigError(
                f"{num_leaks} rows share a medium or a text with a row of another split, first {first}; "
                f"{LEAKS_CURE}, leave_out leaves them out"
            )

    def _leave_out(self, number: int, row: Quarantined) -> None:
        self._index.leave_out(number)
        self._index.refuse(number, row, is_bad=False)

    def report(self) -> str:
        """How many rows were read, refused and left out, by reason."""
        lines = [f"{self.num_rows} rows read"]
        for title, is_bad in (("refused", True), ("left out", False)):
            lines += [f"{title}: {count} {reason}" for reason, count in self._index.reasons(is_bad=is_bad).items()]
        if Reason.LEAK.value in self._index.reasons(is_bad=False):
            lines.append(f"leak: they share a medium, or their whole text, with a later split; {LEAKS_CURE}")
        if self._num_repeats:
            lines.append(
                f"numbered: {self._num_repeats} rows have the id of an earlier one, and a number behind it now; "
                "prepare.ids=place makes ids of the rows' places instead, the step dedup.exact leaves out equal rows"
            )
        lines += [f"not read: {path} in {count} rows of {dataset}" for dataset, path, count in self._index.unread()]
        return "\n".join(lines)


def contents(row: Row) -> list[bytes]:
    """What no two splits may share: the row's media, or its text where it has none."""
    return [bytes.fromhex(key) for key in row["media_keys"] or [row["prompt_key"]]]


def _fingerprint(row: Row) -> Fingerprint:
    signature = row["signature"]
    return Fingerprint(
        key=row["row_key"],
        signature=None if signature is None else np.frombuffer(signature, np.uint64),
        picture_group=row["picture_group"],
        picture_hashes=tuple(row["picture_hashes"]),
    )
