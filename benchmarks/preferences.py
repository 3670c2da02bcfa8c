"""What is best learned from the same preferences? Methods without a loop, and the loop, from one SFT checkpoint.

    seed 0, 1, 2 -> the demo, rewarded by its reward model alone: SFT, preferences, reward model, loop (ppo)
                 -> from its SFT checkpoint, each method by itself:
                    dpo, kto, orpo, simpo   jobs.preference, on the demo's preferences
                    online_dpo              the loop, the best of a group against its worst
                    best_of_n               jobs.distill: the best of eight by the reward model, learned
                 -> jobs.evaluate each -> <out>/seed-k/<method>/summary.json -> benchmarks/RESULTS.md

    python -m benchmarks.preferences
    python -m benchmarks.preferences --seeds 0 --methods dpo kto

Skill is the share of sampled answers to held-out prompts that contain the right one, manner the share of those that say
just that. Both loops stop where they were best on validation. Seconds are those of the method's stage, with the reward
model's training where it has one. What lies there already is not run again, so that an interrupted benchmark goes on.
Methods do not run side by side: they would share the cores, and their seconds would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.learning import Summaries, run_alone, start
from benchmarks.seeds import mean, run_seed
from pipeline.config import load_recipe
from pipeline.evaluation.results import ModelName

REWARDS = "rlhf.rewards={learned: 1.0}"
"""All methods know the same preferences and nothing else: no right answer enters a reward."""
LOOP = ("rlhf.evaluate_every=8", "rlhf.checkpoints={save_every: 8, best_metric: validation/exact_match, export: best}")
"""Of both loops: a learned reward is followed past the point where it is right (Gao et al. 2023, arXiv 2210.10760), so
that they end in what was best on validation."""
RATE = "preference.learning_rate=5e-5"
OFFLINE: Mapping[str, tuple[str, ...]] = {
    "dpo": (RATE, "preference.loss=dpo"),
    "kto": (RATE, "preference.loss=kto"),
    "orpo": (RATE, "preference.loss=orpo"),
    "simpo": (RATE, "preference.loss=simpo", "preference.beta=2.0"),
}
ONLINE: Mapping[str, tuple[str, ...]] = {
    "online_dpo": (
        *LOOP,
        "rlhf.algorithm={advantage: best_worst, policy_loss: dpo, num_minibatches: 2, kl: {weight: 0.0}}",
    ),
}
DISTILLED: Mapping[str, tuple[str, ...]] = {
    "best_of_n": ("distill.split=rl", "distill.num_prompts=1024"),
}
METHODS = (*OFFLINE, *ONLINE, *DISTILLED)
"""Beside `ppo`, which is the demo's own."""
NEEDS_REWARD_MODEL = ("ppo", *ONLINE, *DISTILLED)
PEER = Path("runs/dpo_vs_trl/dpo_vs_trl.json")
"""Where `benchmarks.dpo_vs_trl` leaves its result."""
Measured = Mapping[str, float | None]
"""Skill, manner and seconds of one run."""
Found = Mapping[str, Sequence[Measured]]
"""Those of each seed, by method."""


def run_method(method: str, config: Path, overrides: Sequence[str], *, directory: Path, demo: Path) -> None:
    """Trains and evaluates a method. In a process of its own, which starts a local Ray."""
    from actors.loop.crew import crew_of
    from jobs import distill, evaluate, preference, rlhf
    from jobs.command import connect, record_stage

    start(directory, demo)
    job, stage, options = {
        **{name: (preference.run, "preference", of) for name, of in OFFLINE.items()},
        **{name: (rlhf.run, "rlhf", of) for name, of in ONLINE.items()},
        **{name: (distill.run, "distilled", of) for name, of in DISTILLED.items()},
    }[method]
    own = [f"run.directory={directory}", f"data.path={demo / 'data'}", "evaluate.blind=false"]
    recipe = load_recipe(config, [REWARDS, *options, *overrides, *own])
    connect(address="local", object_store_memory=512 * 2**20)
    with crew_of(recipe) as crew:
        started = time.monotonic()
        trained = job(recipe, crew=crew)
        record_stage(recipe, "rlhf", time.monotonic() - started)
        if stage != "rlhf":
            # In the place of the loop's, beside the SFT model that it started from.
            (directory / "checkpoints" / "rlhf").symlink_to(trained)
        evaluate.run(recipe, crew=crew)


def run_missing(method: str, seed: int, config: Path, *, out: Path, overrides: Sequence[str]) -> None:
    """Runs a method, or the demo that the others start from, in a process of its own, its output in a log beside it."""
    directory = out / f"seed-{seed}" / method
    log = directory.with_suffix(".log")
    if method == "ppo":
        own = [REWARDS, *LOOP, *overrides, f"run.seed={seed}", f"run.directory={directory}", "evaluate.blind=false"]
        job = ["python", "-m", "jobs.quickstart", "--config", str(config), *own]
        run_seed(load_recipe(config, own), [sys.executable, "-m", "jobs.local", "--", *job], log)
    else:
        places = ["--config", str(config), "--out", str(out), "--seeds", str(seed)]
        own = ["benchmarks.preferences", "--one", method, *places, "--", *overrides]
        run_alone(own, f"seed {seed}, {method}", log)


def measured(summary: Mapping[str, Any], model: ModelName) -> dict[str, float | None]:
    """Skill and manner of one model."""
    part = summary["overall"][model.value]
    contains, exact = part.get("contains"), part.get("true_reward")
    return {"skill": contains, "manner": exact / contains if contains and exact is not None else None}


def seconds(method: str, directory: Path, demo: Path) -> float:
    """What the method took beyond SFT."""
    own = _stage_s(directory)["rlhf"]
    return own + (_stage_s(demo)["reward_model"] if method in NEEDS_REWARD_MODEL else 0.0)


def _stage_s(directory: Path) -> Mapping[str, float]:
    from jobs.command import read_stages

    return read_stages(load_recipe(None, [f"run.directory={directory}"]))


def table(found: Found) -> str:
    """Means over the seeds, for `RESULTS.md`; skill of each seed in brackets."""
    lines = ["| | skill (each seed) | manner | seconds |", "|---|---|---:|---:|"]
    for name, seeds in found.items():
        skills = [each["skill"] for each in seeds]
        took = mean([each.get("seconds") for each in seeds])
        lines.append(
            f"| {name} | {_cell(mean(skills))} ({', '.join(map(_cell, skills))}) | "
            f"{_cell(mean([each['manner'] for each in seeds]))} | {'' if took is None else f'{took:.0f}'} |"
        )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs what is missing, writes the table, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/recipes/application.yaml"), help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS), help="which, beside ppo")
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"), help="where the runs go")
    parser.add_argument("--peer", type=Path, help=f"what benchmarks.dpo_vs_trl found; {PEER} if there")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    config, out = options.config.resolve(), options.out.resolve()

    def directory_of(method: str, seed: int) -> Path:
        return out / f"seed-{seed}" / method

    if options.one:
        (seed,) = options.seeds
        overrides = [*options.overrides, f"run.seed={seed}"]
        demo = directory_of("ppo", seed)
        run_method(options.one, config, overrides, directory=directory_of(options.one, seed), demo=demo)
        return
    methods = ("ppo", *options.methods)
    for seed in options.seeds:
        for method in methods:
            if not (directory_of(method, seed) / "summary.json").is_file():
                run_missing(method, seed, config, out=out, overrides=options.overrides)
    summaries: Summaries = {
        method: {
            seed: json.loads((directory_of(method, seed) / "summary.json").read_text(encoding="utf-8"))
            for seed in options.seeds
        }
        for method in methods
    }
    found: Found = {
        method: [
            {
                **measured(of[seed], ModelName.RLHF),
                "seconds": seconds(method, directory_of(method, seed), directory_of("ppo", seed)),
            }
            for seed in options.seeds
        ]
        for method, of in summaries.items()
    }
    sft = [measured(summaries["ppo"][seed], ModelName.SFT) for seed in options.seeds]
    shown = table({"sft": sft, **found})
    host = machine.describe()
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: preferences\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}\n"
            f"- Command: `{shlex.join(['python', '-m', 'benchmarks.preferences', *given])}`\n\n{shown}\n"
        )
    print(shown, flush=True)
    print(json.dumps(summarised(found, sft, ratio(options.peer))), flush=True)


def ratio(peer: Path | None) -> float | None:
    """Pairs a second of DPO here over TRL's, of a saved result of `benchmarks.dpo_vs_trl` or of all that it printed.

    None where there is no file and none was named.
    """
    if peer is None and not PEER.is_file():
        return None
    text = (peer or PEER).read_text(encoding="utf-8")
    try:
        result = json.loads(text)
    except json.JSONDecodeError:
        result = json.loads(text.splitlines()[-1])
    return result["ratio"]["pairs_per_s"]


def summarised(found: Found, sft: Sequence[Measured], dpo_vs_trl: float | None) -> dict[str, Any]:
    """The machine-readable last line: means over the seeds."""
    return {
        "benchmark": "preferences",
        "methods": {name: _means(seeds) for name, seeds in found.items()},
        "sft": _means(sft),
        "dpo_vs_trl": dpo_vs_trl,
        "seeds": len(sft),
    }


def _means(seeds: Sequence[Measured]) -> dict[str, float | None]:
    return {name: mean([each[name] for each in seeds]) for name in seeds[0]}


if __name__ == "__main__":
    main()
