"""Small prompt tables for tests, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.schema import PROMPT_SCHEMA, to_row
from pipeline.records import MediaKind, Medium, Message, Prompt


def picture_prompt(number: int, *, path: str | None = None, data: bytes = b"picture") -> Prompt:
    """A prompt with one medium, or without bytes where `path` names it."""
    return Prompt(
        id=f"row-{number}",
        task="task",
        messages=(Message("user", f"<image>Question {number}?"),),
        media=(Medium(MediaKind.IMAGE, data, path),),
        answer=str(number),
    )


def write_parts(
    directory: Path, group_sizes: Sequence[Sequence[int]], *, split: str = "train", data: bytes = b"picture"
) -> None:
    """A split of as many parts as there are lists, each with row groups of these sizes; ids count the rows."""
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    for part, sizes in enumerate(group_sizes):
        whole = f"{split}.parquet"
        name = whole if len(group_sizes) == 1 else f"{split}-{part:05d}-of-{len(group_sizes):05d}.parquet"
        with pq.ParquetWriter(directory / name, PROMPT_SCHEMA) as out:
            for size in sizes:
                rows = [to_row(picture_prompt(row, data=data), ()) for row in range(number, number + size)]
                out.write_table(pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA), row_group_size=size)
                number += size
