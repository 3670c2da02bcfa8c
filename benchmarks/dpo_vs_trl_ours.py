"""Polyphony's side of `benchmarks.dpo_vs_trl`: the true driver, `jobs.preference.run`, on a local Ray.

    overrides -> recipe -> jobs.preference.run -> <run>/lines.jsonl, a line when a batch has its reference, and a step

It differs from `python -m jobs.preference` in these lines alone, which its driver writes as it hears of each.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.training import supervised
from actors.training.references import ReferenceLogprobs
from jobs import preference
from pipeline.config import load_recipe

ROOT = Path(__file__).resolve().parent.parent
REFERENCE, STEP = "reference", "step"


def noted(function: Callable[..., Any], lines: Path, what: str, *, counts: Callable[..., bool]) -> Callable[..., Any]:
    """`function`, with a line about each call that counts once it is done."""

    def wrapper(*args: Any) -> Any:
        found = function(*args)
        if counts(*args):
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what}) + "\n")
        return found

    return wrapper


def main() -> None:
    """Command line: `section.field=value ...` over the defaults."""
    recipe = load_recipe(None, sys.argv[1:])
    lines = recipe.run.directory / "lines.jsonl"
    ReferenceLogprobs.add = noted(ReferenceLogprobs.add, lines, REFERENCE, counts=lambda *_: True)
    is_step: Callable[..., bool] = lambda _, step, __: 0 <= step < recipe.preference.num_steps  # noqa: E731
    supervised.show = noted(supervised.show, lines, STEP, counts=is_step)
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    preference.run(recipe)


if __name__ == "__main__":
    main()
