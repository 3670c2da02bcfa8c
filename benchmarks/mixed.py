"""Does a split over ranks change what is learned? Steps on random mixes of modalities, two ranks against one.

    media of the built-in tasks -> prompts with 0 to N pictures, sounds and videos each, in random order -> table
    one rank                               -> curves, samples --+
    two ranks at each ZeRO stage, same seed -> curves, samples --+-> largest deviation of each curve, RESULTS.md

    python -m benchmarks.mixed
    python -m benchmarks.mixed --sets trained --stages 3 --steps 20

Two sets of runs: towers frozen (features shared by all roles), and towers trained (each role runs its own). PPO with a
critic, GAE, KL in the reward and rewards by rule. A run that hangs ends at the collective timeout, with an error.
Sampling depends on logits to the last bit: once a rounding difference turns one token into another, curves are those of
two experiments. So steps are compared for as long as all completions agree, and the table says how long.
Left out on purpose: processes of their own for each run (they stay, and load and shard anew); a reward model, which
would see the same completions whatever the ranks of the policy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from pipeline.config import Recipe, load_recipe
from pipeline.data import demo
from pipeline.data.schema import to_row
from pipeline.data.table import write_prompts
from pipeline.records import MediaKind, Message, Prompt
from pipeline.tracking import read_metrics

CURVES = ("policy/loss", "critic/loss", "policy/grad_norm", "critic/grad_norm", "reward/mean", "kl/reference")
"""What is compared, step by step."""
TOLERANCE = 1e-3
"""Largest deviation that rounding explains, as a share of the largest value of one rank's curve."""
MIN_COMPARED = 0.5
"""Share of the steps that must be comparable: completions that part sooner are no matter of rounding."""
RANKED = ("policy", "critic", "reference")
"""Roles with one rank or two."""
TASKS_OF: Mapping[MediaKind | None, tuple[str, ...]] = {
    None: ("text",),
    MediaKind.IMAGE: ("digit", "scene"),
    MediaKind.AUDIO: ("speech",),
    MediaKind.VIDEO: ("video",),
}
"""The built-in tasks whose questions and media make up a prompt, by kind; None is a question without a medium."""
NUM_ROWS = 150
NUM_COMPLETIONS = 2
SINGLE_KIND_SHARE = 0.4
"""Share of the rows that hold one kind of media alone, or none: with few of them, ranks would rarely lack a kind."""
TRAINED_TOWERS = (
    "{vision_tower: {mode: train}, audio_tower: {mode: lora}, projector: {mode: train}, language_model: {mode: train}}"
)
SETS: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "frozen": ((), (0, 1, 2, 3)),
    "trained": (tuple(f"rlhf.{role}.parts={TRAINED_TOWERS}" for role in ("policy", "critic")), (0, 3)),
}
"""Options of each set of runs, and the stages that it covers unless told otherwise."""
SETTINGS = (
    "run.sinks=[jsonl]",
    "cluster.device=cpu",
    "cluster.collective_timeout_s=300",
    "data.max_prompt_tokens=1024",
    "rlhf.prompts_per_step=6",
    f"rlhf.group_size={NUM_COMPLETIONS}",
    "rlhf.sampling.max_new_tokens=6",
    "rlhf.rewards={length: 1.0, wer: 0.5}",
    "rlhf.algorithm={advantage: gae, kl: {weight: 0.05, place: reward}}",
    "rlhf.samples_every=1",
    "rlhf.checkpoints.save_every=1000000",
    # Small enough that ranks need several passes, and not equally many by nature.
    *(f"rlhf.{role}.micro_batch_tokens=256" for role in RANKED),
    "rlhf.policy.learning_rate=5.0e-5",
    "rlhf.critic.learning_rate=1.0e-4",
)


@dataclass(frozen=True)
class Case:
    """One run: which set, how many ranks, at which ZeRO stage."""

    set: str
    num_ranks: int
    stage: int

    @property
    def name(self) -> str:
        """A name for its directory."""
        return f"{self.set}-{self.num_ranks}x{self.stage}"

    @property
    def overrides(self) -> list[str]:
        """Options of the recipe. The reference has no optimizer to shard: it takes stage 0 or 3."""
        stages = {"policy": self.stage, "critic": self.stage, "reference": 3 if self.stage == 3 else 0}
        return [
            *SETS[self.set][0],
            *(f"rlhf.{role}.num_workers={self.num_ranks}" for role in stages),
            *(f"rlhf.{role}.zero_stage={stage}" for role, stage in stages.items()),
        ]


@dataclass(frozen=True)
class Curves:
    """What a run logged, a step a row, and the texts of all completions of each step."""

    metrics: list[dict[str, float]]
    completions: list[list[list[str]]]
    seconds: float


@dataclass(frozen=True)
class Deviation:
    """The largest deviation of one curve, and its step."""

    value: float
    step: int


@dataclass(frozen=True)
class Comparison:
    """A run against the run of one rank: deviations over the `num_compared` steps whose completions agree."""

    deviations: dict[str, Deviation]
    num_compared: int
    num_steps: int

    @property
    def passed(self) -> bool:
        """Whether all curves stay together, for long enough to mean something."""
        together = all(deviation.value <= TOLERANCE for deviation in self.deviations.values())
        return together and self.num_compared >= MIN_COMPARED * self.num_steps


def draw_mix(rng: np.random.Generator, most: int) -> list[MediaKind | None]:
    """Kinds of the media of a prompt, 0 to `most` of each, in random order; `[None]` where there is none."""
    counts = {kind: int(rng.integers(most + 1)) for kind in MediaKind}
    if rng.random() < SINGLE_KIND_SHARE:
        alone = [None, *MediaKind][int(rng.integers(1 + len(MediaKind)))]
        counts = {kind: max(1, num) if kind is alone else 0 for kind, num in counts.items()}
    kinds: list[MediaKind | None] = [kind for kind, num in counts.items() for _ in range(num)] or [None]
    return [kinds[index] for index in rng.permutation(len(kinds))]


def draw_rows(num_rows: int, *, most: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the prompt table; each question of a prompt is one of the built-in tasks', with its medium."""
    rng = np.random.default_rng(seed)
    draw = demo.Draw(split=demo.Split.TRAIN, rng=rng)
    for number in range(num_rows):
        mix = draw_mix(rng, most)
        samples = [demo.TASKS[str(rng.choice(TASKS_OF[kind]))](draw) for kind in mix]
        prompt = Prompt(
            id=f"mixed-{number:05d}",
            task=mix_name(mix),
            messages=(Message(role="user", content=" ".join(sample.question for sample in samples)),),
            media=tuple(medium for sample in samples for medium in sample.media),
            answer=" ".join(sample.answer for sample in samples),
        )
        yield to_row(prompt, [source for sample in samples for source in sample.sources])


def mix_name(mix: Sequence[MediaKind | None]) -> str:
    """Such as `2 image, 1 video`; `text` where there is no medium."""
    counts = Counter(kind for kind in mix if kind is not None)
    return ", ".join(f"{counts[kind]} {kind}" for kind in MediaKind if counts[kind]) or "text"


def compare(one: Curves, other: Curves) -> Comparison:
    """Deviations |other - one| / max |one| over the steps before the first whose completions differ.

    The scale is the curve's own: a policy loss is near zero by nature, and an absolute bound would let all of it pass.
    """
    same = [left == right for left, right in zip(one.completions, other.completions, strict=True)]
    num_compared = (*same, False).index(False)
    deviations: dict[str, Deviation] = {}
    for name in CURVES:
        scale = max(abs(row[name]) for row in one.metrics) or 1.0
        pairs = [(one.metrics[step][name], other.metrics[step][name]) for step in range(num_compared)]
        values = [abs(right - left) / scale for left, right in pairs] or [0.0]
        # NaN compares with nothing: it must not hide.
        largest = max(range(len(values)), key=lambda step: math.inf if math.isnan(values[step]) else values[step])
        deviations[name] = Deviation(values[largest], largest)
    return Comparison(deviations, num_compared, len(same))


def markdown(rows: Sequence[tuple[Case, Curves, Comparison | None]]) -> str:
    """The table for `RESULTS.md`: a row a run; each cell is a curve's largest deviation and its step."""
    lines = [
        "| towers | ranks | ZeRO | run [s] | step [s] | steps compared | " + " | ".join(CURVES) + " |",
        "|---|---:|---:|---:|---:|---|" + "---:|" * len(CURVES),
    ]
    for case, curves, comparison in rows:
        step_s = float(np.median([row["time/step_s"] for row in curves.metrics]))
        cells = [case.set, str(case.num_ranks), str(case.stage), f"{curves.seconds:.0f}", f"{step_s:.2f}"]
        if comparison is None:
            cells += ["", *("" for _ in CURVES)]
        else:
            parted = comparison.num_compared < comparison.num_steps
            cells.append(f"{comparison.num_compared}, then samples part" if parted else f"all {comparison.num_steps}")
            cells += [f"{each.value:.1e} ({each.step})" for each in comparison.deviations.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Bench:
    """Workers for one rank and for two, the checkpoint and the prompts: runs the cases one after the other."""

    def __init__(self, out: Path, *, num_steps: int):
        # Here, because Ray reads its environment when it is imported.
        from benchmarks.reusable import start

        self._out = out
        self._num_steps = num_steps
        recipe = self.recipe(Case("frozen", 1, 0))
        shared = start(recipe, {"encoder": 1, "rollout": 1})
        # By the number of ranks.
        self._groups = {num: shared | start(recipe, dict.fromkeys(RANKED, num)) for num in (1, 2)}

    def recipe(self, case: Case) -> Recipe:
        """The recipe of a case."""
        places = {"run.directory": self._out / case.name, "model.path": self._out / "base"}
        places |= {"data.path": self._out / "data"}
        options = [f"{name}={path}" for name, path in places.items()]
        return load_recipe(None, [*SETTINGS, *options, *case.overrides, f"rlhf.num_steps={self._num_steps}"])

    def run(self, case: Case) -> Curves:
        """Runs the loop in this process's Ray; what it prints goes to `<case>.log`."""
        from benchmarks.reusable import ReadyCrew
        from jobs import rlhf

        recipe = self.recipe(case)
        shutil.rmtree(recipe.run.directory, ignore_errors=True)
        shutil.copytree(self._out / "base", recipe.checkpoint("sft"))
        started = time.monotonic()
        with (self._out / f"{case.name}.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            rlhf.run(recipe, crew=ReadyCrew(recipe, self._groups[case.num_ranks]))
        return read_curves(recipe, time.monotonic() - started)


def read_curves(recipe: Recipe, seconds: float) -> Curves:
    """What the loop wrote: metrics, and the texts of every group in every step."""
    metrics: list[Any] = read_metrics(recipe.run.directory / "metrics")["rlhf"]
    completions: list[list[list[str]]] = [[] for _ in metrics]
    for line in (recipe.run.directory / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        completions[row["step"]].append(row["group"])
    return Curves(metrics, completions, seconds)


def run_set(bench: Bench, name: str, stages: Sequence[int]) -> list[tuple[Case, Curves, Comparison | None]]:
    """One rank without ZeRO, then two at each of the stages."""
    cases = [Case(name, 1, 0), *(Case(name, 2, stage) for stage in stages)]
    rows: list[tuple[Case, Curves, Comparison | None]] = []
    for case in cases:
        curves = bench.run(case)
        rows.append((case, curves, compare(rows[0][1], curves) if rows else None))
        print(markdown(rows).splitlines()[-1], flush=True)
    return rows


def append_result(path: Path, *, command: str, table: str, num_steps: int, most: int) -> None:
    """Adds a dated section with the machine, the command and the table to `path`."""
    host = machine.describe()
    section = (
        f"\n## {datetime.now(UTC).date().isoformat()}: mixed\n\n"
        f"- Machine: {host['cores']} cores, {host['cpu']}\n"
        f"- Command: `{command}`\n"
        f"- {num_steps} PPO steps on prompts with 0 to {most} pictures, sounds and videos each; largest deviation from "
        f"one rank's curve (and its step), as a share of that curve's largest value; tolerance {TOLERANCE:g}\n\n"
        f"{table}\n"
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(section)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: draws the table, runs and compares; 1 where curves differ by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="steps of each run")
    parser.add_argument(
        "--stages", type=int, nargs="+", choices=range(4), help="ZeRO stages; default: those of each set"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="towers frozen or trained")
    parser.add_argument("--most", type=int, default=3, help="most media of one kind in a prompt")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/mixed"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    # A token of this run's own, so that Ray leaves no file in the home directory; workers inherit the rest.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}

    from jobs.command import connect
    from pipeline.models import tiny

    out: Path = options.out.resolve()
    tiny.build(out / "base", architecture="qwen2_5_omni_thinker", corpus=demo.corpus(), seed=0)
    write_prompts(out / "data" / "train.parquet", draw_rows(NUM_ROWS, most=options.most, seed=options.seed))
    connect(address="local", num_cpus=8)
    bench = Bench(out, num_steps=options.steps)
    rows = [row for name in options.sets for row in run_set(bench, name, options.stages or SETS[name][1])]
    table = markdown(rows)
    print(table, flush=True)
    command = shlex.join(["python", "-m", "benchmarks.mixed", *given])
    append_result(options.results, command=command, table=table, num_steps=options.steps, most=options.most)
    failed = [case.name for case, _, comparison in rows if comparison is not None and not comparison.passed]
    if failed:
        print(f"differ from one rank by more than {TOLERANCE:g}, or part too soon: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
