"""How fast is it? Pairs per second of DPO on pictures and text, beside TRL's DPOTrainer on the same work.

    tiny checkpoint, pairs on pictures --+--> jobs.preference.run on a local Ray --+--> pairs/CPU-s, pairs/s, ratio
                                         +--> TRL's DPOTrainer --------------------+
                                   in turns, one core, one thread each, a process tree of its own each

    python -m benchmarks.dpo_vs_trl                         # TRL in this environment, which its DPOTrainer works in
    python -m benchmarks.dpo_vs_trl --venv runs/trl-venv --repeats 5 -- preference.micro_batch_tokens=4096

What is fair is what `benchmarks.vs_trl` says. Every pair is new on both sides, so that nothing is known of it: each
pays for its picture, for the reference and for the step. Polyphony asks the reference first and TRL in each step; its
pairs a second count both. Later epochs, in which Polyphony asks it no more, are not measured. Towers are frozen on both
sides.
Steps to warm up are left out, and so is the last.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.dpo_vs_trl_ours import REFERENCE, STEP
from benchmarks.vs_trl import SEED, Place, Work, prepare, quiet
from benchmarks.vs_trl_watch import Moment, intervals, watch
from pipeline.config import load_recipe
from pipeline.data.table import write_preferences
from pipeline.models.processing import load_processor
from pipeline.models.tokens import answer_ids
from pipeline.records import Preference, RaterKind
from pipeline.tracking import read_lines

BETA, LEARNING_RATE = 0.1, 1e-4
HELD_OUT = 0.02


class Run(NamedTuple):
    """A run of one side: seconds of CPU and of the clock that a step takes, the reference's part included."""

    name: str
    cpu_s: float
    wall_s: float


def write_pairs(place: Place) -> None:
    """The rows' answers against the same with a word more, for both sides."""
    rows = pq.read_table(place.data / "peer.parquet", columns=["id", "prompt", "images", "answer"]).to_pylist()
    tokenizer = load_processor(place.checkpoint, trust_remote_code=False).tokenizer
    ours: list[Preference] = []
    theirs: list[dict[str, Any]] = []
    for row in rows:
        chosen, rejected = row["answer"], f"{row['answer']} maybe"
        good, bad = (tuple(answer_ids(tokenizer, text)) for text in (chosen, rejected))
        ours.append(Preference(row["id"], good, bad, chosen, rejected, "benchmark", RaterKind.DATASET))
        turns = [{**turn, "content": turn["content"].removeprefix("<image>")} for turn in row["prompt"]]
        answers = {
            name: [{"role": "assistant", "content": text}]
            for name, text in (("chosen", chosen), ("rejected", rejected))
        }
        theirs.append({"prompt": turns, "images": row["images"], **answers})
    write_preferences(place.out / "preferences.parquet", ours)
    pq.write_table(pa.Table.from_pylist(theirs), place.out / "pairs.parquet")


def run_ours(place: Place, work: Work, name: str, more: Sequence[str]) -> Run:
    """Polyphony's DPO, from its own driver."""
    directory = place.fresh(name)
    overrides = [
        f"run.directory={directory}",
        f"run.seed={SEED}",
        "run.sinks=[jsonl]",
        "cluster.device=cpu",
        f"model.path={place.checkpoint}",
        f"data.path={place.data}",
        f"preference={{num_steps: {work.num_steps}, batch_size: {work.prompts}, beta: {BETA}, "
        f"learning_rate: {LEARNING_RATE}, held_out_fraction: {HELD_OUT}}}",
        *more,
    ]
    shutil.copytree(place.checkpoint, load_recipe(None, overrides).checkpoint("sft"))
    shutil.copy(place.out / "preferences.parquet", directory / "preferences.parquet")
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    lines = directory / "lines.jsonl"
    command = [sys.executable, "-m", "benchmarks.dpo_vs_trl_ours", *overrides]
    moments = watch(command, lines=lines, log=directory / "log", environment=quiet(environment), core=place.core)
    kinds = [row["what"] for row in read_lines(lines)]
    # The first answer of the reference is about what is held out.
    parts = [
        _mean([moment for moment, what in zip(moments, kinds, strict=True) if what == kind][skipped:], work)
        for kind, skipped in ((REFERENCE, 1), (STEP, 0))
    ]
    return Run("Polyphony", *(sum(column) for column in zip(*parts, strict=True)))


def run_peer(place: Place, work: Work, name: str, freeze: Sequence[str]) -> Run:
    """TRL's DPO."""
    directory = place.fresh(name)
    options = {
        "checkpoint": place.checkpoint,
        "data": place.out / "pairs.parquet",
        "out": directory,
        "pairs": work.prompts,
        "micro-batch": work.micro_batch,
        "steps": work.num_steps,
        "seed": SEED,
        "beta": BETA,
        "learning-rate": LEARNING_RATE,
        "freeze": ",".join(freeze),
    }
    script = Path(__file__).with_name("dpo_vs_trl_peer.py")
    command = [str(place.venv / "bin" / "python"), str(script)]
    command += [f"--{option}={value}" for option, value in options.items()]
    lines = directory / "steps.jsonl"
    moments = watch(command, lines=lines, log=directory / "log", environment=quiet({}), core=place.core)
    return Run("TRL", *_mean(moments, work))


def _mean(moments: Sequence[Moment], work: Work) -> tuple[float, float]:
    """Seconds of CPU and of the clock that a step takes, on average over those measured."""
    spans = intervals(moments, warm_up=work.warm_up)
    cpu_s = [sum(span.cpu_s.values()) for span in spans]
    return statistics.mean(cpu_s), statistics.mean(span.wall_s for span in spans)


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(sys.prefix), help="TRL's environment; this one by default")
    parser.add_argument("--out", type=Path, default=Path("runs/dpo_vs_trl"), help="where everything goes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--pairs", type=int, default=64, help="pairs a step")
    parser.add_argument("--micro-batch", type=int, default=32, help="pairs in a pass of TRL's")
    parser.add_argument("--side", type=int, default=32, help="side of a picture in pixels, 16 to 64")
    parser.add_argument("--warm-up", type=int, default=1, help="first steps that are left out")
    parser.add_argument("--steps", type=int, default=4, help="steps measured")
    parser.add_argument("--core", type=int, default=None, help="the core that both use; the last one by default")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over our recipe's")
    return parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs both sides in turns, prints what each took, the ratio, and one JSON object."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    work = Work(options.pairs, 2, 16, options.micro_batch, options.side, options.warm_up, options.steps)
    core = max(os.sched_getaffinity(0)) if options.core is None and hasattr(os, "sched_getaffinity") else options.core
    place = Place(options.out.absolute(), options.venv.absolute(), core)
    # Some rows more than are learned: those that are held out.
    setup = prepare(place, Work(options.pairs, 2, 16, options.micro_batch, options.side, work.warm_up, work.steps + 1))
    write_pairs(place)
    runs: list[Run] = []
    for repeat in range(options.repeats):
        sides = [
            lambda repeat=repeat: run_ours(place, work, f"polyphony-{repeat}", options.overrides),
            lambda repeat=repeat: run_peer(place, work, f"peer-{repeat}", setup["towers"]),
        ]
        for side in sides if repeat % 2 == 0 else reversed(sides):
            runs.append(side())
            run = runs[-1]
            rates = f"{work.prompts / run.cpu_s:.1f} pairs/CPU-s, {work.prompts / run.wall_s:.1f} pairs/s"
            print(f"{run.name:<10} {rates}", flush=True)
    rate = {
        name: {
            "pairs_per_cpu_s": [work.prompts / run.cpu_s for run in runs if run.name == name],
            "pairs_per_s": [work.prompts / run.wall_s for run in runs if run.name == name],
        }
        for name in ("Polyphony", "TRL")
    }
    ratio = {
        unit: statistics.median(rate["Polyphony"][unit]) / statistics.median(rate["TRL"][unit])
        for unit in ("pairs_per_cpu_s", "pairs_per_s")
    }
    print(f"ratio: {ratio['pairs_per_cpu_s']:.2f} by CPU time, {ratio['pairs_per_s']:.2f} by the clock")
    result = {
        "benchmark": "dpo_vs_trl",
        "machine": machine.describe(),
        "work": vars(work),
        "prompt_tokens": setup["prompt_tokens"],
        "rates": rate,
        "ratio": ratio,
    }
    (place.out / "dpo_vs_trl.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
