"""Polyphony's side of `benchmarks.vs_trl`: the true driver, `jobs.rlhf.run`, on a local Ray, its optimizer timed.

    overrides -> recipe -> jobs.rlhf.run -> <run>/metrics/rlhf.jsonl, a line a step
                              workers    -> <run>/optimizer.jsonl, a line an optimizer step

It differs from `python -m jobs.rlhf` in one thing: workers start with a hook that times `Optimizer.step`, which nobody
could see from outside. Everything else is measured from outside, by the caller.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray

from jobs import rlhf
from pipeline.config import load_recipe

TIMINGS = "POLYPHONY_OPTIMIZER_TIMINGS"
ROOT = Path(__file__).resolve().parent.parent


def time_optimizer() -> None:
    """In a worker: appends `{"time", "cpu_s"}` to the file named by TIMINGS after each step of an optimizer."""
    optimizer: Any = importlib.import_module("torch.optim.optimizer")
    started: list[float] = []

    def after(*_: Any) -> None:
        spent = time.process_time() - started.pop()
        with Path(os.environ[TIMINGS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "cpu_s": spent}) + "\n")

    optimizer.register_optimizer_step_pre_hook(lambda *_: started.append(time.process_time()))
    optimizer.register_optimizer_step_post_hook(after)


def main() -> None:
    """Command line: `section.field=value ...` over the defaults."""
    recipe = load_recipe(None, sys.argv[1:])
    timings = str(recipe.run.directory.absolute() / "optimizer.jsonl")
    ray.init(
        address="local",
        num_cpus=2,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={
            "env_vars": {"PYTHONPATH": str(ROOT), TIMINGS: timings},
            "worker_process_setup_hook": "benchmarks.vs_trl_ours.time_optimizer",
        },
    )
    rlhf.run(recipe)


if __name__ == "__main__":
    main()
