"""`jobs.prepare` against a plain loop and against `datasets.map`: rows and megabytes a second, and memory by size.

    python -m benchmarks.ingest
    python -m benchmarks.ingest --rows 4000 16000 --side 192 --repeats 3

All three read the same JSON Lines with pictures by path, decode each picture, hash its pixels, shrink it to half,
encode it again and write Parquet with the bytes inside. The loop does it in one process, `datasets` in two; neither
checks anything. Both write PNG as Pillow does at level 4; `jobs.prepare` writes photographs by one filter, no larger.
`jobs.prepare` on two CPUs also looks at every file before it decodes it, decodes in a process apart, checks rows and
repeated ids, finds duplicates and leaks, splits, and writes card and quarantine. It runs twice: as a command where no
cluster is, and on a Ray of its own, as a submitted job.

Each side runs in a process of its own, one after the other, for every number of rows. Starting takes as long for few
rows as for many, so the rate is that of the rows by which the largest and the smallest differ, and what is left of the
time of `jobs.prepare`, its imports and Ray included, is `fixed_s`. Memory is the peak over the whole process tree of
pages that only one process holds (USS). CPU-seconds, of the whole tree too, say most where the machine is not quiet.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import machine

RESULTS = Path(__file__).parent / "RESULTS.md"
SOURCE = "rows.jsonl"
ROWS_PER_GROUP = 32
WATCH_S = 2.0
"""Adding up the pages of Ray's twenty processes takes a tenth of a second."""


@dataclass(frozen=True)
class Measured:
    """One side on one number of rows: wall and CPU-seconds, peak MiB of its process tree, and of that the driver's."""

    seconds: float
    cpu_s: float
    tree_mib: float
    driver_mib: float


def make_source(directory: Path, num_rows: int, side: int) -> int:
    """Rows in LLaVA's format, each with a picture of its own; returns the bytes of all pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side)), np.uint8)
    num_bytes = 0
    with (directory / SOURCE).open("w", encoding="utf-8") as file:
        for index in range(num_rows):
            picture = np.roll(base, (index % side, index // side), axis=(0, 1)) ^ np.uint8(index % 7)
            Image.fromarray(picture).save(directory / f"{index}.jpg", quality=85)
            num_bytes += (directory / f"{index}.jpg").stat().st_size
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"picture {index}"}]
            file.write(json.dumps({"id": str(index), "image": f"{index}.jpg", "conversations": turns}) + "\n")
    return num_bytes


def shrunk(row: dict[str, Any], directory: Path, side: int) -> dict[str, Any]:
    """What every side does with a row."""
    with Image.open(io.BytesIO((directory / row["image"]).read_bytes())) as file:
        picture = file.convert("RGB")
    key = hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()
    smaller = picture.resize((side // 2, side // 2), Image.Resampling.LANCZOS)
    png = io.BytesIO()
    smaller.save(png, format="PNG", compress_level=4)
    question, answer = (turn["value"] for turn in row["conversations"])
    return {
        "id": row["id"],
        "prompt": [{"role": "user", "content": question}],
        "images": [{"bytes": png.getvalue(), "path": row["image"]}],
        "answer": answer,
        "sources": [key],
    }


def plain(source: Path, target: Path, side: int) -> None:
    """One process, one row after the other."""
    writer: pq.ParquetWriter | None = None
    with (source / SOURCE).open(encoding="utf-8") as lines:
        group: list[dict[str, Any]] = []
        for line in lines:
            group.append(shrunk(json.loads(line), source, side))
            if len(group) == ROWS_PER_GROUP:
                table = pa.Table.from_pylist(group)
                writer = writer or pq.ParquetWriter(target / "train.parquet", table.schema, compression="zstd")
                writer.write_table(table)
                group = []
        if writer is not None:
            if group:
                writer.write_table(pa.Table.from_pylist(group))
            writer.close()


def hugging_face(source: Path, target: Path, side: int) -> None:
    """`datasets`, two processes."""
    import datasets

    datasets.disable_progress_bars()
    cache = str(target / "cache")
    rows: Any = datasets.load_dataset("json", data_files=str(source / SOURCE), split="train", cache_dir=cache)
    mapped = rows.map(
        shrunk, fn_kwargs={"directory": source, "side": side}, num_proc=2, remove_columns=rows.column_names
    )
    mapped.to_parquet(str(target / "train.parquet"))


def polyphony_on_ray(source: Path, target: Path, side: int) -> None:
    """`jobs.prepare` on a local Ray with two CPUs, as a submitted job runs it."""
    from jobs.command import connect

    connect(copies=False, address="local", num_cpus=2, object_store_memory=512 * 2**20)
    polyphony(source, target, side)


def polyphony(source: Path, target: Path, side: int) -> None:
    """`jobs.prepare` as `python -m` runs it where there is no cluster."""
    from jobs import prepare
    from pipeline.config import load_recipe

    recipe = load_recipe(
        None,
        [
            f"prepare.sources=[{{path: {source / SOURCE}}}]",
            f"prepare.steps=[{{step: image.resize, max_side: {side // 2}}}, {{step: dedup.exact}}]",
            "prepare.count_tokens=false",
            f"run.directory={target}",
        ],
    )
    prepare.ingest(recipe, prepare.shards_to_read(recipe))


SIDES: dict[str, Callable[[Path, Path, int], None]] = {
    "plain loop": plain,
    "datasets.map(num_proc=2)": hugging_face,
    "jobs.prepare": polyphony,
    "jobs.prepare on Ray": polyphony_on_ray,
}


def watch(stop: threading.Event, peaks: dict[str, float]) -> None:
    """Keeps the peaks of memory of this process and of all below it, in MiB, and the CPU-seconds that each has used."""
    this, used = psutil.Process(), dict[int, float]()
    while not stop.is_set():
        stop.wait(WATCH_S)
        sizes: list[float] = []
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.Error):
                used[process.pid] = sum(process.cpu_times()[:2])
                sizes.append(process.memory_full_info().uss / 2**20)
        peaks["cpu"] = sum(used.values())
        peaks["driver"] = max(peaks.get("driver", 0.0), sizes[0])
        peaks["tree"] = max(peaks.get("tree", 0.0), sum(sizes))


def run_side(name: str, source: Path, side: int) -> None:
    """Runs one side in this process and prints what was measured."""
    stop, peaks = threading.Event(), dict[str, float]()
    watcher = threading.Thread(target=watch, args=(stop, peaks), daemon=True)
    with tempfile.TemporaryDirectory(prefix="ingest-") as target:
        watcher.start()
        SIDES[name](source, Path(target), side)
        seconds = time.time() - psutil.Process().create_time()
        stop.set()
        watcher.join()
    print(json.dumps(vars(Measured(seconds, peaks["cpu"], peaks["tree"], peaks["driver"]))), flush=True)


def measure(name: str, source: Path, side: int) -> Measured:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--run", name, "--source", str(source), "--side", str(side)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


Runs = dict[str, dict[int, list[Measured]]]
"""By side and number of rows."""


def measured(rows: Sequence[int], side: int, repeats: int, directory: Path) -> tuple[Runs, float]:
    """Measures all sides on all numbers of rows; and the bytes of a picture."""
    num_bytes = [make_source(directory / str(number), number, side) for number in rows]
    found: Runs = {name: {number: [] for number in rows} for name in SIDES}
    for _ in range(repeats):
        for number in rows:
            for name in SIDES:
                found[name][number].append(measure(name, directory / str(number), side))
    return found, sum(num_bytes) / sum(rows)


def line_of(by_rows: dict[int, list[Measured]], what: str) -> tuple[float, float]:
    """Seconds a row and seconds before the first, by the smallest and the largest number of rows."""
    fewest, most = min(by_rows), max(by_rows)
    few, many = (statistics.median(getattr(each, what) for each in by_rows[number]) for number in (fewest, most))
    slope = (many - few) / (most - fewest)
    return slope, few - slope * fewest


def table(found: Runs, bytes_a_row: float) -> Iterator[str]:
    """The lines of the report."""
    rows = next(iter(found.values()))
    columns = " | ".join(f"{number} rows: s, CPU-s, MiB, driver MiB" for number in rows)
    yield f"| | rows/s | CPU-ms a row | MB/s | to the plain loop | {columns} |"
    yield "|---|---:|---:|---:|---:|" + "---:|" * len(rows)
    plain_s, _ = line_of(found["plain loop"], "seconds")
    for name, by_rows in found.items():
        cells = [
            f"{statistics.median(each.seconds for each in runs):.1f}, "
            f"{statistics.median(each.cpu_s for each in runs):.1f}, {max(each.tree_mib for each in runs):.0f}, "
            f"{max(each.driver_mib for each in runs):.0f}"
            for runs in by_rows.values()
        ]
        row_s, _ = line_of(by_rows, "seconds")
        cpu_s, _ = line_of(by_rows, "cpu_s")
        rates = f"{1 / row_s:.0f} | {1e3 * cpu_s:.2f} | {bytes_a_row / row_s / 1e6:.1f} | {plain_s / row_s:.2f}x"
        yield f"| {name} | {rates} | {' | '.join(cells)} |"


def summary(found: Runs) -> dict[str, Any]:
    """The same for machines; what is fixed is of `jobs.prepare` without a cluster."""
    lines = {name: line_of(by_rows, "seconds") for name, by_rows in found.items()}
    names = {name: name.partition("(")[0] for name in found}
    return {
        "benchmark": "ingest",
        "rows_per_s": {names[name]: round(1 / row_s, 1) for name, (row_s, _) in lines.items()},
        "fixed_s": round(lines["jobs.prepare"][1], 1),
        "cpu_ms_per_row": {names[name]: round(1e3 * line_of(runs, "cpu_s")[0], 2) for name, runs in found.items()},
        "fixed_cpu_s": round(line_of(found["jobs.prepare"], "cpu_s")[1], 1),
        "tree_mib": {
            str(number): round(max(each.tree_mib for each in runs)) for number, runs in found["jobs.prepare"].items()
        },
    }


def main() -> None:
    """Measures and adds a section to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4_000, 12_000, 36_000], help="numbers of rows")
    parser.add_argument("--side", type=int, default=128, help="side of the pictures, in pixels")
    parser.add_argument("--repeats", type=int, default=1, help="how often each side runs on each number of rows")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to which the table is added")
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_side(options.run, options.source, options.side)
        return
    facts = machine.describe()
    lines = [
        f"\n## {datetime.now(UTC):%Y-%m-%d}: ingest\n",
        f"- Machine: {facts['cores']} cores, {facts['cpu']}",
        f"- Command: `{shlex.join(['python', '-m', 'benchmarks.ingest', *sys.argv[1:]])}`",
        f"- Pictures: JPEG, {options.side}x{options.side}\n",
    ]
    with tempfile.TemporaryDirectory(prefix="ingest-source-") as directory:
        found, bytes_a_row = measured(options.rows, options.side, options.repeats, Path(directory))
    lines += table(found, bytes_a_row)
    print("\n".join(lines))
    with options.results.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
