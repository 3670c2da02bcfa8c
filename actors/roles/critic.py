"""The critic: values every state of a completion, seeing and hearing what the policy does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actors.roles.policy import LearningWorker
from actors.roles.scoring import Group
from pipeline.algorithms.aggregation import Normalisers
from pipeline.algorithms.losses import clipped_value_loss
from pipeline.experience import ExperienceBatch
from pipeline.models.checkpoint import load_value_model
from pipeline.models.forward import ValueModel


class CriticWorker(LearningWorker):
    """Values and their clipped regression to returns."""

    role = "critic"

    def load_module(self) -> ValueModel:
        recipe = self.recipe.model
        return load_value_model(
            self.path,
            dtype=recipe.dtype,
            trust_remote_code=recipe.trust_remote_code,
            weights=self.recipe.reward_model.criterion_weights,
        )

    def values(self, passes: Sequence[Sequence[Group]]) -> list[NDArray[np.float32]]:
        """Values [n, T] of each group's completions."""
        return self.map_groups(passes, self.engine)

    def losses(
        self, groups: Sequence[Group], experience: ExperienceBatch, normalisers: Normalisers, kl_weight: float
    ) -> dict[str, Tensor]:
        loss = clipped_value_loss(
            values_now=self.engine(*self.batch(groups)),
            values_behaviour=experience.values,
            returns=experience.returns,
            mask=experience.mask,
            clip=self.recipe.rlhf.algorithm.value_clip,
            num_tokens=normalisers.num_tokens,
        )
        return {"loss": loss}
