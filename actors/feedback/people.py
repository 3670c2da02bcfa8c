"""What the loop has to do with people: it offers them completions, and is judged by what learned from them."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

import ray

from actors.feedback import refit
from actors.feedback.offers import Offers
from actors.loop.checkpoints import LoopState
from actors.loop.crew import Roles
from actors.loop.judge import Judged, Said
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import Recipe, RewardName
from pipeline.feedback.versions import RewardVersions


class People:
    """Offers and refits of one run, both beside the loop: it waits for neither."""

    def __init__(self, recipe: Recipe, *, goes_on: bool):
        """goes_on: whether steps that were made before are made again as they were."""
        self._versions = RewardVersions(recipe)
        if not goes_on:
            self._versions.forget_steps()
        self._offers = Offers(recipe, recipe.rlhf.split)
        is_learned = RewardName.LEARNED in recipe.rlhf.rewards
        self._refits = refit.started(recipe) if is_learned and recipe.feedback.refit.enabled else None

    def __enter__(self) -> People:
        self._offers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._offers.__exit__(kind, error, trace)
        if self._refits is not None:
            ray.kill(self._refits)

    def swapped(self, roles: Roles, state: LoopState) -> LoopState:
        """The state with the reward model that is to judge its step, once that is loaded.

        Another one has other scores, so that the running scale of rewards begins again.

        Raises:
            WorldLost: a rank of the reward model was lost.
        """
        if roles.reward is None:
            return state
        number = self._versions.at(state.step)
        path = self._versions.path(number)
        if roles.reward.path != path:
            roles.reward.setup(path).result()
        self._versions.note(state.step, number)
        if number == state.reward_version:
            return state
        told = self._versions.get(number) if number else "the reward model from before people were asked"
        print(f"step {state.step} is judged by {told}", flush=True)
        return replace(state, reward_version=number, reward_scale=RunningScale())

    def take(self, step: int, batch: Judged) -> None:
        """Offers a share of a step's completions."""
        self._offers.take(step, batch)

    def said(self, step: int) -> Said:
        """What people have said so far of completions that are not too old for this step."""
        return self._offers.said(step)

    def metrics(self) -> dict[str, float]:
        """What became of completions, and of the reward model, so far."""
        versions = self._versions.all()
        found = {
            "refits": float(len(versions)),
            "refits_refused": float(sum(not each.is_accepted for each in versions)),
            "refits_failed": float(self._versions.num_failed),
            "judgements_learned": float(versions[-1].num_judgements if versions else 0),
        }
        return {**self._offers.metrics(), **{f"feedback/{name}": value for name, value in found.items()}}
