"""The reference: the policy as it was before, frozen, to measure how far the policy went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.roles.scoring import Group, ShardedWorker
from pipeline.models.checkpoint import load_policy
from pipeline.models.forward import Policy


class ReferenceWorker(ShardedWorker):
    """Teacher-forced logprobs under fixed weights."""

    role = "reference"

    def load_module(self) -> Policy:
        recipe = self.recipe.model
        return load_policy(self.path, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)

    def logprobs(self, passes: Sequence[Sequence[Group]], *, temperature: float) -> list[NDArray[np.float32]]:
        """Logprobs [n, T] of each group's completions, at the temperature that they were sampled at."""
        temperature = temperature or 1.0
        return self.map_groups(passes, lambda *batch: self.engine(*batch, temperature, False)[0])
