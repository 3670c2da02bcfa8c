"""Quickstart: every stage, one after the other, from nothing to a report.

    prepare -> sft -> reward_model -> rlhf -> evaluate

On CPUs the stages share their workers, and those of later stages start while SFT trains on one core: importing what
they need takes as long as a short stage. On GPUs each stage starts its own, because the stages take turns there.
With `run.resume=auto` a run that was cut off goes on: stages that are done stay done, the loop goes on from its last
checkpoint, and any other stage begins again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from actors.loop.crew import TRAININGS, crew_of, loop_paths
from jobs import evaluate, prepare, reward_model, rlhf, sft
from jobs.command import main, read_stages, record_stage
from jobs.directory import Done
from pipeline.config import Recipe
from pipeline.evaluation.report import REPORT_FILE

STAGES = {
    "prepare": ("model", "data", "prepare"),
    "sft": ("sft",),
    "reward_model": ("preferences", "reward_model"),
    "rlhf": ("rlhf",),
    "evaluate": ("evaluate",),
}
"""The sections of the recipe that each stage depends on, beside those of the stages before it."""


def run(recipe: Recipe) -> Path:
    """Runs all stages that are not done and returns the report's path."""
    done = Done(recipe, STAGES)
    # Opened before the loop: whoever is to judge has something to look at while the model learns to answer.
    with crew_of(recipe) as workers, nullcontext() if done.has("rlhf") else _page(recipe):
        crew = workers if workers.fits_whole() else None
        if crew is not None and not done.all():
            first, *others = [each for each in TRAININGS if not done.has(each)] or ["rollout"]
            crew.plan([first, "encoder", *loop_paths(recipe), *evaluate.ROLES, *others])
            for _ in (first, "encoder"):  # The rest while SFT trains.
                crew.start_next()
        # The loop's checkpoints of an earlier try are of its policy: where that is learned anew, so is the loop.
        resume = None if done.has("reward_model") else False
        stages: dict[str, Callable[[], object]] = {
            "prepare": lambda: prepare.run(recipe),
            "sft": lambda: sft.run(recipe, crew=crew),
            "reward_model": lambda: reward_model.run(recipe, crew=crew),
            "rlhf": lambda: rlhf.run(recipe, resume=resume, crew=crew),
            "evaluate": lambda: evaluate.run(recipe, crew=crew),
        }
        for stage, run_stage in stages.items():
            print(f"\n== {stage}" + (": done before" if done.has(stage) else ""), flush=True)
            if not done.has(stage):
                started = time.monotonic()
                run_stage()
                if stage != "evaluate":  # Its report tells its time, so that it is noted by then.
                    record_stage(recipe, stage, time.monotonic() - started)
                done.add(stage)
    report, stage_s = recipe.run.directory / REPORT_FILE, read_stages(recipe)
    print("\n" + "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stage_s.items()), end="  ")
    print(f"total {sum(stage_s.values()):.0f} s\n\nreport: {report.absolute()}", flush=True)
    return report


def _page(recipe: Recipe) -> AbstractContextManager[object]:
    if not recipe.feedback.enabled:
        return nullcontext()
    from actors.feedback import serve  # imports Ray Serve, which other runs do without

    return serve.shown(recipe)


if __name__ == "__main__":
    main(run, __doc__)
