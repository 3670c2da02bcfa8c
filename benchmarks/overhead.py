"""What does it cost a step that everything in it can be lost and done again, when nothing is lost?

    the same empty call, asked of two workers directly, as a world and as a pool -> microseconds a call
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
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors.engine.engine import Place
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

    def warm_up(self, device: Device) -> None:
        """Nothing to import."""

    def setup(self, place: Place, path: Path) -> None:
        """Nothing to load."""

    def nothing(self, _: int) -> int:
        """Nothing."""
        return 0


def microseconds(ask: Callable[[], object], num_calls: int) -> float:
    """The median time of a call, of rounds of so many."""
    spent: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - started) / num_calls * 1e6)
    return median(spent)


def calls() -> dict[str, float]:
    """Microseconds of a call by who is asked."""
    recipe, settings = load_recipe(None, ["cluster.device=cpu"]), Pooled(num_workers=2)
    recoveries = Recoveries(max_an_hour=0)
    found: dict[str, float] = {}
    seating = seat({"idle": settings}, recipe.cluster)
    pool = Pool(Idle, "idle", seating, recipe, settings, recoveries)
    pool.setup(Path("/nowhere")).result()
    actors = pool.actors
    shares = list(range(CALLS))

    def direct() -> None:
        ray.get([actors[share % 2].perform.remote("nothing", share) for share in shares])

    found["direct"] = microseconds(direct, CALLS)
    found["pool"] = microseconds(lambda: pool.submit(Idle.nothing, shares).result(), CALLS)
    pool.shutdown()
    world = World(Idle, "idle", seating, recipe, settings)

    def rounds() -> None:
        for _ in range(CALLS // 2):
            world.on_each(Idle.nothing, [0, 1]).result()

    def direct_rounds() -> None:
        for _ in range(CALLS // 2):
            ray.get([actor.perform.remote("nothing", 0) for actor in world.actors])

    found["direct rounds"] = microseconds(direct_rounds, CALLS)
    found["world"] = microseconds(rounds, CALLS)
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
    more = asked["pool"] * (cost["pool"] - cost["direct"]) + asked["world"] * (cost["world"] - cost["direct rounds"])
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
