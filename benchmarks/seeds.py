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
from dataclasses import asdict, dataclass
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
Bounds = dict[str, dict[str, list[tuple[float, float] | None]]]
"""The same for the bounds of intervals, of the measures that have them."""

OVERALL = "overall"
MEASURES: dict[str, tuple[str, ...]] = {
    "SFT": ("sft", "true_reward"),
    "RLHF": ("rlhf", "true_reward"),
    "gain": ("gain", "value"),
    "SFT contains": ("sft", "contains"),
    "RLHF contains": ("rlhf", "contains"),
    "contains gain": ("contains_gain", "value"),
    "skill gain": ("skill_gain",),
    "manner gain": ("manner_gain",),
    "SFT any of k": ("any_of_k", "sft"),
    "RLHF any of k": ("any_of_k", "rlhf"),
    "SFT greedy": ("sft", "greedy_true_reward"),
    "RLHF greedy": ("rlhf", "greedy_true_reward"),
    "greedy gain": ("greedy_gain", "value"),
    "SFT learned": ("sft", "learned_reward"),
    "RLHF learned": ("rlhf", "learned_reward"),
    "KL": ("rlhf", "kl"),
    "swapped gap": ("swapped_gap",),
    "blind gap": ("blind_gap",),
    "demonstrator": ("demonstrator", "true_reward"),
    "demonstrator contains": ("demonstrator", "contains"),
    "demonstrator graded": ("demonstrator", "graded"),
    "SFT graded": ("sft", "distance"),
    "RLHF graded": ("rlhf", "distance"),
}
"""Columns of the table, and where `summary.json` holds them in each part."""
INTERVALS = {
    "gain": "gain",
    "contains gain": "contains_gain",
    "skill gain": "skill_gain",
    "manner gain": "manner_gain",
    "greedy gain": "greedy_gain",
}
"""Columns with 95 % intervals, and the key of what has them."""


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
    return {
        name: {measure: [_value(part, path) for part in by_seed] for measure, path in MEASURES.items()}
        for name, by_seed in _parts(summaries).items()
    }


def collect_bounds(summaries: Summaries) -> Bounds:
    """The intervals of all seeds, in the order of `collect`."""
    return {
        name: {measure: [_bounds(part, key) for part in by_seed] for measure, key in INTERVALS.items()}
        for name, by_seed in _parts(summaries).items()
    }


def _parts(summaries: Summaries) -> dict[str, list[Mapping[str, Any]]]:
    tasks = {seed: list(summary["tasks"]) for seed, summary in summaries.items()}
    first = next(iter(tasks.values()))
    different = [seed for seed, names in tasks.items() if set(names) != set(first)]
    if different:
        raise ValueError(f"seeds {different} have other tasks than {first}: they are runs of different recipes")
    parts: dict[str, list[Mapping[str, Any]]] = {OVERALL: [summary["overall"] for summary in summaries.values()]}
    return parts | {task: [summary["tasks"][task] for summary in summaries.values()] for task in first}


def _bounds(part: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """Of an estimate, or of a number with its interval beside it."""
    found = part.get(key)
    low_high = (found["low"], found["high"]) if isinstance(found, Mapping) else part.get(f"{key}_interval")
    return None if low_high is None else (low_high[0], low_high[1])


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


@dataclass(frozen=True)
class Verdict:
    """Whether the result holds.

    above_zero: measure -> seed -> whether the paired 95 % interval overall lies above zero; None: not measured.
    risen: tasks in which `contains` rises on average over the seeds; num_tasks: of how many.
    """

    above_zero: dict[str, dict[int, bool | None]]
    risen: tuple[str, ...]
    num_tasks: int

    def __str__(self) -> str:
        def said(above: bool | None) -> str:
            return "not measured" if above is None else "yes" if above else "no"

        gains = "; ".join(
            f"{measure}: " + ", ".join(f"seed {seed} {said(above)}" for seed, above in by_seed.items())
            for measure, by_seed in self.above_zero.items()
        )
        names = f" ({', '.join(self.risen)})" if self.risen else ""
        return (
            f"Paired 95 % interval above zero overall: {gains}. On average over the seeds, contains rises in "
            f"{len(self.risen)} of {self.num_tasks} tasks{names}."
        )


def verdict(table: Table, bounds: Bounds, seeds: Sequence[int]) -> Verdict:
    """What the seeds say of the gain in exact matches and of that in `contains`."""
    rises = {task: mean(row["contains gain"]) for task, row in table.items() if task != OVERALL}
    return Verdict(
        above_zero={
            measure: {
                seed: None if found is None else found[0] > 0
                for seed, found in zip(seeds, bounds[OVERALL][measure], strict=True)
            }
            for measure in ("gain", "contains gain")
        },
        risen=tuple(task for task, rise in rises.items() if rise is not None and rise > 0),
        num_tasks=len(rises),
    )


def markdown(table: Table, seeds: Sequence[int], bounds: Bounds) -> str:
    """The table for `RESULTS.md`: for each part the mean, then every seed with its intervals."""
    lines = ["| | seed | " + " | ".join(MEASURES) + " |", "|---|---|" + "---:|" * len(MEASURES)]
    for name, measures in table.items():
        means = " | ".join(f"**{cell}**" if (cell := _cell(mean(row))) else "" for row in measures.values())
        lines.append(f"| **{name}** | **mean** | {means} |")
        for place, seed in enumerate(seeds):
            cells = (
                _cell(row[place], bounds[name][measure][place] if measure in INTERVALS else None)
                for measure, row in measures.items()
            )
            lines.append(f"| {name} | {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None, bounds: tuple[float, float] | None = None) -> str:
    interval = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
    return "" if value is None else f"{value:.3f}{interval}"


def append_result(path: Path, *, command: str, table: str, verdict: str, total_s: Sequence[float]) -> None:
    """Adds a dated section with the machine, the command, the verdict and the table to `path`."""
    host = machine.describe()
    date = datetime.now(UTC).date().isoformat()
    seconds = ", ".join(f"{seconds:.0f} s" for seconds in total_s)
    section = (
        f"\n## {date}: seeds\n\n"
        f"- Machine: {host['cores']} cores, {host['cpu']}\n"
        f"- Command: `{command}`\n"
        f"- Time of each run: {seconds}\n"
        f"- {verdict}\n\n"
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
        summaries[seed] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))

    table, bounds = collect(summaries), collect_bounds(summaries)
    found = verdict(table, bounds, options.seeds)
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
        "intervals": bounds,
        "verdict": asdict(found),
    }
    (options.out / "seeds.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    publish(recipes[0], read_samples(samples_file(recipes[0])), seeds_table=report_rows(table, options.seeds))
    append_result(
        options.results,
        command=command,
        table=markdown(table, options.seeds, bounds),
        verdict=str(found),
        total_s=total_s,
    )
    print(found)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
