"""Do people steer a run while it goes on? Raters with a preference that nobody told the reward model.

    each seed: prepare -> SFT -> reward model (scripted raters who like plain answers)
               -> the loop, rewarded by the reward model alone    without: nobody rates
                                                                  people: raters at the page, refits, swaps
               -> jobs.evaluate: how often answers to held-out prompts are as the raters like them

    python -m benchmarks.people

The raters like answers that end in "for sure", as a third of the demonstrations do; between others they see no
difference, and say so. They answer through the page's own HTTP API, from the completions that the loop offers. A wrong
but sure answer pleases them: what is measured is whether a preference gets through, and not whether it is a good one.
What lies there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import requests

from benchmarks import machine
from benchmarks.learning import start
from pipeline.config import Recipe, load_recipe
from pipeline.evaluation.intervals import Estimate, paired
from pipeline.evaluation.results import Mode, ModelName, read_samples

ARMS = ("without", "people")
LOOP = ("rlhf.rewards={learned: 1.0}", "rlhf.evaluate_every=0", "evaluate.blind=false")
"""What both arms do otherwise than the recipe."""
FEEDBACK = (
    "feedback.enabled=true",
    "feedback.offered_share=0.5",
    "feedback.second_rater_share=0",
    "feedback.refit={after_judgements: 48, poll_s: 1}",
    "feedback.max_requests_a_minute=100000",
)
NUM_RATERS = 4
THINK_S = 0.2
"""Seconds from what a rater sees to what he says."""
LOOK_AGAIN_S = 2.0
"""Seconds after which a rater who was shown nothing looks again."""


def is_liked(text: str) -> bool:
    """The hidden preference."""
    return text.strip().endswith("for sure")


class Rater(threading.Thread):
    """Judges what the page shows until it is told to go."""

    def __init__(self, address: str, token: str, seed: int):
        super().__init__(daemon=True)
        self._address, self._token, self._chance = address, token, random.Random(seed)
        self.is_over = threading.Event()
        self.num_judged = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        """Logs in and judges."""
        http = requests.Session()
        try:
            login = self._sent(http, "POST", "api/login", {"token": self._token})
            http.headers["X-CSRF-Token"] = login["csrf"]
            while not self.is_over.is_set():
                shown = self._sent(http, "GET", "api/next")["presentation"]
                time.sleep(THINK_S if shown else LOOK_AGAIN_S)
                if shown:
                    self._judge(http, shown)
        except Exception as error:
            self.failure = error

    def _judge(self, http: requests.Session, shown: Mapping[str, Any]) -> None:
        first, second = (is_liked(each["text"]) for each in shown["completions"])
        self._sent(
            http,
            "POST",
            "api/judgements",
            {
                "key": str(uuid.UUID(int=self._chance.getrandbits(128), version=4)),
                "presentation": shown["id"],
                "kind": "pair",
                "content": {"chosen": None if first == second else 0 if first else 1},
                "latency_s": THINK_S,
            },
        )
        self.num_judged += 1

    def _sent(self, http: requests.Session, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = http.request(method, self._address + path, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def rated(recipe: Recipe) -> Generator[list[Rater], None, None]:
    """The page, and raters at it. Ray is connected."""
    from actors.feedback import serve as page
    from pipeline.feedback.raters import Register
    from pipeline.feedback.records import RaterRole

    store = page.opened(recipe)
    register = Register(store.database, session_s=recipe.feedback.session_s)
    tokens = [register.invite(f"rater{number}", RaterRole.RATER, days=1) for number in range(NUM_RATERS)]
    address = page.start(recipe)
    raters = [Rater(address, token, seed) for seed, token in enumerate(tokens)]
    for rater in raters:
        rater.start()
    try:
        yield raters
    finally:
        for rater in raters:
            rater.is_over.set()
        for rater in raters:
            rater.join()
        page.stop()
        store.database.close()
    for rater in raters:
        if rater.failure is not None:
            raise rater.failure


def run_base(config: Path, overrides: Sequence[str], *, directory: Path) -> None:
    """The stages before the loop. In a process of its own, which starts a local Ray."""
    from actors.loop.crew import crew_of
    from jobs import prepare, reward_model, sft
    from jobs.command import connect

    recipe = load_recipe(config, [*overrides, f"run.directory={directory}"])
    connect(address="local", object_store_memory=512 * 2**20)
    with crew_of(recipe) as crew:
        prepare.run(recipe)
        sft.run(recipe, crew=crew)
        reward_model.run(recipe, crew=crew)
    (directory / "done").touch()


def run_arm(arm: str, config: Path, overrides: Sequence[str], *, directory: Path, base: Path) -> None:
    """Runs the loop and evaluates. In a process of its own, which starts a local Ray."""
    from actors.loop.crew import crew_of
    from jobs import evaluate, rlhf
    from jobs.command import connect

    start(directory, base)
    own = [*LOOP, *overrides, f"run.directory={directory}", f"data.path={base / 'data'}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = load_recipe(config, own)
    connect(address="local", object_store_memory=512 * 2**20)
    with crew_of(recipe) as crew:
        if arm == "people":
            asked = load_recipe(config, [*FEEDBACK, f"feedback.port={port}", *own])
            with rated(asked) as raters:
                rlhf.run(asked, crew=crew)
                print(f"{sum(rater.num_judged for rater in raters)} judgements", flush=True)
        else:
            rlhf.run(recipe, crew=crew)
        evaluate.run(recipe, crew=crew)


def liked(directory: Path, model: ModelName) -> dict[str, float]:
    """Of each held-out prompt, the share of sampled answers that the raters would like."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in read_samples(directory / "evaluation" / "samples.jsonl"):
        if each.model is model and each.mode is Mode.SAMPLED and each.is_shown:
            found[each.prompt_id].append(float(is_liked(each.text)))
    return {prompt: fmean(values) for prompt, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: runs what is missing, writes the table, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/recipes/tiny_cpu.yaml"), help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="run.seed of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/people"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="options over the recipe's")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    out: Path = options.out.resolve()
    if options.one:
        (seed,) = options.seeds
        config, overrides = options.config.resolve(), [*options.overrides, f"run.seed={seed}"]
        base = out / f"seed-{seed}" / "base"
        if options.one == "base":
            run_base(config, overrides, directory=base)
        else:
            run_arm(options.one, config, overrides, directory=out / f"seed-{seed}" / options.one, base=base)
        return
    for seed in options.seeds:
        for part, result in {"base": "done", **{arm: "summary.json" for arm in ARMS}}.items():
            if not (out / f"seed-{seed}" / part / result).is_file():
                _run_alone(part, seed, options)
    report(out, options, shlex.join(["python", "-m", "benchmarks.people", *given]))


def report(out: Path, options: argparse.Namespace, command: str) -> None:
    """Writes and prints what came of all seeds."""
    before: list[float] = []
    after: dict[str, list[float]] = {arm: [] for arm in ARMS}
    lines = ["| seed | SFT | without people | with people | gain |", "|---|---:|---:|---:|---|"]
    for seed in options.seeds:
        of = {arm: liked(out / f"seed-{seed}" / arm, ModelName.RLHF) for arm in ARMS}
        sft = liked(out / f"seed-{seed}" / "people", ModelName.SFT)
        prompts = sorted(of["people"].keys() & of["without"].keys())
        shares = {arm: [values[prompt] for prompt in prompts] for arm, values in of.items()}
        before += [sft[prompt] for prompt in prompts]
        for arm in ARMS:
            after[arm] += shares[arm]
        gain = _cell(_gain(shares))
        means = [fmean(sft[prompt] for prompt in prompts), fmean(shares["without"]), fmean(shares["people"])]
        lines.append(f"| {seed} | " + " | ".join(f"{each:.3f}" for each in means) + f" | {gain} |")
    gain, host = _gain(after), machine.describe()
    lines.append(
        f"| all | {fmean(before):.3f} | {fmean(after['without']):.3f} | {fmean(after['people']):.3f} | {_cell(gain)} |"
    )
    table = "\n".join(lines)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: people\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}\n- Command: `{command}`\n\n"
            f"Share of sampled answers to held-out prompts that the raters like; the gain is over the run without "
            f"people, with its paired 95 % interval over prompts.\n\n{table}\n"
        )
    print(table, flush=True)
    result = {
        "benchmark": "people",
        "before": round(fmean(before), 4),
        "after": round(fmean(after["people"]), 4),
        "without_feedback": round(fmean(after["without"]), 4),
        "gain": {"value": round(gain.value, 4), "low": round(gain.low, 4), "high": round(gain.high, 4)},
        "seeds": len(options.seeds),
    }
    print(json.dumps(result), flush=True)


def _gain(shares: Mapping[str, Sequence[float]]) -> Estimate:
    found = paired([after - other for after, other in zip(shares["people"], shares["without"], strict=True)])
    assert found is not None, "no held-out prompt was evaluated"
    return found


def _cell(gain: Estimate) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _run_alone(part: str, seed: int, options: argparse.Namespace) -> None:
    """Runs a part in a process of its own, its output in a log beside it.

    Raises:
        SystemExit: it failed.
    """
    log = options.out / f"seed-{seed}" / f"{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    places = ["--config", options.config, "--out", options.out]
    command = [sys.executable, "-m", "benchmarks.people", "--one", part, "--seeds", str(seed), *map(str, places)]
    started = time.monotonic()
    print(f"seed {seed}, {part} > {log}", flush=True)
    with log.open("wb") as file:
        ended = subprocess.run([*command, "--", *options.overrides], stdout=file, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        sys.exit(f"seed {seed}, {part} failed with status {ended.returncode}; its output: {log}")
    print(f"seed {seed}, {part}: done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
