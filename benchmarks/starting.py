"""How long until a run's workers are up, and how much memory do they hold? As copies, and each by itself.

    a Ray of its own each time, in turns -> eight workers of four sharded roles -> seconds, MiB

    python -m benchmarks.starting

Seconds end when every worker has imported what it needs, and do not count Ray's own start. MiB are proportional
(PSS): what processes share is divided between them, and the server counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import psutil
import ray

from actors.fleet import world
from actors.fleet.forks import SERVE, copied, descendants
from benchmarks import machine
from benchmarks.reusable import start
from jobs.command import connect
from pipeline.config import load_recipe

ROLES = ("policy", "critic", "reference", "reward")
NUM_RANKS = 2
OURS = ("ray::Reusable", SERVE)


def measured(*, copies: bool) -> dict[str, float]:
    """What it takes to start the workers on a Ray of their own."""
    world.copied = copied if copies else lambda _: {}
    connect(copies=copies, address="local", num_cpus=8, include_dashboard=False)
    try:
        recipe = load_recipe(None, ["cluster.device=cpu"])
        started = time.monotonic()
        worlds: Mapping[str, Any] = start(recipe, dict.fromkeys(ROLES, NUM_RANKS))
        ray.get([warm for each in worlds.values() for warm in each.warm])
        seconds = time.monotonic() - started
        mib = 0.0
        for each in descendants(psutil.Process()):
            with suppress(psutil.Error):  # It has ended meanwhile.
                if any(name in " ".join(each.cmdline()) for name in OURS):
                    mib += each.memory_full_info().pss / 2**20
    finally:
        ray.shutdown()
    return {"seconds": seconds, "mib": mib}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: prints a line each time, then the medians and their ratios as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="times each way")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found: dict[str, list[dict[str, float]]] = {"by itself": [], "copies": []}
    for _ in range(options.repeats):
        for way, measurements in found.items():
            measurements.append(measured(copies=way == "copies"))
            print(
                f"{way:<10} " + ", ".join(f"{value:.1f} {name}" for name, value in measurements[-1].items()), flush=True
            )
    medians = {
        way: {name: median(each[name] for each in measurements) for name in measurements[0]}
        for way, measurements in found.items()
    }
    ratio = {name: medians["by itself"][name] / value for name, value in medians["copies"].items()}
    workers = len(ROLES) * NUM_RANKS
    print(
        json.dumps(
            {"benchmark": "starting", "machine": machine.describe(), "workers": workers, **medians, "ratio": ratio}
        )
    )


if __name__ == "__main__":
    main()
