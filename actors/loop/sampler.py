"""Draws prompts and has them completed, up to `rlhf.staleness` steps ahead of the update."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

from actors.fleet.answer import Answer, gather
from actors.fleet.failures import KillsWorkers
from actors.fleet.member import State
from actors.loop.crew import Roles
from actors.loop.door import Batches
from actors.roles.encoder import PromptRef
from actors.roles.rollout import RolloutWorker
from pipeline.config import Recipe, Sampling
from pipeline.config import Rollout as RolloutSettings
from pipeline.data.schema import Reason
from pipeline.records import Rollout

Completions = Answer[list[Rollout]]


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
    seed: int
    prompts: list[PromptRef]
    sampled: Completions
    greedy: Completions | None
    state: State | None
    """That the rollout workers had when it was begun."""


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
        self._more: list[_Pending] = []
        """Further batches of the step that was taken last."""
        self.drawing_s = 0.0
        """Seconds so far that this has waited for prompts to be read and encoded."""

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
            with self._drawing():
                self._batches.announce()
        sampled = self._collect(self._pending, 0, step)
        self._pending.popleft()
        self._more.clear()
        return sampled

    def more(self, step: int, index: int) -> Sampled:
        """Another batch for the same step, number `index` of these; the same one when it is asked for again."""
        if index == len(self._more):
            self._more.append(self._start())
        return self._collect(self._more, index, step)

    def renew(self) -> None:
        """Begins again with prompts that are encoded again, where they were begun: some had left the object store."""
        for batches in (self._pending, self._more):
            for place, each in enumerate(batches):
                with self._roles.rollout.under(each.state):
                    batches[place] = self._begin(each.cursor, each.seed, self.again(each.prompts))

    def again(self, prompts: Sequence[PromptRef]) -> list[PromptRef]:
        """The same prompts, encoded again where they have left the object store."""
        return self._batches.again(prompts)

    def _start(self) -> _Pending:
        with self._drawing():
            cursor, prompts = self._batches.cursor, self._batches.take()
        # The batch's number, not the step's: a step that draws twice never samples a prompt twice alike.
        return self._begin(cursor, self._batches.cursor - 1, prompts)

    @contextmanager
    def _drawing(self) -> Generator[None, None, None]:
        started = time.monotonic()
        yield
        self.drawing_s += time.monotonic() - started

    def _begin(self, cursor: int, seed: int, prompts: list[PromptRef]) -> _Pending:
        settings = self._recipe.rlhf
        sampled = generate(self._roles, prompts, settings.sampling, group_size=settings.group_size, seed=seed)
        greedy = None
        if settings.algorithm.advantage.needs_greedy:
            greedy = generate(self._roles, prompts, settings.sampling.greedy, group_size=1, seed=seed)
        return _Pending(cursor, seed, prompts, sampled, greedy, self._roles.rollout.state)

    def _collect(self, batches: MutableSequence[_Pending], index: int, step: int) -> Sampled:
        while True:
            pending = batches[index]
            answers = {"rollout": pending.sampled, **({"greedy": pending.greedy} if pending.greedy else {})}
            try:
                results, spent = gather(answers)
                break
            except KillsWorkers as error:
                batches[index] = self._without_killers(pending, error)
        rollouts, greedy = (list(chain.from_iterable(results.get(name, []))) for name in ("rollout", "greedy"))
        check_fresh(rollouts, oldest=step - self._recipe.rlhf.staleness, newest=step)
        busy_s = sum(each.busy_s for each in spent.values())
        return Sampled(pending.prompts, rollouts, greedy, {"rollout": busy_s})

    def _without_killers(self, pending: _Pending, error: KillsWorkers) -> _Pending:
        """A batch that was begun, begun again without the prompts that kill workers."""
        settings = self._recipe.rlhf
        with self._roles.rollout.under(pending.state):
            found = killers(self._roles, error, settings.sampling, group_size=settings.group_size, seed=pending.seed)
            for prompt in found:
                self._batches.expel(prompt, Reason.KILLS_WORKER, str(error))
            return self._begin(pending.cursor, pending.seed, left_of(pending.prompts, found, error))


def killers(
    roles: Roles, error: KillsWorkers, sampling: Sampling, *, group_size: int, seed: int
) -> Sequence[PromptRef]:
    """The prompts of a batch that killed workers which do so alone, too.

    Raises:
        KillsWorkers: none does: together they are too much.
    """
    if len(error.share) == 1:
        return error.share
    found: list[PromptRef] = []
    for prompt in error.share:
        try:
            generate(roles, [prompt], sampling, group_size=group_size, seed=seed).result()
        except KillsWorkers:
            found.append(prompt)
    if not found:
        error.add_note("each of its prompts is completed alone; take rlhf.rollout.batch_size down")
        raise error
    return found


def left_of(prompts: Sequence[PromptRef], found: Sequence[PromptRef], error: KillsWorkers) -> list[PromptRef]:
    """Prompts without those that were found to kill workers.

    Raises:
        KillsWorkers: none is left.
    """
    rows = {prompt.row for prompt in found}
    if not (left := [prompt for prompt in prompts if prompt.row not in rows]):
        raise error
    return left


def generate(
    roles: Roles, prompts: Sequence[PromptRef], sampling: Sampling, *, group_size: int, seed: int
) -> Completions:
    """Has the rollout workers sample a group for each prompt; what they return lies in the order of the prompts.

    A task is `rollout.batch_size` prompts: the same ones, and so the same rounding, however many workers there are. It
    costs the tokens that it may keep in flight.
    """
    size = cast(RolloutSettings, roles.rollout.settings).batch_size
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    longest = group_size * sampling.max_new_tokens
    costs = [float(sum(prompt.num_tokens + longest for prompt in batch)) for batch in batches]
    return roles.rollout.submit_by_cost(
        RolloutWorker.generate, costs, batches, sampling, group_size=group_size, step=seed
    )


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
