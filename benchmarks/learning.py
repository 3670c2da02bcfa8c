"""Is it the reward that teaches? The demo against controls that a sceptic would ask for, on the same held-out prompts.

    seed 0, 1, 2 -> the demo (shared with benchmarks.seeds): SFT, RLHF
                 -> from its SFT checkpoint, each arm by itself:
                    more_sft          SFT goes on, on its own rows, for as long as reward model and loop took
                    rl_on_sft_rows    the loop draws the prompts that SFT knows
                    random_reward     the loop, rewarded by chance
                    oracle_sft        SFT goes on, on the right and plain answers of the loop's prompts: the ceiling
                    grpo, rloo        other estimators, with as many samples
                 -> jobs.evaluate each -> <out>/seed-k/<arm>/summary.json -> benchmarks/RESULTS.md

    python -m benchmarks.learning
    python -m benchmarks.learning --seeds 0 --arms more_sft oracle_sft

What lies there already is not run again, so that an interrupted benchmark goes on. "For as long" is by the wall clock:
the seconds of the stages, with all that a stage waits for. Left out on purpose: arms side by side. They would share the
cores, and "for as long" would mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.seeds import mean, run_seed
from pipeline.config import Recipe, RewardName, load_recipe
from pipeline.evaluation.intervals import Estimate, paired
from pipeline.evaluation.results import Mode, ModelName, SampleResult, read_samples

LOOP_ARMS: Mapping[str, tuple[str, ...]] = {
    "rl_on_sft_rows": ("rlhf.split=train",),
    "random_reward": ("rlhf.rewards={noise: 1.0}",),
    "grpo": ("rlhf.algorithm.advantage=grpo",),
    "rloo": ("rlhf.algorithm.advantage=rloo",),
}
"""What the loop of an arm does otherwise than the demo's."""
ARMS = ("more_sft", "rl_on_sft_rows", "random_reward", "oracle_sft", "grpo", "rloo")
COLUMNS = ("greedy", "contains", "exact match")
MEASURES: Mapping[str, tuple[Mode, RewardName]] = {
    "greedy exact match": (Mode.GREEDY, RewardName.EXACT_MATCH),
    "contains": (Mode.SAMPLED, RewardName.CONTAINS),
}
"""What has intervals: of which completions, and by which measure."""
NOTE = (
    "Intervals take the prompts of all seeds together, as independent of each other: they say what other prompts would "
    "change, and not what another seed would; each seed's value stands beside its mean. Seconds are the wall time of "
    "what an arm trains after SFT (of `sft`: of SFT itself), a mean over the seeds; that of `rlhf` holds the reward "
    "model, which the other arms of the loop take as it is. `more_sft` and `oracle_sft` have as many steps as should "
    "take as long as reward model and loop."
)
Summaries = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""`summary.json` by arm and seed; the demo's own as `rlhf`."""


def start(directory: Path, demo: Path) -> None:
    """Lays out an arm's run: what the demo's earlier stages made stands in it as links."""
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "checkpoints").mkdir(parents=True)
    for name in ("base", "sft", "reward_model"):
        (directory / "checkpoints" / name).symlink_to(demo / "checkpoints" / name)
    (directory / "preferences.parquet").symlink_to(demo / "preferences.parquet")


def oracle_data(directory: Path, demo: Path) -> Path:
    """The loop's prompts as rows to learn from, with the right answer, plainly, in place of a demonstration."""
    rows = pq.read_table(demo / "data" / "rl.parquet")
    place = rows.schema.get_field_index("demonstration")
    rows = rows.set_column(place, rows.schema.field(place), pa.nulls(len(rows), rows.schema.field(place).type))
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, directory / "train.parquet", row_group_size=32)
    (directory / "test.parquet").symlink_to(demo / "data" / "test.parquet")
    return directory


def sft_steps(recipe: Recipe, stage_s: Mapping[str, float]) -> int:
    """Steps of SFT that take as long as reward model and loop did."""
    return round(recipe.sft.num_steps * (stage_s["reward_model"] + stage_s["rlhf"]) / stage_s["sft"])


def run_arm(arm: str, config: Path, overrides: Sequence[str], *, directory: Path, demo: Path) -> None:
    """Trains and evaluates an arm. In a process of its own, which starts a local Ray."""
    from actors.loop.crew import crew_of
    from jobs import evaluate, rlhf, sft
    from jobs.command import connect, read_stages, record_stage

    start(directory, demo)
    own = [*overrides, f"run.directory={directory}", f"data.path={demo / 'data'}", "evaluate.blind=false"]
    recipe = load_recipe(config, own)
    connect(address="local", object_store_memory=512 * 2**20)
    if arm in LOOP_ARMS:
        recipe = load_recipe(config, [*own, *LOOP_ARMS[arm]])
        with crew_of(recipe) as crew:
            started = time.monotonic()
            rlhf.run(recipe, crew=crew)
            record_stage(recipe, "rlhf", time.monotonic() - started)
            evaluate.run(recipe, crew=crew)
        return
    # The trained checkpoint takes the place of RLHF's, beside the SFT model that it started from.
    trained = directory / "trained"
    steps = sft_steps(recipe, read_stages(load_recipe(config, [f"run.directory={demo}"])))
    own += [f"model.path={demo / 'checkpoints' / 'sft'}", f"sft.num_steps={steps}", f"sft.decay_steps={steps}"]
    if arm == "oracle_sft":
        own += [f"data.path={oracle_data(directory / 'data', demo)}", "sft.rows=null"]
    recipe = load_recipe(config, [*own, f"run.directory={trained}"])
    with crew_of(recipe) as crew:
        started = time.monotonic()
        sft.run(recipe, crew=crew)
        recipe = load_recipe(config, own)
        record_stage(recipe, "sft", time.monotonic() - started)
        (directory / "checkpoints" / "rlhf").symlink_to(trained / "checkpoints" / "sft")
        evaluate.run(recipe, crew=crew)


def row(summaries: Mapping[int, Mapping[str, Any]], model: ModelName) -> dict[str, list[float | None]]:
    """The columns of the table for one model, a value a seed, from the summaries of its arm."""
    parts = [summary["overall"][model.value] for summary in summaries.values()]
    keys = dict(zip(COLUMNS, ("greedy_true_reward", "contains", "true_reward"), strict=True))
    return {column: [part.get(key) for part in parts] for column, key in keys.items()}


def pooled_gain(after: Sequence[Path], measure: str, before: Sequence[Path] | None = None) -> Estimate | None:
    """What an arm has more than another, over the prompts of all seeds, with the paired interval.

    after, before: directories of the two arms, a seed each; of `before` None is the SFT model that `after` began with.
    """
    differences: list[float] = []
    for place, directory in enumerate(after):
        other = _shares(directory, measure, ModelName.SFT) if before is None else _shares(before[place], measure)
        own = _shares(directory, measure)
        differences += [share - other[prompt] for prompt, share in own.items() if prompt in other]
    return paired(differences)


def _shares(directory: Path, measure: str, model: ModelName = ModelName.RLHF) -> dict[str, float]:
    """By prompt, the mean of a measure over a model's completions of the prompt as it is."""
    mode, name = MEASURES[measure]
    found: dict[str, list[float]] = {}
    for each in _samples(directory / "evaluation" / "samples.jsonl"):
        value = each.reward(name)
        if each.model is model and each.mode is mode and each.is_shown and value is not None:
            found.setdefault(each.prompt_id, []).append(value)
    return {prompt: fmean(values) for prompt, values in found.items()}


@cache
def _samples(path: Path) -> list[SampleResult]:
    return read_samples(path)


def elapsed_s(summaries: Summaries) -> dict[str, float | None]:
    """Wall time of training by arm, a mean over the seeds; see `NOTE`."""
    known = {arm: [each.get("stage_s", {}) for each in of.values()] for arm, of in summaries.items()}
    seconds: dict[str, float | None] = {"sft": mean([stages.get("sft") for stages in known["rlhf"]])}
    for arm, of in known.items():
        stages = ("sft",) if arm in ARMS and arm not in LOOP_ARMS else ("reward_model", "rlhf")
        spent = [[found[stage] for stage in stages if stage in found] for found in of]
        seconds[arm] = mean([sum(each) if each else None for each in spent])
    return seconds


@dataclass(frozen=True)
class Compared:
    """The differences between arms, by measure and arm.

    gains: over the SFT model that the arm began with. ahead: RLHF minus the control.
    """

    gains: Mapping[str, Mapping[str, Estimate | None]]
    ahead: Mapping[str, Mapping[str, Estimate | None]]

    @classmethod
    def of(cls, places: Mapping[str, Sequence[Path]]) -> Compared:
        """places: by arm, the directories of its runs, in the order of the seeds."""
        return cls(
            {measure: {arm: pooled_gain(of, measure) for arm, of in places.items()} for measure in MEASURES},
            {
                measure: {arm: pooled_gain(places["rlhf"], measure, of) for arm, of in places.items() if arm != "rlhf"}
                for measure in MEASURES
            },
        )


def markdown(summaries: Summaries, compared: Compared) -> str:
    """The table for `RESULTS.md`: means over the seeds, greedy of each seed, differences with their intervals."""
    lines = [
        "| | greedy exact match (each seed) | gain over SFT | RLHF minus it | contains | gain over SFT | RLHF minus it "
        "| sampled exact match | seconds |",
        "|---|---|---|---|---:|---|---|---:|---:|",
    ]
    sft, seconds = row(summaries["rlhf"], ModelName.SFT), elapsed_s(summaries)
    for name, columns in {"sft": sft, **{arm: row(of, ModelName.RLHF) for arm, of in summaries.items()}}.items():
        spent = seconds[name]
        differences = [
            [_difference(of[measure].get(name)) for of in (compared.gains, compared.ahead)] for measure in MEASURES
        ]
        cells = [
            f"{_cell(mean(columns['greedy']))} ({', '.join(map(_cell, columns['greedy']))})",
            *differences[0],
            _cell(mean(columns["contains"])),
            *differences[1],
            _cell(mean(columns["exact match"])),
            "" if spent is None else f"{spent:.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(compared: Compared) -> str:
    """Which arms do as well as RLHF, said plainly: in greedy exact matches, and in skill, what answers contain."""
    ours = compared.gains["greedy exact match"]["rlhf"]
    if ours is None:
        return "RLHF was not measured."
    said = [f"RLHF {'gains' if ours.low > 0 else 'does not surely gain'} over SFT: {ours.value:+.3f}."]
    for measure, ahead in compared.ahead.items():
        rivals = [
            arm + (" (surely better)" if found.high < 0 else "")
            for arm, found in ahead.items()
            if found is not None and found.value <= 0
        ]
        said.append(f"At least as good in {measure}: {', '.join(rivals) or 'none'}.")
    return " ".join(said)


def _difference(found: Estimate | None) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else ""


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs what is missing, writes the table, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/recipes/tiny_cpu.yaml"), help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="which controls")
    parser.add_argument("--demos", type=Path, default=Path("runs/seeds"), help="where benchmarks.seeds has its runs")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="where the arms go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    config: Path = options.config.resolve()

    def demo_of(seed: int) -> Path:
        return options.demos.resolve() / f"seed-{seed}"

    def directory_of(arm: str, seed: int) -> Path:
        return demo_of(seed) if arm == "rlhf" else options.out.resolve() / f"seed-{seed}" / arm

    if options.one:
        (seed,) = options.seeds
        overrides = [*options.overrides, f"run.seed={seed}"]
        run_arm(options.one, config, overrides, directory=directory_of(options.one, seed), demo=demo_of(seed))
        return
    for seed in options.seeds:
        for arm in ("rlhf", *options.arms):
            directory = directory_of(arm, seed)
            if (directory / "summary.json").is_file():
                continue
            overrides = [*options.overrides, f"run.seed={seed}"]
            if arm == "rlhf":
                job = ["python", "-m", "jobs.quickstart", "--config", str(config), *overrides]
                command = [sys.executable, "-m", "jobs.local", "--", *job, f"run.directory={directory}"]
                run_seed(load_recipe(config, overrides), command, directory.with_suffix(".log"))
            else:
                places = ["--config", options.config, "--demos", options.demos, "--out", options.out]
                own = ["benchmarks.learning", "--one", arm, "--seeds", str(seed), *map(str, places)]
                log = options.out / f"seed-{seed}" / f"{arm}.log"
                run_alone([*own, "--", *options.overrides], f"seed {seed}, {arm}", log)
    places = {arm: {seed: directory_of(arm, seed) for seed in options.seeds} for arm in ("rlhf", *options.arms)}
    summaries = {
        arm: {seed: json.loads((place / "summary.json").read_text(encoding="utf-8")) for seed, place in of.items()}
        for arm, of in places.items()
    }
    compared = Compared.of({arm: list(of.values()) for arm, of in places.items()})
    table, said = markdown(summaries, compared), verdict(compared)
    command = shlex.join(["python", "-m", "benchmarks.learning", *given])
    host = machine.describe()
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: learning\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}\n- Command: `{command}`\n- {NOTE}\n\n{table}\n\n{said}\n"
        )
    print(table, said, sep="\n\n", flush=True)
    print(json.dumps(result_of(summaries, compared)), flush=True)


def result_of(summaries: Summaries, compared: Compared) -> dict[str, Any]:
    """The last line, for machines: greedy exact matches, RLHF's gains, and what it has more than each control."""

    def plain(found: Estimate | None) -> dict[str, float] | None:
        return None if found is None else {name: asdict(found)[name] for name in ("value", "low", "high")}

    greedy, contains = MEASURES
    return {
        "benchmark": "learning",
        "overall": {
            "sft": mean(row(summaries["rlhf"], ModelName.SFT)["greedy"]),
            **{arm: mean(row(of, ModelName.RLHF)["greedy"]) for arm, of in summaries.items()},
        },
        "gain": plain(compared.gains[greedy]["rlhf"]),
        "contains_gain": plain(compared.gains[contains]["rlhf"]),
        "ahead": {arm: plain(found) for arm, found in compared.ahead[greedy].items()},
        "contains_ahead": {arm: plain(found) for arm, found in compared.ahead[contains].items()},
        "seconds": elapsed_s(summaries),
        "seeds": len(summaries["rlhf"]),
    }


def run_alone(module: Sequence[str], name: str, log: Path) -> None:
    """Runs a module with its arguments in a process of its own, its output in `log`.

    Raises:
        SystemExit: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"{name} > {log}", flush=True)
    with log.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-m", *module],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=False,
        )
    if ended.returncode:
        sys.exit(f"{name}: failed with status {ended.returncode}; its output: {log}")
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
