"""Rows as workers describe them to the driver."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.data.ingest.worker import INDEX_COLUMNS


def key(text: str) -> str:
    """A content key."""
    return hashlib.sha256(text.encode()).hexdigest()


def described(id: str, *, media: Sequence[str] = (), text: str = "", **more: Any) -> dict[str, Any]:
    """A good row; rows without a text of their own have that of their id."""
    return {
        **dict.fromkeys(INDEX_COLUMNS),
        "shard": 0,
        "place": 0,
        "id": id,
        "split": "train",
        "dataset": "set",
        "task": "a",
        "modalities": [],
        "has_answer": True,
        "seconds": 0.0,
        "is_pair": False,
        "has_margin": False,
        "media_keys": [key(each) for each in media],
        "prompt_key": key(text or id),
        "row_key": key(text + "".join(media) or id),
        "signature": None,
        "picture_group": "",
        "picture_hashes": [],
        **more,
    }


def refused(id: str, reason: str = "not_found") -> dict[str, Any]:
    """A bad row."""
    return {**dict.fromkeys(INDEX_COLUMNS), "shard": 0, "id": id, "reason": reason, "detail": "gone"}
