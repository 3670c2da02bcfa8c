"""Which split a row belongs to: a function of the row alone, so that it holds in every worker and as data grow."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping

from pipeline.config import Recipe, SplitBy, Splitting
from pipeline.data.ingest.shards import SPLITS
from pipeline.data.schema import Reason, RowError

NAMES = ("train", "rl", "validation", "test")

_WORDS = {**SPLITS, "evaluation": "validation"}

LEAKS_CURE = (
    "prepare.split.by=group keeps rows with the same first medium, or the same value of prepare.split.column (such as "
    "the prompt's), in one split; prepare.split.leaks=allow keeps them all"
)

_FEW_ROWS = 3
"""Rows that a share should give on average, where chance is not to leave it without any."""


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
            word = (stated or "").strip().lower()
            # held_out; COCO's train2014, LibriSpeech's dev-clean, MNLI's validation_matched
            split = _WORDS.get(re.sub(r"[-_ ]", "", word)) or _WORDS.get(re.split(r"[-_.\d]", word)[0])
            if split is None:
                raise RowError(
                    Reason.WRONG_TYPE,
                    f"split {stated!r} is none of {', '.join(SPLITS)} (prepare.split.by=column); write one of these, "
                    "name the column that does (prepare.map.split), or set prepare.split.by=hash",
                )
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


def empty_splits(recipe: Recipe, num_rows: Mapping[str, int], *, num_leaks: int = 0) -> list[str]:
    """What to say of splits without a row, where the recipe asks for some or a stage of it reads them; with the cure.

    num_rows: by split. num_leaks: rows that were left out of one because a later one shares a content with them.
    """
    readers = {
        "evaluate.split": recipe.evaluate.split,
        "rlhf.split": recipe.rlhf.split,
        "preferences.split": recipe.preferences.split,
        **({"rlhf.validation.split": recipe.rlhf.validation.split} if recipe.rlhf.evaluate_every else {}),
    }
    splitting, total = recipe.prepare.split, sum(num_rows.values())
    filled = ", ".join(f"{split} has {num_rows[split]}" for split in NAMES if num_rows.get(split)) or "no split has any"
    filled += f"; {num_leaks} more were left out as leak" * (num_leaks > 0)
    lines: list[str] = []
    shares = {} if splitting.by is SplitBy.COLUMN else {split: getattr(splitting, split) for split in NAMES[1:]}
    asked = ("train", *(split for split in NAMES[1:] if split in readers.values() or shares.get(split)))
    empty = [split for split in asked if not num_rows.get(split)]
    for split in empty:
        fields, share = [field for field, read in readers.items() if read == split], shares.get(split)
        if splitting.by is SplitBy.COLUMN:
            cures = [f"have rows that say {split} (prepare.split.by=column)"]
        elif num_leaks > total:
            cures = []
        elif splitting.by is SplitBy.GROUP:
            cures = ["groups may be few: set prepare.split.column to a column of more, or by=hash with leaks=allow"]
        elif share is None:
            cures = ["make prepare.split.rl, validation and test smaller"]
        else:
            # All of these together must leave rows to train on.
            most = 0.5 if len(empty) == 1 else math.floor(100 / (len(empty) + 1)) / 100
            enough = min(most, max(2 * share, round(_FEW_ROWS / max(total, 1), 2)))
            cures = [f"set prepare.split.{split}={enough:g} instead of {share:g}"]
        cures += [LEAKS_CURE] * (num_leaks > 0)
        cures += [f"set {field} to another split" for field in fields]
        lines.append(f"none of {total} rows is in the split {split} ({filled}): {', or '.join(cures)}")
    return lines
