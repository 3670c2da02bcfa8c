"""What does it cost a step that everything in it can be lost and done again, when nothing is lost?

    the same empty call, asked of two workers at a time: directly, as a world, as a pool -> microseconds a call
    a run of the loop -> calls a step, seconds a step, seconds in which the driver did something itself

    python -m benchmarks.overhead

The share is that of the calls' difference to direct ones, over all calls of a step, in the step's seconds. All is
measured in one process, the run last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.engine.place import Place
from actors.fleet.placement import seat
from actors.fleet.pool import Pool
from actors.fleet.recoveries import Recoveries
from actors.fleet.worker import Worker
from actors.fleet.world import World
from benchmarks import machine
from benchmarks.kills import POOLS, Killer, built, recipe_of, watched
from jobs import rlhf
from jobs.command import connect
from pipeline.config import Device, Pooled, load_recipe
from pipeline.tracking import read_metrics

ROUNDS = 9
CALLS = 200
WARM_STEPS = 1
"""Steps that are not counted: what is imported and compiled for the first time is no step's cost."""


class Idle(Worker):
    """Does nothing."""

    imports_models = False

    def warm_up(self, device: Device) -> None:
        """Nothing to import."""

    def setup(self, place: Place, path: Path) -> None:
        """Nothing to load."""

    def nothing(self, _: int) -> int:
        """Nothing."""
        return 0


def microseconds(asked: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median time of a call by who asks two workers at once; they take turns, so that all see the same machine."""
    spent: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, ask in asked.items():
            started = time.perf_counter()
            for _ in range(CALLS // 2):
                ask()
            spent[name].append((time.perf_counter() - started) / CALLS * 1e6)
    return {name: median(each) for name, each in spent.items()}


def calls() -> dict[str, float]:
    """Microseconds of a call by who is asked."""
    recipe, settings = load_recipe(None, ["cluster.device=cpu"]), Pooled(num_workers=2)
    recoveries = Recoveries(max_an_hour=0)
    seating = seat({"pool": settings, "world": settings}, recipe.cluster)
    pool = Pool(Idle, "pool", seating, recipe, settings, recoveries)
    pool.setup(Path("/nowhere")).result()
    world = World(Idle, "world", seating, recipe, settings)
    world.setup(Path("/nowhere")).result()
    asked: dict[str, Callable[[], object]] = {
        "direct": lambda: ray.get([actor.perform.remote("nothing", 0) for actor in world.actors]),
        "world": lambda: world.on_each(Idle.nothing, [0, 1]).result(),
        "pool": lambda: pool.submit(Idle.nothing, [0, 1]).result(),
    }
    found = microseconds(asked)
    pool.shutdown()
    world.shutdown()
    seating.release()
    return found


def measure(num_steps: int) -> dict[str, Any]:
    """The machine-readable line."""
    cost = calls()
    with tempfile.TemporaryDirectory(prefix="overhead-") as directory:
        shared = built(Path(directory) / "shared")
        recipe = recipe_of(Path(directory) / "run", shared, num_steps=num_steps, overrides=["rlhf.evaluate_every=0"])
        killer = Killer([], None)
        with watched(killer):
            rlhf.run(recipe)
        rows = read_metrics(recipe.run.directory / "metrics")["rlhf"][WARM_STEPS:]
    asked = {kind: 0 for kind in ("pool", "world")}
    for (role, _), number in killer.calls.items():
        asked["pool" if role in POOLS else "world"] += number
    step_s = median(row["time/step_s"] for row in rows)
    more = sum(asked[kind] * (cost[kind] - cost["direct"]) for kind in asked)
    return {
        "benchmark": "overhead",
        "call_us": {name: round(value, 1) for name, value in cost.items()},
        "calls_a_step": {kind: round(number / num_steps, 1) for kind, number in asked.items()},
        "step_s": round(step_s, 3),
        "share_of_step": round(more / num_steps * 1e-6 / step_s, 5),
        "driver_share": round(median(row["busy/driver"] for row in rows), 4),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="What does recovery cost?")
    parser.add_argument("--steps", type=int, default=6)
    parsed = parser.parse_args(arguments)
    connect(address="local", num_cpus=8)
    found = measure(parsed.steps)
    print(machine.describe())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
