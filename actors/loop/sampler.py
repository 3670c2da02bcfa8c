"""Draws prompts and has them completed, up to `rlhf.staleness` steps ahead of the update."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.fleet.group import split
from actors.loop.crew import Roles, collect
from actors.loop.door import Batches
from actors.roles.encoder import PromptRef
from actors.roles.rollout import RolloutWorker
from pipeline.config import Recipe, Sampling
from pipeline.records import Rollout

Calls = list[ray.ObjectRef[list[Rollout]]]


@dataclass(frozen=True)
class Sampled:
    """Groups in the order of their prompts; of each prompt its greedy completion too, where the estimator needs it."""

    prompts: list[PromptRef]
    rollouts: list[Rollout]
    greedy: list[Rollout]
    seconds: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class _Pending:
    cursor: int
    prompts: list[PromptRef]
    calls: Calls
    greedy: Calls


class Sampler:
    """Batches of completed prompts for one step after the other.

    Generation for later steps starts before this step's update, with the weights of then; it never reaches beyond the
    next checkpoint, so that a run that resumes there samples what an uninterrupted one did.
    """

    def __init__(self, roles: Roles, recipe: Recipe, batches: Batches):
        self._roles = roles
        self._recipe = recipe
        self._batches = batches
        self._pending: deque[_Pending] = deque()

    @property
    def cursor(self) -> int:
        """Batches drawn for the steps taken so far: the data position. What was begun for later steps is not in it."""
        return self._pending[0].cursor if self._pending else self._batches.cursor

    def take(self, step: int) -> Sampled:
        """The batch of `step`; starts generation for the steps that may run ahead.

        Raises:
            RuntimeError: some completions come from older weights than `rlhf.staleness` allows.
        """
        settings = self._recipe.rlhf
        interval = settings.checkpoints.save_every
        end = min(settings.num_steps, (step // interval + 1) * interval, step + settings.staleness + 1)
        while step + len(self._pending) < end:
            self._pending.append(self._start())
        if end < settings.num_steps:
            self._batches.announce()
        return self._collect(self._pending.popleft(), step)

    def more(self, step: int) -> Sampled:
        """Another batch for the same step."""
        return self._collect(self._start(), step)

    def _start(self) -> _Pending:
        settings = self._recipe.rlhf
        cursor, prompts = self._batches.cursor, self._batches.take()
        # The batch's number, not the step's: a step that draws twice never samples a prompt twice alike.
        seed = self._batches.cursor - 1
        calls = generate(self._roles, prompts, settings.sampling, group_size=settings.group_size, seed=seed)
        greedy: Calls = []
        if settings.algorithm.advantage.needs_greedy:
            greedy = generate(self._roles, prompts, settings.sampling.greedy, group_size=1, seed=seed)
        return _Pending(cursor, prompts, calls, greedy)

    def _collect(self, pending: _Pending, step: int) -> Sampled:
        results, seconds = collect({"rollout": pending.calls, "greedy": pending.greedy})
        rollouts, greedy = ([rollout for part in results[name] for rollout in part] for name in ("rollout", "greedy"))
        check_fresh(rollouts, oldest=step - self._recipe.rlhf.staleness, newest=step)
        return Sampled(pending.prompts, rollouts, greedy, {"rollout": max(seconds.values())})


def generate(
    roles: Roles, prompts: Sequence[PromptRef], sampling: Sampling, *, group_size: int, seed: int
) -> list[ray.ObjectRef[Any]]:
    """Has the rollout workers sample a group for each prompt; what they return lies in the order of the prompts."""
    shares = split(prompts, len(roles.rollout))
    return roles.rollout.on_each(RolloutWorker.generate, shares, sampling, group_size=group_size, step=seed)


def check_fresh(rollouts: Sequence[Rollout], *, oldest: int, newest: int) -> None:
    """Makes sure that recent weights sampled: nobody waits for them to arrive, so a failure shows here.

    Raises:
        RuntimeError: some completions come from other weights.
    """
    versions = {completion.weights_version for rollout in rollouts for completion in rollout.completions}
    if any(not max(oldest, 0) <= version <= newest for version in versions):
        raise RuntimeError(
            f"completions of weights versions {sorted(versions)}, not {max(oldest, 0)} to {newest}: "
            "weights did not arrive"
        )
