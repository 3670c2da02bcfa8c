"""The learned reward: a model that sees and hears the prompt and scores each completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.roles.scoring import Group, ShardedWorker
from pipeline.models.checkpoint import load_reward_model
from pipeline.models.forward import RewardModel


class RewardWorker(ShardedWorker):
    """Scores completions, standardised over the held-out preferences of the reward model's training."""

    role = "reward"

    def load_module(self) -> RewardModel:
        recipe = self.recipe.model
        return load_reward_model(self.path, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)

    def scores(self, passes: Sequence[Sequence[Group]]) -> list[NDArray[np.float32]]:
        """Scores [n] of each group's completions."""
        module: RewardModel = self.engine.module
        return self.map_groups(passes, lambda *batch: (self.engine(*batch) - module.mean) / module.scale)
