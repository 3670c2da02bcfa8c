"""The learned reward: a model that sees and hears the prompt and scores each completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors.roles.scoring import Group, ShardedWorker
from pipeline.models.checkpoint import load_reward_model
from pipeline.models.forward import RewardModel, spread


class RewardWorker(ShardedWorker):
    """Scores completions, standardised over what was held out of the reward model's training.

    The criteria count as `reward_model.criterion_weights` of this run says.
    """

    role = "reward"

    def load_module(self) -> RewardModel:
        recipe, settings = self.recipe.model, self.recipe.reward_model
        return load_reward_model(
            self.path,
            dtype=recipe.dtype,
            trust_remote_code=recipe.trust_remote_code,
            criteria=settings.criteria,
            num_members=settings.ensemble,
            weights=settings.criterion_weights,
        )

    def scores(self, passes: Sequence[Sequence[Group]]) -> list[NDArray[np.float32]]:
        """Scores [n] of each group's completions: the mean over the ensemble."""
        module: RewardModel = self.engine.module
        return self.map_groups(passes, lambda *batch: module.rewards(self.engine(*batch)).mean(1))

    def scores_and_uncertainties(self, passes: Sequence[Sequence[Group]]) -> list[NDArray[np.float32]]:
        """Scores and their uncertainties [n, 2] of each group's completions, of one pass.

        The uncertainty is the standard deviation over the ensemble, in units of the score; of one member alone it is 0.
        """
        module: RewardModel = self.engine.module

        def both(*batch: object) -> torch.Tensor:
            rewards = module.rewards(self.engine(*batch))
            # With an axis at the end, so that nobody takes the two for tokens.
            return torch.stack([rewards.mean(1), spread(rewards)], 1)[..., None]

        return [found[..., 0] for found in self.map_groups(passes, both)]

    def scores_so_far(self, passes: Sequence[Sequence[Group]]) -> list[NDArray[np.float32]]:
        """Scores [n, T] of each group's completions up to each of their tokens; at the last one that of the whole."""
        module: RewardModel = self.engine.module

        def so_far(*batch: object) -> torch.Tensor:
            scores: torch.Tensor = self.engine(*batch, True)
            return module.rewards(scores.flatten(0, 1)).mean(1).view(scores.shape[:2])

        return self.map_groups(passes, so_far)
