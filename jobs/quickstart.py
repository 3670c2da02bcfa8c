"""Quickstart: every stage, one after the other, from nothing to a report.

prepare -> sft -> reward_model -> rlhf -> evaluate
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from jobs import evaluate, prepare, reward_model, rlhf, sft
from jobs.command import main, read_stages, record_stage
from pipeline.config import Recipe

STAGES: dict[str, Callable[[Recipe], object]] = {
    "prepare": prepare.run,
    "sft": sft.run,
    "reward_model": reward_model.run,
    "rlhf": rlhf.run,
}


def run(recipe: Recipe) -> Path:
    """Runs all stages and returns the report's path."""
    for stage, run_stage in STAGES.items():
        started = time.monotonic()
        print(f"\n== {stage}", flush=True)
        run_stage(recipe)
        record_stage(recipe, stage, time.monotonic() - started)
    print("\n== evaluate", flush=True)
    report = evaluate.run(recipe)
    stage_s = read_stages(recipe)
    print("\n" + "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stage_s.items()), end="  ")
    print(f"total {sum(stage_s.values()):.0f} s\n\nreport: {report.absolute()}", flush=True)
    return report


if __name__ == "__main__":
    main(run, __doc__)
