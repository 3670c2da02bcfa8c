"""Does a run that loses its workers end with the numbers of one that does not?

    a run in peace -> metrics, weights, and how often each role was asked for what, in which phase
    kills drawn over phases, roles, methods and ranks -> runs, a few kills each -> the same metrics and weights, to the
        last bit?

    python -m benchmarks.kills --kills 100 --seed 0

All runs have two ranks a world and two workers a pool on CPUs, a checkpoint a step, and evaluate as they go. A kill is
SIGKILL to the process of a worker, at the call or up to 0.15 s later. On top of these come SIGSTOP (of all events one
in `--hangs`), until the worker's deadline has passed, and (of those of pools one in `--nodes`) the end of the node on
which it lies, whose successor comes two seconds later. Pools lie on two nodes of their own in a cluster on this
machine. A learner resumes only after one has died: a kill while it resumes follows one in an update of the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from actors.fleet.recoveries import Recoveries
from actors.loop.crew import crew_of
from benchmarks import machine
from benchmarks.kills_report import Outcome, is_sound, num_kills, summary, table
from benchmarks.kills_watch import SPOT, STEADY, Call, How, Kill, Killer, Nodes, Phase, watched
from jobs import rlhf
from pipeline.config import Recipe, load_recipe
from pipeline.data import demo
from pipeline.models import tiny
from pipeline.tracking import read_metrics

POOLS = {"encoder", "rollout"}
WORLDS = {"policy", "critic", "reference", "reward"}
APART = tuple(f"rlhf.{role}.resources={{{SPOT if role in POOLS else STEADY}: 1}}" for role in sorted(POOLS | WORLDS))
SETTINGS = (
    "cluster.device=cpu",
    "cluster.max_recoveries_an_hour=100000",
    # Ray takes some 15 s to notice that a node has gone: who waits for features that lay there does not hang.
    "cluster.deadlines={first_s: 90, least_s: 30, factor: 4}",
    "run.sinks=[jsonl]",
    "data.num_readers=1",
    "prepare={train_rows: 8, validation_rows: 2, test_rows: 1}",
    *(f"rlhf.{role}.num_workers=2" for role in ("encoder", "rollout", "policy", "critic", "reference", "reward")),
    *(f"rlhf.{role}.zero_stage=1" for role in ("policy", "critic")),
    "rlhf.rollout.batch_size=2",
    "rlhf.prompts_per_step=6",
    "rlhf.group_size=2",
    "rlhf.checkpoints={save_every: 1, keep_last: 2}",
    "rlhf.sampling.max_new_tokens=6",
    "rlhf.rewards={learned: 1.0, length: 0.1}",
    "rlhf.parity.num_rows=4",
    "rlhf.evaluate_every=2",
    "rlhf.validation={num_prompts: 4, samples_per_prompt: 1}",
    "rlhf.policy.parts.vision_tower.mode=train",
)


def settings_of(directory: Path, shared: Path, *, num_steps: int) -> list[str]:
    """A run's settings; its earlier stages are the tiny checkpoint as it was built."""
    for stage in ("sft", "reward_model"):
        target = directory / "checkpoints" / stage
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(shared / "base")
    places = [f"run.directory={directory}", f"data.path={shared / 'data'}", f"model.path={shared / 'base'}"]
    return [*SETTINGS, f"rlhf.num_steps={num_steps}", *places]


def recipe_of(directory: Path, shared: Path, *, num_steps: int, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run."""
    return load_recipe(None, [*settings_of(directory, shared, num_steps=num_steps), *overrides])


def built(directory: Path) -> Path:
    """Data and checkpoint for all runs."""
    recipe = load_recipe(None, [*SETTINGS])
    demo.build(directory / "data", prepare=recipe.prepare, seed=0)
    tiny.build(directory / "base", architecture=recipe.model.tiny_architecture, corpus=demo.corpus(), seed=0)
    return directory


def fingerprint(recipe: Recipe) -> str:
    """A hash of all metrics that do not tell of time or losses, and of the weights handed on."""
    clock = ("time/", "wait/", "tokens_per_s/", "feature_cache/", "busy/", "phase/", "queue/")
    untold = (*clock, "counts/recoveries", "recovery/")
    rows = read_metrics(recipe.run.directory / "metrics")["rlhf"]
    told = [
        {name: value for name, value in row.items() if name != "time" and not name.startswith(untold)} for row in rows
    ]
    weights = hashlib.sha256((recipe.checkpoint("rlhf") / "model.safetensors").read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([told, weights], sort_keys=True).encode()).hexdigest()


def run(recipe: Recipe, kills: Sequence[Kill], nodes: Nodes | None = None) -> Outcome:
    """One run of the loop with these kills."""
    killer, started, error = Killer(kills, nodes), time.monotonic(), None
    recoveries: Recoveries | None = None
    with watched(killer):
        try:
            with crew_of(recipe) as crew:
                recoveries = crew.recoveries
                rlhf.run(recipe, crew=crew)
        except (Exception, KeyboardInterrupt) as failure:
            if isinstance(failure, KeyboardInterrupt):
                raise
            error = f"{type(failure).__name__}: {failure}"
    lost = [] if recoveries is None else recoveries.all
    return Outcome(
        "" if error else fingerprint(recipe),
        killer.counts,
        killer.killed,
        killer.hit,
        lost,
        max((each.steps for each in lost), default=0),
        error,
        time.monotonic() - started,
    )


def resuming(calls: Counter[Call]) -> list[Call]:
    """What learners are asked for when they come back, which a run in peace never asks for."""
    learners = [call.role for call in calls if call.phase is Phase.UPDATE]
    return [Call(Phase.LOAD, role, method) for role in learners for method in ("damages", "resume")]


def drawn(calls: Counter[Call], *, num: int, hangs: int, nodes: int, random: np.random.Generator) -> list[Kill]:
    """At least `num` events: over phases in rounds, each in another order; over the calls of a phase in turn; over
    ranks and occurrences of a call."""
    resumes, kinds = resuming(calls), dict[Phase, list[Call]]()
    for call in sorted({*calls, *resumes}):
        kinds.setdefault(call.phase, []).append(call)
    turns = [cycle([own[place] for place in random.permutation(len(own))]) for own in kinds.values()]

    def event(call: Call, first: int, last: int, how: How, *, follows: bool = False) -> Kill:
        occurrence = int(random.integers(first, last + 1))
        return Kill(call, int(random.integers(2)), occurrence, float(random.uniform(0.0, 0.15)), how, follows)

    found: list[Kill] = []
    num_of_pools = 0
    while len(found) < num:
        for call in [next(turns[place]) for place in random.permutation(len(turns))]:
            num_of_pools += call.role in POOLS
            how = How.KILL
            if hangs > 0 and len(found) % hangs == hangs - 1:
                how = How.HANG
            elif nodes > 0 and call.role in POOLS and num_of_pools % nodes == 0:
                how = How.NODE
            if call in resumes:
                # Of the later updates one: by then a checkpoint stands.
                update = Call(Phase.UPDATE, call.role, "update")
                found.append(event(update, calls[update] // 2 + 1, calls[update], How.KILL))
                found.append(event(call, 1, 1, how, follows=True))
            else:
                found.append(event(call, 1, calls[call], how))
    return found


def in_runs(plan: Sequence[Kill], size: int) -> Generator[list[Kill], None, None]:
    """The events of one run after the other, `size` of them and what follows from the last."""
    start = 0
    while start < len(plan):
        end = start + size
        while end < len(plan) and plan[end].follows:
            end += 1
        yield list(plan[start:end])
        start = end


def carried_out(
    plan: Sequence[Kill], *, kills: int, kills_a_run: int, carry_out: Callable[[int, list[Kill]], Outcome]
) -> list[Outcome]:
    """Runs, until there were as many SIGKILLs as was asked for; some events meet nobody, or somebody dead."""
    outcomes: list[Outcome] = []
    for some in in_runs(plan, kills_a_run):
        if num_kills(outcomes) >= kills:
            break
        outcomes.append(carry_out(len(outcomes), some))
    return outcomes


def measure(
    *,
    kills: int,
    seed: int,
    num_steps: int,
    kills_a_run: int,
    hangs: int,
    num_nodes: int,
    nodes: Nodes,
    out: Callable[[str], None],
) -> dict[str, Any]:
    """The machine-readable line: the peaceful run, then runs with kills until there were enough."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        shared = built(Path(directory) / "shared")
        peaceful = run(recipe_of(Path(directory) / "peace", shared, num_steps=num_steps, overrides=APART), [])
        if peaceful.error:
            raise RuntimeError(f"the run in peace failed: {peaceful.error}")
        out(f"in peace: {peaceful.seconds:.0f} s, {sum(peaceful.calls.values())} calls of {len(peaceful.calls)} kinds")

        def carry_out(index: int, some: list[Kill]) -> Outcome:
            target = Path(directory) / f"run-{index}"
            found = run(recipe_of(target, shared, num_steps=num_steps, overrides=APART), some, nodes)
            state = found.error or ("equal" if found.fingerprint == peaceful.fingerprint else "DIFFERENT")
            names = ", ".join(f"{each.how} {' '.join(each.call)}:{each.place}" for each in found.killed)
            out(f"run {index + 1}: {found.seconds:.0f} s, {state}, {num_kills([found])} SIGKILLs ({names})")
            return found

        plan = drawn(peaceful.calls, num=4 * kills, hangs=hangs, nodes=num_nodes, random=random)
        outcomes = carried_out(plan, kills=kills, kills_a_run=kills_a_run, carry_out=carry_out)
    out(table(outcomes, peaceful.calls + Counter(resuming(peaceful.calls))))
    return summary(outcomes, peaceful)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description="Kill workers; compare the numbers."
    )
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs; hangs and nodes come on top")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="steps of each run")
    parser.add_argument("--kills-a-run", type=int, default=5, help="events of a run, of any kind")
    parser.add_argument("--hangs", type=int, default=12, help="of so many events, one is a SIGSTOP; 0 is none")
    parser.add_argument(
        "--nodes", type=int, default=4, help="of so many events in pools, one takes the node; 0 is none"
    )
    parsed = parser.parse_args(arguments)
    nodes = Nodes()
    found = measure(
        kills=parsed.kills,
        seed=parsed.seed,
        num_steps=parsed.steps,
        kills_a_run=parsed.kills_a_run,
        hangs=parsed.hangs,
        num_nodes=parsed.nodes,
        nodes=nodes,
        out=lambda line: print(line, flush=True),
    )
    nodes.shutdown()
    print(machine.describe())
    print(json.dumps(found))
    sys.exit(0 if is_sound(found, wanted=parsed.kills) else 1)


if __name__ == "__main__":
    main()
