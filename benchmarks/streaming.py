"""Does memory stay flat while training reads? A large table of real pictures is streamed to its end.

    pictures -> table -> Ray Data -> blocks in the object store -> a worker that opens every batch
                              \\-> driver: references alone

    python -m benchmarks.streaming
    python -m benchmarks.streaming --rows 1000000 --out runs/streaming

At ten points it notes the driver's resident memory, what the object store holds, and the rows a second since the point
before. Flat means that the last point is like the first, whatever the number of rows.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.config import MediaLimits
from pipeline.data.media import encode_png
from pipeline.data.schema import to_row
from pipeline.data.table import write_prompts
from pipeline.records import MediaKind, Medium, Message, Prompt

NUM_POINTS = 10
BATCH_ROWS = 64
IN_FLIGHT = 4
"""Batches that the worker has before it."""
SIDE = 16
"""Of the pictures, in pixels."""


@dataclass(frozen=True)
class Point:
    """What was seen after `rows` rows."""

    rows: int
    driver_mib: float
    store_mib: float
    rows_per_s: float


def rows_of(num_rows: int, *, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the prompt table, with a picture of random pixels in each."""
    random = np.random.default_rng(seed)
    for number in range(num_rows):
        picture = encode_png(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        prompt = Prompt(
            id=f"row-{number:08d}",
            task="noise",
            messages=(Message("user", "<image>What is this?"),),
            media=(Medium(MediaKind.IMAGE, picture, f"{number}.png"),),
            answer=str(number),
        )
        yield to_row(prompt, ())


def stream(directory: Path, *, num_rows: int, shuffle_rows: int, num_readers: int) -> list[Point]:
    """Reads the table once, every batch opened by a worker, in this process's Ray."""
    # Here, because Ray reads its environment when it is imported.
    import ray

    from pipeline.config import Dataset
    from pipeline.data.datasets import Datasets, RowRef
    from pipeline.data.layout import Layout
    from pipeline.data.media import decode
    from pipeline.data.order import Mixture, Order
    from pipeline.data.stream import RowStream

    @ray.remote(num_cpus=0)
    class Reader:
        """Does what an encoder does before its model: reads the rows of a batch and decodes their media."""

        def __init__(self) -> None:
            self._datasets = Datasets([Dataset(path=str(directory))], "train")

        def read(self, rows: list[RowRef]) -> int:
            prompts: list[Any] = self._datasets.read(rows)
            for prompt in prompts:
                decode(prompt.media[0], MediaLimits(isolate_decoders=False))
            return len({prompt.id for prompt in prompts})

    order = Order(Layout.read(str(directory), "train"), seed=0, batch_rows=BATCH_ROWS, shuffle_rows=shuffle_rows)
    rows = RowStream([order], Mixture([1.0]), position=0, num_readers=num_readers)
    reader: Any = Reader.remote()
    process = psutil.Process()
    points: list[Point] = []
    num_read, since = 0, time.monotonic()
    for part in range(NUM_POINTS):
        start, end = num_rows * part // NUM_POINTS, num_rows * (part + 1) // NUM_POINTS
        pending: deque[Any] = deque()
        while pending or rows.position < end:
            if rows.position < end and len(pending) < IN_FLIGHT:
                pending.append(reader.read.remote(rows.draw(min(BATCH_ROWS, end - rows.position))))
            else:
                num_read += int(ray.get(pending.popleft()))
        now = time.monotonic()
        rate = (end - start) / (now - since)
        points.append(Point(num_read, process.memory_info().rss / 2**20, store_bytes() / 2**20, rate))
        print(markdown(points).splitlines()[-1], flush=True)
        since = time.monotonic()
    rows.close()
    ray.kill(reader)
    return points


def store_bytes() -> float:
    """Bytes in use in the object store of all nodes."""
    import ray

    total = ray.cluster_resources().get("object_store_memory", 0.0)
    return total - ray.available_resources().get("object_store_memory", 0.0)


def markdown(points: Sequence[Point]) -> str:
    """The points as a table, and the last to the first."""
    lines = ["| rows | driver RSS [MiB] | object store [MiB] | rows/s |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {each.rows:,} | {each.driver_mib:.0f} | {each.store_mib:.1f} | {each.rows_per_s:.0f} |" for each in points
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: makes the table, streams it, prints the points; 1 where a row was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--shuffle-rows", type=int, default=4096, help="data.shuffle_rows")
    parser.add_argument("--readers", type=int, default=2, help="data.num_readers")
    parser.add_argument("--out", type=Path, default=Path("runs/streaming"), help="where the table goes")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    # A token of this run's own, so that Ray leaves no file in the home directory; workers inherit the rest.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}

    from jobs.command import connect

    out: Path = options.out.resolve()
    started = time.monotonic()
    write_prompts(out / "train.parquet", rows_of(options.rows, seed=0))
    size = (out / "train.parquet").stat().st_size / 2**20
    print(f"table of {options.rows:,} rows, {size:.0f} MiB, written in {time.monotonic() - started:.0f} s", flush=True)
    connect(address="local", num_cpus=2, object_store_memory=512 * 2**20)
    points = stream(out, num_rows=options.rows, shuffle_rows=options.shuffle_rows, num_readers=options.readers)
    first, last = points[0], points[-1]
    print(f"\n{markdown(points)}\n")
    print(
        f"last / first: driver {last.driver_mib / first.driver_mib:.2f}, object store "
        f"{last.store_mib / max(first.store_mib, 1e-9):.2f}, rows/s {last.rows_per_s / first.rows_per_s:.2f}"
    )
    return 0 if last.rows == options.rows else 1


if __name__ == "__main__":
    sys.exit(main())
