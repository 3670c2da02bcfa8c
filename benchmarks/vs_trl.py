"""How fast is it? Samples per second of GRPO on pictures and text, beside TRL's GRPOTrainer on the same work.

    tiny checkpoint, prompts with pictures --+--> jobs.rlhf.run on a local Ray --+--> samples/s, samples/CPU-s, phases
                                             +--> TRL's GRPOTrainer -------------+
                                     in turns, one core, one thread each, a process tree of its own each

    python -m benchmarks.vs_trl --setup runs/trl-venv      # once: TRL wants another transformers than Polyphony
    python -m benchmarks.vs_trl --venv runs/trl-venv
    python -m benchmarks.vs_trl --venv runs/trl-venv --side 64 --repeats 5 -- rlhf.policy.micro_batch_tokens=4096

What is fair: TRL is one process with one thread. Polyphony's roles are processes of their own, and on two cores they
would have twice the machine. So each side, with all processes that it starts, is pinned to the same one core, and CPU
time is summed over the whole tree, Ray's daemons included. Samples a second by the clock are what a user sees on a
quiet machine; samples a CPU-second are the same there, and change by about a tenth on a busy one, where the clock
favours the side with more processes. Both are shown, with the share of the core that each side got.
A sample is one completion that was sampled, scored and learned from.

Every step has prompts that were not seen before, the same ones on both sides (their token ids are compared), so that
what Polyphony keeps of a medium over epochs gives it nothing here. Steps to warm up are left out, and so is the last.
Left out on purpose: quality. Both sides do the same number of updates from the same weights with the same settings.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.vs_trl_peer import digest
from benchmarks.vs_trl_report import (
    Run,
    append_result,
    caveats,
    compare,
    differences,
    markdown,
    our_phases,
    peer_phases,
)
from benchmarks.vs_trl_watch import intervals, watch
from pipeline.config import load_recipe
from pipeline.data import demo
from pipeline.data.layout import Layout
from pipeline.data.order import Order
from pipeline.data.schema import to_row
from pipeline.data.table import PromptTable, write_prompts
from pipeline.models import tiny
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor
from pipeline.records import Medium, Prompt
from pipeline.tracking import read_lines

PEER_PACKAGES = ("trl==1.16.*", "transformers==5.19.*", "pillow")
SEED = 0
TASK = "scene"


@dataclass(frozen=True)
class Work:
    """What both sides do. Samples are completions."""

    prompts: int
    group_size: int
    tokens: int
    micro_batch: int
    side: int
    warm_up: int
    steps: int
    learning_rate: float = 2e-4

    @property
    def samples_per_step(self) -> int:
        """Completions that one optimizer step learns from."""
        return self.prompts * self.group_size

    @property
    def num_steps(self) -> int:
        """All steps that run: to warm up, measured, and a last one that is left out."""
        return self.warm_up + self.steps + 1

    def describe(self, setup: Mapping[str, Any], repeats: int) -> str:
        """In words, for the report."""
        return (
            f"{self.prompts} prompts x {self.group_size} completions x at most {self.tokens} tokens a step, prompts of "
            f"{setup['prompt_tokens']:.1f} tokens on average with a picture of {self.side}x{self.side}, one update a "
            f"step, tiny Qwen2.5-VL with {setup['trainable']:,} "
            f"parameters that train and {setup['frozen']:,} that do not, float32, {setup['attention']} attention; "
            f"steps to warm up: {self.warm_up}, measured: {self.steps}; {repeats} repeats in turns: "
            "median (least to most)"
        )


@dataclass(frozen=True)
class Place:
    """Where the work lies, and where it runs."""

    out: Path
    venv: Path
    core: int | None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that both sides load."""
        return self.out / "checkpoint"

    @property
    def data(self) -> Path:
        """Directory of the prompt table; `peer.parquet` has the same rows in the order that Polyphony draws them."""
        return self.out / "data"

    def clear(self) -> None:
        """Removes what an earlier call left; whatever else lies there stays."""
        for pattern in ("checkpoint", "data", "demo", "polyphony-*", "peer-*"):
            for directory in self.out.glob(pattern):
                shutil.rmtree(directory)

    def fresh(self, name: str) -> Path:
        """A new directory for a run."""
        directory = self.out / name
        directory.mkdir(parents=True)
        return directory


def set_up(directory: Path) -> None:
    """Makes TRL's environment, with the torch of this one."""
    same = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "torchvision")]
    venv.create(directory, with_pip=True, clear=True)
    subprocess.run([directory / "bin" / "pip", "install", *same, *PEER_PACKAGES], check=True)


def prepare(place: Place, work: Work) -> dict[str, Any]:
    """Writes checkpoint and prompts, and returns what `setup.json` of the other side says as well.

    `digests` of each step's prompts as token ids, their mean length `prompt_tokens`, `trainable` and `frozen`
    parameters with the towers frozen, `towers` (prefixes of their names), `attention`, `versions`.
    """
    place.clear()
    tiny.build(place.checkpoint, architecture="qwen2_5_vl", corpus=demo.corpus(), seed=SEED)
    rows = work.prompts * work.num_steps
    recipe = load_recipe(None, [f"prepare.tasks=[{TASK}]", f"prepare.train_rows={rows}"])
    demo.build(place.out / "demo", prepare=recipe.prepare, seed=SEED)
    table = PromptTable(place.out / "demo" / "train.parquet")
    ids = [info.id for info in table.infos()]
    prompts = {row.id: scaled(row, work.side) for row in table.read(ids) if isinstance(row, Prompt)}
    write_prompts(place.data / "train.parquet", (to_row(prompts[name], ()) for name in ids))
    order = Order(Layout.read(str(place.data), "train"), seed=SEED, batch_rows=work.prompts)
    drawn = [order.rows(step * work.prompts, work.prompts) for step in range(work.num_steps)]
    steps = [[ids[row] for row in step] for step in drawn]
    write_prompts(place.data / "peer.parquet", (to_row(prompts[name], ()) for step in steps for name in step))
    model, architecture = load_model(place.checkpoint, dtype=recipe.model.dtype, trust_remote_code=False)
    process = PromptProcessor(
        path=place.checkpoint,
        model=model,
        limits=recipe.data.limits,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        trust_remote_code=False,
    )
    token_ids = [[process(prompts[name]).input_ids.tolist() for name in step] for step in steps]
    lengths = [len(ids) for step in token_ids for ids in step]
    sizes = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        sizes[architecture.is_tower(name)] += parameter.numel()
    return {
        "digests": [digest(step) for step in token_ids],
        "prompt_tokens": sum(lengths) / len(lengths),
        "trainable": sizes[False],
        "frozen": sizes[True],
        "towers": list(architecture.tower_prefixes),
        "attention": model.config._attn_implementation,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "deepspeed", "ray")},
    }


def scaled(prompt: Prompt, side: int) -> Prompt:
    """The same prompt with pictures of `side` by `side` pixels."""
    from PIL import Image

    media: list[Medium] = []
    for medium in prompt.media:
        assert medium.data is not None
        out = io.BytesIO()
        Image.open(io.BytesIO(medium.data)).resize((side, side)).save(out, format="PNG")
        media.append(replace(medium, data=out.getvalue()))
    return replace(prompt, media=tuple(media))


def our_overrides(place: Place, work: Work, directory: Path, beta: float) -> list[str]:
    """The recipe of Polyphony's side."""
    return [
        f"run.directory={directory}",
        f"run.seed={SEED}",
        "run.sinks=[jsonl]",
        "cluster.device=cpu",
        f"model.path={place.checkpoint}",
        f"data.path={place.data}",
        f"rlhf.num_steps={work.num_steps}",
        f"rlhf.prompts_per_step={work.prompts}",
        f"rlhf.group_size={work.group_size}",
        f"rlhf.sampling={{temperature: 1.0, max_new_tokens: {work.tokens}}}",
        "rlhf.rewards={length: 1.0}",
        "rlhf.algorithm.advantage=grpo",
        "rlhf.algorithm.whiten_advantages=false",
        "rlhf.algorithm.num_minibatches=1",
        f"rlhf.algorithm.kl={{weight: {beta}, place: loss, estimator: k3}}",
        f"rlhf.policy.learning_rate={work.learning_rate}",
    ]


def run_ours(place: Place, work: Work, beta: float, name: str, more: Sequence[str]) -> Run:
    """Polyphony's GRPO, from its own driver."""
    directory = place.fresh(name)
    overrides = [*our_overrides(place, work, directory, beta), *more]
    shutil.copytree(place.checkpoint, load_recipe(None, overrides).checkpoint("sft"))
    lines = directory / "metrics" / "rlhf.jsonl"
    command = [sys.executable, "-m", "benchmarks.vs_trl_ours", *overrides]
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    moments = watch(command, lines=lines, log=directory / "log", environment=quiet(environment), core=place.core)
    spans = intervals(moments, warm_up=work.warm_up)
    timings = list(read_lines(directory / "optimizer.jsonl"))
    measured = list(read_lines(lines))[work.warm_up : -1]
    return Run(
        name="Polyphony",
        beta=beta,
        samples=work.samples_per_step * len(spans),
        wall_s=sum(span.wall_s for span in spans),
        cpu_s=sum(sum(span.cpu_s.values()) for span in spans),
        phases={phase: spent / len(spans) for phase, spent in our_phases(spans, timings).items()},
        completion_length=sum(row["completion/length"] for row in measured) / len(measured),
        details={
            "processes_cpu_s": [dict(span.cpu_s) for span in spans],
            "wall_s": {key: [row[key] for row in measured] for key in measured[0] if key.startswith("time/")},
        },
    )


def run_peer(place: Place, work: Work, beta: float, name: str, *, digests: Sequence[str], freeze: Sequence[str]) -> Run:
    """TRL's GRPO, in its own environment.

    Raises:
        SystemExit: its prompts are not ours.
    """
    directory = place.fresh(name)
    lines = directory / "steps.jsonl"
    options = {
        "checkpoint": place.checkpoint,
        "data": place.data / "peer.parquet",
        "out": directory,
        "prompts": work.prompts,
        "group-size": work.group_size,
        "tokens": work.tokens,
        "micro-batch": work.micro_batch,
        "steps": work.num_steps,
        "seed": SEED,
        "beta": beta,
        "learning-rate": work.learning_rate,
        "freeze": ",".join(freeze),
    }
    script = Path(__file__).with_name("vs_trl_peer.py")
    command = [str(place.venv / "bin" / "python"), str(script)]
    command += [f"--{option}={value}" for option, value in options.items()]
    moments = watch(command, lines=lines, log=directory / "log", environment=quiet({}), core=place.core)
    rows = list(read_lines(lines))
    if [row["prompts"] for row in rows] != list(digests):
        sys.exit(f"{lines}: TRL's prompts are not Polyphony's, token by token")
    spans = intervals(moments, warm_up=work.warm_up)
    measured = [row["metrics"] for row in rows[work.warm_up : -1]]
    return Run(
        name="TRL",
        beta=beta,
        samples=work.samples_per_step * len(spans),
        wall_s=sum(span.wall_s for span in spans),
        cpu_s=sum(sum(span.cpu_s.values()) for span in spans),
        phases={phase: spent / len(spans) for phase, spent in peer_phases(spans, rows[work.warm_up - 1 : -1]).items()},
        completion_length=sum(row["completions/mean_length"] for row in measured) / len(measured),
        details={**json.loads((directory / "setup.json").read_text(encoding="utf-8")), "metrics": measured},
    )


def quiet(environment: dict[str, str]) -> dict[str, str]:
    """What both sides get: one thread, no network, no progress bars."""
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
        **environment,
    }


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", type=Path, metavar="DIR", help="make TRL's environment there, and end")
    parser.add_argument("--venv", type=Path, default=Path("runs/trl-venv"), help="TRL's environment")
    parser.add_argument("--out", type=Path, default=Path("runs/vs_trl"), help="where everything goes")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.04], help="weights of the KL in the loss")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side at each weight")
    parser.add_argument("--prompts", type=int, default=64, help="prompts a step")
    parser.add_argument("--group-size", type=int, default=8, help="completions a prompt")
    parser.add_argument("--tokens", type=int, default=16, help="most tokens a completion")
    parser.add_argument("--micro-batch", type=int, default=64, help="completions in a pass of TRL's")
    parser.add_argument("--side", type=int, default=32, help="side of a picture in pixels, 16 to 64")
    parser.add_argument("--warm-up", type=int, default=1, help="first steps that are left out")
    parser.add_argument("--steps", type=int, default=3, help="steps measured")
    parser.add_argument("--core", type=int, default=None, help="the core that both use; the last one by default")
    parser.add_argument("--train-towers", action="store_true", help="let TRL train the vision tower, as it would")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over our recipe's")
    return parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs both sides in turns, prints the table, and one JSON object as the last line."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    if options.setup:
        set_up(options.setup)
        return
    names = ("prompts", "group_size", "tokens", "micro_batch", "side", "warm_up", "steps")
    work = Work(**{name: getattr(options, name) for name in names})
    core = max(os.sched_getaffinity(0)) if options.core is None and hasattr(os, "sched_getaffinity") else options.core
    place = Place(options.out.absolute(), options.venv.absolute(), core)
    if not (place.venv / "bin" / "python").is_file():
        sys.exit(f"--venv {options.venv}: no environment there; make it with --setup {options.venv}")
    setup = prepare(place, work)
    runs = run_in_turns(place, work, setup, options)
    summary = compare(runs)
    peer = next(run.details for run in runs if run.name == "TRL")
    unlike = [*caveats(summary), *differences(ours=setup, peer=peer, group_size=work.group_size)]
    if options.overrides:
        unlike.append(f"Our recipe besides: {' '.join(options.overrides)}.")
    command = shlex.join(["python", "-m", "benchmarks.vs_trl", *given])
    table, described = markdown(summary), work.describe(setup, options.repeats)
    print(f"\nWork: {described}\n\n{table}\n\nWhat differs:\n" + "\n".join(f"- {line}" for line in unlike))
    result: dict[str, Any] = {
        "benchmark": "vs_trl",
        "command": command,
        "machine": machine.describe(),
        "work": vars(work),
        "setup": setup,
        "summary": summary,
        "differences": unlike,
    }
    (place.out / "vs_trl.json").write_text(
        json.dumps({**result, "runs": [vars(run) for run in runs]}, indent=2), encoding="utf-8"
    )
    append_result(options.results, command=command, work=described, table=table, unlike=unlike)
    print(json.dumps(result))


def run_in_turns(place: Place, work: Work, setup: Mapping[str, Any], options: argparse.Namespace) -> list[Run]:
    """All runs of both sides; who goes first changes from pair to pair."""
    freeze = () if options.train_towers else setup["towers"]
    pairs = [(repeat, beta) for repeat in range(options.repeats) for beta in options.betas]
    runs: list[Run] = []
    for place_in_order, (repeat, beta) in enumerate(pairs):
        name = f"{beta:g}-{repeat}"
        sides = [
            partial(run_ours, place, work, beta, f"polyphony-{name}", options.overrides),
            partial(run_peer, place, work, beta, f"peer-{name}", digests=setup["digests"], freeze=freeze),
        ]
        for side in sides if place_in_order % 2 == 0 else reversed(sides):
            runs.append(side())
            print(runs[-1].line(), flush=True)
    return runs


if __name__ == "__main__":
    main()
