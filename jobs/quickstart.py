"""Quickstart: every stage, one after the other, from nothing to a report.

    prepare -> sft -> reward_model -> rlhf -> evaluate

On CPUs the stages share their workers, and those of later stages start while SFT trains on one core: importing what
they need takes as long as a short stage. On GPUs each stage starts its own, because the stages take turns there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from actors.loop.crew import crew_of, loop_paths
from jobs import evaluate, prepare, reward_model, rlhf, sft
from jobs.command import main, read_stages, record_stage
from pipeline.config import Recipe


def run(recipe: Recipe) -> Path:
    """Runs all stages and returns the report's path."""
    with crew_of(recipe) as workers:
        crew = workers if workers.fits_whole() else None
        if crew is not None:
            crew.plan(["sft", "encoder", *loop_paths(recipe), *evaluate.ROLES, "reward_model"])
            for _ in ("sft", "encoder"):  # The rest while SFT trains.
                crew.start_next()
        stages: dict[str, Callable[[], object]] = {
            "prepare": lambda: prepare.run(recipe),
            "sft": lambda: sft.run(recipe, crew=crew),
            "reward_model": lambda: reward_model.run(recipe, crew=crew),
            "rlhf": lambda: rlhf.run(recipe, crew=crew),
        }
        for stage, run_stage in stages.items():
            started = time.monotonic()
            print(f"\n== {stage}", flush=True)
            run_stage()
            record_stage(recipe, stage, time.monotonic() - started)
        print("\n== evaluate", flush=True)
        report = evaluate.run(recipe, crew=crew)
    stage_s = read_stages(recipe)
    print("\n" + "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stage_s.items()), end="  ")
    print(f"total {sum(stage_s.values()):.0f} s\n\nreport: {report.absolute()}", flush=True)
    return report


if __name__ == "__main__":
    main(run, __doc__)
