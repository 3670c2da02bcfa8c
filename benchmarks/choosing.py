"""The recipes of fusion, joint embedding and decisions, one after the other, over three seeds.

    seed 0, 1, 2 -> jobs.classify  classification.yaml, diagnosis_fusion.yaml   every kind of fusion, single modalities
                 -> jobs.decide    recommendation.yaml                          regret, off-policy estimates
                 -> jobs.retrieve  retrieval.yaml                               recall among 100 scenes
                 -> jobs.retrieve  few_shot.yaml                                digits from few labels
                 -> <out>/seed-k/<recipe>/summary.json -> <out>/report.html, benchmarks/RESULTS.md

    python -m benchmarks.choosing
    python -m benchmarks.choosing --seeds 0 --recipes retrieval few_shot

Figures are of test splits; what was tuned was tuned on validation. What lies there already is not run again, so that an
interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from benchmarks import machine
from pipeline.evaluation.intervals import CONFIDENCE
from pipeline.evaluation.page import Figure, Section, Table, curves, write_page
from pipeline.tracking import read_metrics

RECIPES: Mapping[str, tuple[str, ...]] = {
    "classification": ("jobs.classify",),
    "diagnosis_fusion": ("jobs.classify",),
    "recommendation": ("jobs.decide",),
    "retrieval": ("jobs.retrieve", "evaluate"),
    "few_shot": ("jobs.retrieve", "evaluate"),
}
CURVES: Mapping[str, tuple[str, str]] = {
    "classification": ("accuracy/", "epoch"),
    "diagnosis_fusion": ("accuracy/", "epoch"),
    "recommendation": ("regret/mean", "report"),
    "retrieval": ("loss/", "step"),
    "few_shot": ("loss/", "step"),
}
"""Which metrics are drawn, and along what."""
Summaries = Mapping[str, Sequence[Mapping[str, Any]]]
"""`summary.json` of each seed, by recipe."""


def run_missing(recipe: str, seed: int, directory: Path, overrides: Sequence[str]) -> None:
    """Runs a recipe in a process and a Ray of its own, its output in a log beside it.

    Raises:
        SystemExit: it failed; the message has the log's place.
    """
    job = [*RECIPES[recipe], "--config", f"jobs/recipes/{recipe}.yaml"]
    command = [sys.executable, "-m", *job, f"run.seed={seed}", f"run.directory={directory}", *overrides]
    log = directory.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}, {recipe} > {log}", flush=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    if status:
        sys.exit(f"seed {seed}, {recipe}: failed with status {status}; its output: {log}")
    print(f"seed {seed}, {recipe}: done in {time.monotonic() - started:.0f} s", flush=True)


def over_seeds(values: Iterable[float | None]) -> dict[str, Any]:
    """The mean over seeds, each seed's value, and of several the mean's 95 % interval by Student's t."""
    seeds = [value for value in values if value is not None]
    if not seeds:
        return {"mean": None, "seeds": []}
    found: dict[str, Any] = {"mean": fmean(seeds), "seeds": seeds}
    if len(seeds) > 1:
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * stdev(seeds) / len(seeds) ** 0.5
        found["interval"] = [found["mean"] - half, found["mean"] + half]
    return found


def over_keys(summaries: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, dict[str, Any]]:
    """The numbers in a part of the summaries, each over the seeds."""
    parts = [_inside(each, keys) for each in summaries]
    names = dict.fromkeys(name for part in parts for name, value in part.items() if _number(value) is not None)
    return {name: over_seeds(_number(part.get(name)) for part in parts) for name in names}


def _inside(summary: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    for key in keys:
        summary = summary.get(key) or {}
    return summary


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, int | float) else None


def fusion(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind of fusion its accuracy and the best single modality's, over the seeds."""
    kinds = dict.fromkeys(kind for each in summaries for kind in each["fusion"])
    return {
        kind: {
            name: over_seeds(each["fusion"][kind][name] for each in summaries)
            for name in ("fused", "best_single", "difference")
        }
        for kind in kinds
    }


def result_of(found: Summaries, num_seeds: int) -> dict[str, Any]:
    """The last line: means over the seeds; what was not run is empty."""

    def means(part: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        return {name: each["mean"] for name, each in part.items()}

    decisions = found.get("recommendation", [])
    return {
        "benchmark": "choosing",
        "fusion": {kind: means(each) for kind, each in fusion(found.get("classification", [])).items()},
        "fusion_diagnosis": {kind: means(each) for kind, each in fusion(found.get("diagnosis_fusion", [])).items()},
        "regret": means(over_keys(decisions, "regret")),
        "final_regret": means(over_keys(decisions, "final_regret")),
        "retrieval": means(over_keys(found.get("retrieval", []), "retrieval")),
        "ope_coverage": over_seeds(each.get("ope_coverage") for each in decisions)["mean"],
        "few_shot": means(over_keys(found.get("few_shot", []), "few_shot")),
        "seeds": num_seeds,
    }


def tables(found: Summaries) -> dict[str, Table]:
    """What is found, for the report and `RESULTS.md`."""
    shown: dict[str, Table] = {}
    for recipe in ("classification", "diagnosis_fusion"):
        if of := found.get(recipe):
            rows = [
                (kind, *(_cell(each[name]) for name in ("fused", "best_single", "difference")))
                for kind, each in fusion(of).items()
            ]
            shown[recipe] = Table(("fusion", "accuracy", "best single", "difference"), tuple(rows))
    if of := found.get("recommendation"):
        regret, final = over_keys(of, "regret"), over_keys(of, "final_regret")
        rows = [(name, _cell(regret[name]), _cell(final.get(name, over_seeds([])))) for name in regret]
        covered = over_seeds(each.get("ope_coverage") for each in of)
        rows.append(("doubly robust interval covers the true value", _cell(covered), ""))
        shown["recommendation"] = Table(("algorithm", "regret while learning", "regret on test"), tuple(rows))
    for recipe in ("retrieval", "few_shot"):
        if of := found.get(recipe):
            rows = [(name, _cell(each)) for name, each in over_keys(of, recipe).items()]
            shown[recipe] = Table(("measure", "test"), tuple(rows))
    return shown


def figures(recipe: str, runs: Sequence[Path]) -> tuple[Figure, ...]:
    """The recipe's metrics as curves, each a mean over the runs at the steps that all of them have."""
    prefix, along = CURVES[recipe]
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for stage, rows in read_metrics(run / "metrics").items():
            for row in rows:
                for name in (name for name in row if name.startswith(prefix)):
                    line = stage.removeprefix("decide_") if name == prefix else name.removeprefix(prefix)
                    found.setdefault(line, {}).setdefault(row["step"], []).append(row[name])
    lines = {
        line: [(float(step), fmean(values)) for step, values in points.items() if len(values) == len(runs)]
        for line, points in found.items()
    }
    unit = prefix.rstrip("/")
    return (curves(f"{unit}, mean of the seeds", lines, unit=unit, along=along),) if lines else ()


def _cell(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return ""
    seeds = ", ".join(f"{each:.3f}" for each in value["seeds"])
    low_high = "" if "interval" not in value else " [{:.3f}, {:.3f}]".format(*value["interval"])
    return f"{value['mean']:.3f}{low_high} ({seeds})"


def markdown(shown: Mapping[str, Table]) -> str:
    """The tables, for `RESULTS.md`."""
    lines: list[str] = []
    for name, each in shown.items():
        lines += [f"### {name}", "", f"| {' | '.join(each.header)} |", "|---" * len(each.header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in each.rows] + [""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs what is missing, writes report and table, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="which")
    parser.add_argument("--out", type=Path, default=Path("runs/choosing"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipes'")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    out = options.out.resolve()
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in options.recipes}
    for seed in options.seeds:
        for recipe in options.recipes:
            directory = out / f"seed-{seed}" / recipe
            if not (directory / "summary.json").is_file():
                run_missing(recipe, seed, directory, options.overrides)
            found[recipe].append(json.loads((directory / "summary.json").read_text(encoding="utf-8")))
    shown = tables(found)
    seeds = ", ".join(map(str, options.seeds))
    note = f"Means over the seeds {seeds}, in brackets 95 % intervals of the mean (Student's t), then each seed."
    sections = [
        Section(name, note, table, figures(name, [out / f"seed-{seed}" / name for seed in options.seeds]))
        for name, table in shown.items()
    ]
    write_page(out / "report.html", title="Seeing, hearing and choosing", sections=sections)
    host = machine.describe()
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: choosing\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}\n"
            f"- Command: `{shlex.join(['python', '-m', 'benchmarks.choosing', *given])}`\n"
            f"- {note}\n\n{markdown(shown)}"
        )
    print(f"{markdown(shown)}\n{out / 'report.html'}", flush=True)
    print(json.dumps(result_of(found, len(options.seeds))), flush=True)


if __name__ == "__main__":
    main()
