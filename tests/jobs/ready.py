"""Workers that tests of several modules share: starting one costs 10 CPU-seconds, which is most of a small run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.loop.crew import WORKERS, Fleet, Roles
from benchmarks.reusable import ReadyCrew, start
from pipeline.config import Recipe

LEARNERS = ("policy", "critic")


@dataclass(frozen=True)
class ReadyWorkers:
    """Fleets for one run after the other: all roles with one worker, and policy and critic with two ranks as well."""

    node: str
    """The node that they run on. They end with its Ray."""
    one: Mapping[str, Fleet]
    two: Mapping[str, Fleet]

    def crew(self, recipe: Recipe) -> ReadyCrew:
        """The workers as the crew of a run, policy and critic with the number of ranks that `recipe` gives them."""
        return ReadyCrew(recipe, self.one if recipe.rlhf.policy.num_workers == 1 else {**self.one, **self.two})

    def roles(self, recipe: Recipe, paths: Mapping[str, Path]) -> Roles:
        """The roles in `paths` with their checkpoints."""
        return self.crew(recipe).roles(paths)


def start_all(node: str, recipe: Recipe) -> ReadyWorkers:
    """Starts them."""
    return ReadyWorkers(node, start(recipe, dict.fromkeys(WORKERS, 1)), start(recipe, dict.fromkeys(LEARNERS, 2)))
