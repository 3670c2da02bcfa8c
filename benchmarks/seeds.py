"""Does the result hold over seeds? The demo once a seed, and one table of what came out.

    seed 0, 1, 2 -> what `make demo` runs, one after the other -> <out>/seed-k/summary.json
                 -> <out>/seeds.json, the report of the first seed with the table, benchmarks/RESULTS.md

    python -m benchmarks.seeds
    python -m benchmarks.seeds --seeds 0 1 --config jobs/recipes/tiny_cpu.yaml -- rlhf.num_steps=60

Left out on purpose: running seeds at once. They would share the cores, and their times would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from jobs.evaluate import publish, samples_file
from pipeline.config import Recipe, load_recipe
from pipeline.evaluation.results import read_samples

Summaries = Mapping[int, Mapping[str, Any]]
"""`summary.json` of each seed."""
Table = dict[str, dict[str, list[float | None]]]
"""Part (`overall` or a task) -> measure -> one value a seed; None where it was not measured."""

OVERALL = "overall"
MEASURES: dict[str, tuple[str, ...]] = {
    "SFT": ("sft", "true_reward"),
    "RLHF": ("rlhf", "true_reward"),
    "gain": ("gain", "value"),
    "SFT contains": ("sft", "contains"),
    "RLHF contains": ("rlhf", "contains"),
    "SFT greedy": ("sft", "greedy_true_reward"),
    "RLHF greedy": ("rlhf", "greedy_true_reward"),
    "SFT learned": ("sft", "learned_reward"),
    "RLHF learned": ("rlhf", "learned_reward"),
    "KL": ("rlhf", "kl"),
    "blind gap": ("blind_gap",),
}
"""Columns of the table, and where `summary.json` holds them in each part."""


def run_seed(recipe: Recipe, command: Sequence[str], log: Path) -> None:
    """Runs the quickstart in a process of its own, its output in `log`.

    Raises:
        SystemExit: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"seed {recipe.run.seed}: {shlex.join(command)} > {log}", flush=True)
    with log.open("wb") as out:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        ended = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"seed {recipe.run.seed} failed with status {ended.returncode}; its output: {log}")
    print(f"seed {recipe.run.seed}: done in {time.monotonic() - started:.0f} s", flush=True)


def collect(summaries: Summaries) -> Table:
    """The measures of all seeds, `overall` first, then the tasks in the order of the first seed.

    Raises:
        ValueError: the seeds do not have the same tasks.
    """
    tasks = {seed: list(summary["tasks"]) for seed, summary in summaries.items()}
    first = next(iter(tasks.values()))
    different = [seed for seed, names in tasks.items() if set(names) != set(first)]
    if different:
        raise ValueError(f"seeds {different} have other tasks than {first}: they are runs of different recipes")
    parts = {OVERALL: [summary["overall"] for summary in summaries.values()]}
    parts |= {task: [summary["tasks"][task] for summary in summaries.values()] for task in first}
    return {
        name: {measure: [_value(part, path) for part in by_seed] for measure, path in MEASURES.items()}
        for name, by_seed in parts.items()
    }


def _value(part: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = part
    for key in path:
        value = None if value is None else value.get(key)
    return value


def mean(values: Sequence[float | None]) -> float | None:
    """Mean over seeds; None where a seed has no value, so that no mean is over fewer seeds than it seems."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def report_rows(table: Table, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The table as the report shows it: a row a seed, overall measures first, then each task's gain."""
    columns = {name: values for name, values in table[OVERALL].items() if any(value is not None for value in values)}
    columns |= {f"{task}: gain": measures["gain"] for task, measures in table.items() if task != OVERALL}
    return [{"seed": seed, **{name: row[place] for name, row in columns.items()}} for place, seed in enumerate(seeds)]


def markdown(table: Table, seeds: Sequence[int]) -> str:
    """The table for `RESULTS.md`: for each part the mean, then every seed."""
    lines = ["| | seed | " + " | ".join(MEASURES) + " |", "|---|---|" + "---:|" * len(MEASURES)]
    for name, measures in table.items():
        means = " | ".join(f"**{cell}**" if (cell := _cell(mean(row))) else "" for row in measures.values())
        lines.append(f"| **{name}** | **mean** | {means} |")
        for place, seed in enumerate(seeds):
            lines.append(f"| {name} | {seed} | " + " | ".join(_cell(row[place]) for row in measures.values()) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def append_result(path: Path, *, command: str, table: str, total_s: Sequence[float]) -> None:
    """Adds a dated section with the machine, the command and the table to `path`."""
    host = machine.describe()
    date = datetime.now(UTC).date().isoformat()
    seconds = ", ".join(f"{seconds:.0f} s" for seconds in total_s)
    section = (
        f"\n## {date}: seeds\n\n"
        f"- Machine: {host['cores']} cores, {host['cpu']}\n"
        f"- Command: `{command}`\n"
        f"- Time of each run: {seconds}\n\n"
        f"{table}\n"
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(section)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs the seeds, collects, writes, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/recipes/tiny_cpu.yaml"), help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("--reuse", action="store_true", help="keep a seed whose summary.json lies there already")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    summaries: dict[int, Mapping[str, Any]] = {}
    recipes: list[Recipe] = []
    for seed in options.seeds:
        directory: Path = options.out.resolve() / f"seed-{seed}"
        overrides = [*options.overrides, f"run.seed={seed}", f"run.directory={directory}"]
        recipes.append(load_recipe(options.config, overrides))
        if not (options.reuse and (directory / "summary.json").is_file()):
            job = ["python", "-m", "jobs.quickstart", "--config", str(options.config.resolve()), *overrides]
            run_seed(recipes[-1], [sys.executable, "-m", "jobs.local", "--", *job], options.out / f"seed-{seed}.log")
        summaries[seed] = json.loads((directory / "summary.json").read_text())

    table = collect(summaries)
    total_s = [float(summary["total_s"]) for summary in summaries.values()]
    command = shlex.join(["python", "-m", "benchmarks.seeds", *given])
    result = {
        "benchmark": "seeds",
        "command": command,
        "machine": machine.describe(),
        "seeds": options.seeds,
        "total_s": total_s,
        "mean": {name: {measure: mean(row) for measure, row in row.items()} for name, row in table.items()},
        "by_seed": table,
    }
    (options.out / "seeds.json").write_text(json.dumps(result, indent=2))
    publish(recipes[0], read_samples(samples_file(recipes[0])), seeds_table=report_rows(table, options.seeds))
    append_result(options.results, command=command, table=markdown(table, options.seeds), total_s=total_s)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
