"""Which split a row belongs to: a function of the row alone, so that it holds in every worker and as data grow."""

from __future__ import annotations

import hashlib

from pipeline.config import SplitBy, Splitting
from pipeline.data.ingest.shards import SPLITS
from pipeline.data.schema import Reason, RowError

NAMES = ("train", "rl", "validation", "test")


def split_of(
    splitting: Splitting,
    *,
    id: str,
    place: str,
    stated: str | None,
    group: str | None,
    first_medium: str | None,
    seed: int,
) -> str:
    """The split of a row.

    Args:
        stated: what the source says.
        group: the value of the group's column; `first_medium` (its content) stands in where there is none.
        place: where the row lies in its source.

    Raises:
        RowError: `column` and the source names no split, or an unknown one.
    """
    match splitting.by:
        case SplitBy.COLUMN:
            split = SPLITS.get((stated or "").strip().lower())
            if split is None:
                known = ", ".join(SPLITS)
                raise RowError(Reason.WRONG_TYPE, f"split {stated!r} is none of {known} (prepare.split.by=column)")
            return split
        case SplitBy.FRACTION:
            return _drawn(f"{seed}:{place}", splitting)
        case SplitBy.HASH:
            return _drawn(id, splitting)
        case SplitBy.GROUP:
            return _drawn(group if group is not None else first_medium or id, splitting)


def _drawn(key: str, splitting: Splitting) -> str:
    place = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    if place < splitting.test:
        return "test"
    if place < splitting.test + splitting.validation:
        return "validation"
    return "rl" if place < splitting.test + splitting.validation + splitting.rl else "train"
