"""Does a run that loses its workers end with the numbers of one that does not?

    a run in peace -> metrics, weights, and how often each role was asked for what
    kills drawn over roles, ranks and calls -> runs, a few kills each -> the same metrics and weights, to the last bit?

    python -m benchmarks.kills --kills 100 --seed 0

All runs have two ranks a world and two workers a pool on CPUs, a checkpoint a step, and evaluate as they go. A kill is
SIGKILL to the process of a worker at the call, or (one in `--hangs`) SIGSTOP, until its deadline has passed; or (of
those of pools one in `--nodes`) the end of the node on which it lies, whose successor comes two seconds later. Pools
lie on two nodes of their own in a cluster on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from actors.fleet.pool import Pool
from actors.fleet.recoveries import Recoveries, Recovery
from actors.fleet.staff import Staff
from actors.fleet.world import World
from actors.loop.crew import crew_of
from benchmarks import machine
from jobs import rlhf
from jobs.command import connect
from pipeline.config import Recipe, load_recipe
from pipeline.data import demo
from pipeline.models import tiny
from pipeline.tracking import read_metrics

Call = tuple[str, str]
"""A role and the method that it is asked for."""
POOLS = {"encoder", "rollout"}
SPOT, STEADY = "spot", "steady"
"""The resources of nodes on which pools lie, and of that on which worlds do."""
WORLDS = {"policy", "critic", "reference", "reward"}
APART = tuple(f"rlhf.{role}.resources={{{SPOT if role in POOLS else STEADY}: 1}}" for role in sorted(POOLS | WORLDS))
SETTINGS = (
    "cluster.device=cpu",
    "cluster.max_recoveries_an_hour=100000",
    "cluster.deadlines={first_s: 90, least_s: 20, factor: 4}",
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


class How(StrEnum):
    """What happens to a worker."""

    KILL = "kill"
    HANG = "hang"
    NODE = "node"


@dataclass(frozen=True)
class Kill:
    """What happens to the worker at `place` when its role is asked for `call` the `occurrence`-th time."""

    call: Call
    place: int
    occurrence: int
    delay_s: float
    how: How = How.KILL


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it lost on the way."""

    fingerprint: str
    calls: Counter[Call]
    killed: list[Kill]
    recoveries: list[Recovery]
    steps_lost_most: int
    error: str | None
    seconds: float


class Nodes:
    """A cluster on this machine: a head for the worlds, and two nodes for a worker of each pool."""

    def __init__(self) -> None:
        # Not at exit, for which Ray sets signal handlers: nodes are added in a thread that kills.
        head = {"num_cpus": 8, "include_dashboard": False, "resources": {STEADY: 100}}
        self._cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
        for _ in range(2):
            self._add()
        connect(address=self._cluster.address)

    def _add(self) -> None:
        self._cluster.add_node(num_cpus=2, resources={SPOT: 1})

    def end(self, node_id: str) -> None:
        """Ends a node with all that is on it; another one like it comes."""
        node = next(each for each in self._cluster.worker_nodes if each.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        time.sleep(2)
        self._add()

    def shutdown(self) -> None:
        """Ends the cluster."""
        ray.shutdown()
        self._cluster.shutdown()


class Killer:
    """Counts calls as the driver makes them, and kills who is at one that was drawn."""

    def __init__(self, kills: Sequence[Kill], nodes: Nodes | None):
        self._left = list(kills)
        self._nodes = nodes
        self.killed: list[Kill] = []
        self.calls: Counter[Call] = Counter()
        self._processes: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def met(self, actor: Any) -> None:
        """Takes note of a worker's process."""
        self._processes[actor] = actor.__ray_call__.remote(
            lambda _: (os.getpid(), ray.get_runtime_context().get_node_id())
        )

    def asked(self, call: Call, place: int, actor: Any) -> None:
        """A worker was given a call."""
        with self._lock:
            self.calls[call] += 1
            due = [kill for kill in self._left if kill.call == call and kill.occurrence <= self.calls[call]]
            kill = next((kill for kill in due if kill.place == place), None)
            if kill is not None:
                self._left.remove(kill)
                threading.Timer(kill.delay_s, self._kill, (kill, actor)).start()

    def _kill(self, kill: Kill, actor: Any) -> None:
        try:
            process, node = ray.get(self._processes[actor], timeout=20)
            if kill.how is How.NODE and self._nodes is not None:
                self._nodes.end(node)
            else:
                os.kill(process, signal.SIGSTOP if kill.how is How.HANG else signal.SIGKILL)
        except (RayError, ProcessLookupError):
            return  # It has died of another one, or with its world.
        self.killed.append(kill)


@contextmanager
def watched(killer: Killer) -> Generator[None, None, None]:
    """Shows the killer all workers that start and all calls that are made in here."""
    start, ask, started, give = World._start, World._ask, Staff._started, Pool._give  # pyright: ignore[reportPrivateUsage]

    def watched_start(world: World[Any]) -> None:
        start(world)
        for actor in world.actors:
            killer.met(actor)

    def watched_ask(world: World[Any], method: str, *args: Any, **kwargs: Any) -> Any:
        answer = ask(world, method, *args, **kwargs)
        for place, actor in enumerate(world.actors):
            killer.asked((world.role, method), place, actor)
        return answer

    def watched_started(staff: Staff, *seat: Any) -> Any:
        member = started(staff, *seat)
        killer.met(member.actor)
        return member

    def watched_give(pool: Pool[Any], task: Any, member: Any) -> None:
        give(pool, task, member)
        killer.asked((pool.role, task.method), member.seat, member.actor)

    patches: dict[tuple[Any, str], Any] = {
        (World, "_start"): watched_start,
        (World, "_ask"): watched_ask,
        (Staff, "_started"): watched_started,
        (Pool, "_give"): watched_give,
    }
    for (owner, name), value in patches.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in zip(patches, (start, ask, started, give), strict=True):
            setattr(owner, name, value)


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
    untold = ("time/", "tokens_per_s/", "feature_cache/", "busy/", "phase/", "counts/recoveries")
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
        killer.calls,
        killer.killed,
        lost,
        max((each.steps for each in lost), default=0),
        error,
        time.monotonic() - started,
    )


def drawn(calls: Counter[Call], *, num: int, hangs: int, nodes: int, random: np.random.Generator) -> list[Kill]:
    """Kills, evenly over the kinds of calls that there were, and over ranks and occurrences within a kind."""
    num_of_pools = 0
    kinds = sorted(calls)
    order = [kinds[place] for place in random.permutation(len(kinds))]
    found: list[Kill] = []
    for index in range(num):
        call = order[index % len(order)]
        num_of_pools += call[0] in POOLS
        how = How.KILL
        if hangs > 0 and index % hangs == hangs - 1:
            how = How.HANG
        elif nodes > 0 and call[0] in POOLS and num_of_pools % nodes == 0:
            how = How.NODE
        found.append(
            Kill(
                call,
                int(random.integers(2)),
                int(random.integers(1, calls[call] + 1)),
                float(random.uniform(0.0, 0.15)),
                how,
            )
        )
    return found


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
        outcomes: list[Outcome] = []
        plan = drawn(peaceful.calls, num=4 * kills, hangs=hangs, nodes=num_nodes, random=random)
        while (num := sum(len(each.killed) for each in outcomes)) < kills and plan:
            some, plan = plan[:kills_a_run], plan[kills_a_run:]
            target = Path(directory) / f"run-{len(outcomes)}"
            found = run(recipe_of(target, shared, num_steps=num_steps, overrides=APART), some, nodes)
            outcomes.append(found)
            state = found.error or ("equal" if found.fingerprint == peaceful.fingerprint else "DIFFERENT")
            names = ", ".join(f"{kill.how} {kill.call[0]}.{kill.call[1]}:{kill.place}" for kill in found.killed)
            out(
                f"run {len(outcomes)}: {found.seconds:.0f} s, {state}, {num + len(found.killed)} kills so far ({names})"
            )
    return summary(outcomes, peaceful)


def summary(outcomes: Sequence[Outcome], peaceful: Outcome) -> dict[str, Any]:
    """Counts over all kills; a kill counts as ended, equal, alone, where the whole run was."""

    def counted(holds: Callable[[Outcome], bool]) -> int:
        return sum(len(each.killed) for each in outcomes if holds(each))

    seconds: dict[str, list[float]] = {}
    for recovery in (recovery for each in outcomes for recovery in each.recoveries):
        if recovery.seconds is not None:
            seconds.setdefault(recovery.role, []).append(recovery.seconds)
    kinds = Counter(kill.how.value for each in outcomes for kill in each.killed)
    methods = Counter(kill.call[1] for each in outcomes for kill in each.killed)
    return {
        "benchmark": "kills",
        "kills": counted(lambda _: True),
        "ended": counted(lambda each: each.error is None),
        "equal": counted(lambda each: each.fingerprint == peaceful.fingerprint),
        "steps_lost_most": max((each.steps_lost_most for each in outcomes), default=0),
        "only_the_failed_role": counted(only_the_failed),
        "recovery_s": {
            role: {"median": round(median(values), 1), "most": round(max(values), 1)}
            for role, values in sorted(seconds.items())
        },
        "events": {**kinds, **{f"at {name}": count for name, count in sorted(methods.items())}},
    }


def only_the_failed(outcome: Outcome) -> bool:
    """Whether no role was started again that was not killed; policy and critic go together."""
    killed = {kill.call[0] for kill in outcome.killed}
    if any(kill.how is How.NODE for kill in outcome.killed):
        killed |= POOLS  # A worker of each lies there.
    allowed = killed | {"features"} | ({"policy", "critic"} if killed & {"policy", "critic"} else set())
    return {each.role for each in outcome.recoveries} <= allowed


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description="Kill workers; compare the numbers."
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="steps of each run")
    parser.add_argument("--kills-a-run", type=int, default=5)
    parser.add_argument("--hangs", type=int, default=12, help="of so many, one is a SIGSTOP; 0 is none")
    parser.add_argument("--nodes", type=int, default=4, help="of so many kills in pools, one takes the node; 0 is none")
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
    sys.exit(0 if found["kills"] == found["ended"] == found["equal"] else 1)


if __name__ == "__main__":
    main()
