"""How many workers the pools have: one more where all wait for them, one fewer where they long wait for others.

    phases of a step -> is it this pool that binds? -> pool.resize -> seats, from Ray's autoscaler and back to it

The size changes no sample, so nothing of it is in a checkpoint: a run that resumes begins with `num_workers`.
"""

from __future__ import annotations

from collections.abc import Mapping

from actors.loop.crew import Roles
from pipeline.config import Pooled, Recipe

PHASE_OF = {"rollout": "generate", "encoder": "draw"}
"""The phase of a step in which the driver waits for a pool."""


class Scaler:
    """Resizes the pools between steps."""

    def __init__(self, roles: Roles, recipe: Recipe):
        self._pools = {role: getattr(roles, role) for role in PHASE_OF}
        self._settings: dict[str, Pooled] = {role: getattr(recipe.rlhf, role) for role in PHASE_OF}
        self._num_idle = dict.fromkeys(PHASE_OF, 0)

    def stepped(self, phases: Mapping[str, float]) -> None:
        """A step has spent so many seconds on each phase."""
        longest = max(phases, key=lambda phase: phases[phase])
        for role, settings in self._settings.items():
            if settings.least < settings.most:
                pool = self._pools[role]
                size, self._num_idle[role] = resized(
                    len(pool), settings, binds=PHASE_OF[role] == longest, num_idle=self._num_idle[role]
                )
                pool.resize(size)


def resized(size: int, settings: Pooled, *, binds: bool, num_idle: int) -> tuple[int, int]:
    """How many workers a pool of `size` is to have, and the steps in a row in which it did not bind."""
    if binds:
        return min(size + 1, settings.most), 0
    if num_idle + 1 >= settings.idle_steps:
        return max(size - 1, settings.least), 0
    return size, num_idle + 1
