"""Workers that several runs use one after the other, each with a recipe of its own: starting one costs 10 CPU-seconds.

A run starts anew all the same: `setup` loads the checkpoint, shards it and makes a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ray
from numpy.typing import NDArray

from actors.fleet.placement import seat
from actors.fleet.recoveries import Recoveries
from actors.fleet.worker import Worker
from actors.loop.crew import Crew, Fleet, fleet
from actors.roles.critic import CriticWorker
from actors.roles.encoder import EncoderWorker
from actors.roles.grader import GraderWorker
from actors.roles.policy import PolicyWorker
from actors.roles.reference import ReferenceWorker
from actors.roles.reward import RewardWorker
from actors.roles.rollout import RolloutWorker
from pipeline.config import Recipe, Workers


class Reusable(Worker):
    """Takes another recipe; `setup` then starts anew with it."""

    role_in_recipe: ClassVar[str]

    def use(self, recipe: Recipe) -> None:
        """Takes `recipe` and this role's settings in it, for the next `setup`."""
        self.recipe = recipe
        self.settings = getattr(recipe.rlhf, self.role_in_recipe)


class ReusableEncoder(Reusable, EncoderWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Processes and encodes."""

    role_in_recipe = "encoder"


class ReusableRollout(Reusable, RolloutWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Samples."""

    role_in_recipe = "rollout"


class ReusablePolicy(Reusable, PolicyWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Learns."""

    role_in_recipe = "policy"


class ReusableReference(Reusable, ReferenceWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Scores."""

    role_in_recipe = "reference"


class ReusableReward(Reusable, RewardWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Scores."""

    role_in_recipe = "reward"


class ReusableGrader(Reusable, GraderWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Asks for rewards from outside."""

    role_in_recipe = "grader"


class ReusableCritic(Reusable, CriticWorker):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Values."""

    role_in_recipe = "critic"

    def trained(self) -> dict[str, NDArray[Any]]:
        """The parameters that learn, on rank 0; all ranks must call it."""
        return self.engine.gather(trainable_only=True)


CLASSES: dict[str, type[Reusable]] = {
    "encoder": ReusableEncoder,
    "rollout": ReusableRollout,
    "policy": ReusablePolicy,
    "reference": ReusableReference,
    "reward": ReusableReward,
    "critic": ReusableCritic,
    "grader": ReusableGrader,
}


class ReadyCrew(Crew):
    """Workers that run already as the crew of one more run; they take its recipe, and stay when it ends."""

    def __init__(self, recipe: Recipe, fleets: Mapping[str, Fleet]):
        super().__init__(recipe)
        self._fleets = dict(fleets)
        for role, each in fleets.items():
            each.use(recipe, getattr(recipe.rlhf, role))
        ray.get([actor.use.remote(recipe) for each in fleets.values() for actor in each.actors])


def start(recipe: Recipe, num_workers: Mapping[str, int]) -> dict[str, Fleet]:
    """The workers of each role, this many. They stay until they are shut down or Ray is."""
    settings: dict[str, Workers] = {
        role: getattr(recipe.rlhf, role).model_copy(update={"num_workers": num}) for role, num in num_workers.items()
    }
    seating = seat(settings, recipe.cluster)
    recoveries = Recoveries(max_an_hour=recipe.cluster.max_recoveries_an_hour)
    return {
        role: fleet(CLASSES[role], role, seating, recipe, workers, recoveries) for role, workers in settings.items()
    }
