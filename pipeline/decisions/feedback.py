"""Where rewards come from: the truth of the task, clicks, a log with propensities, ratings, or somebody live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.decisions.table import DecisionTable
from pipeline.records import OVERALL, Rating

LiveSource = Callable[[str, int], float]
"""Asked with the id of a decision and the action that was taken; it answers with the reward."""


class Feedback(Protocol):
    """Tells what an action brought."""

    def __call__(self, row: int, action: int, random: np.random.Generator) -> float: ...


@dataclass(frozen=True)
class Truth:
    """The expected reward itself, from the table."""

    table: DecisionTable

    def __call__(self, row: int, action: int, random: np.random.Generator) -> float:
        return float(self.table.rewards[row, action])


@dataclass(frozen=True)
class Clicks:
    """1 with the probability that the table has for the action, else 0."""

    table: DecisionTable

    def __call__(self, row: int, action: int, random: np.random.Generator) -> float:
        return float(random.random() < self.table.rewards[row, action])


@dataclass(frozen=True)
class Replayed:
    """A log, asked again: r 1[a = a_log] / p, whose mean over the log is each action's true reward (Horvitz and
    Thompson 1952), so that any algorithm learns from it as if it had been there.

    most: what a reward may weigh; larger ones are cut to it, which is biased and varies less.
    rejects: of the rows whose action was taken, keep each with the probability least p / p, as if all actions had been
        logged alike (Li et al. 2011, arXiv 1003.5956), and give the reward as it was; others give 0.

    Raises:
        ConfigError: the table has no log.
    """

    table: DecisionTable
    most: float = math.inf
    rejects: bool = False

    def __post_init__(self) -> None:
        if self.table.logged is None:
            raise ConfigError("decide.reward=logged: the table has no logged actions; use truth, clicks or live")

    def __call__(self, row: int, action: int, random: np.random.Generator) -> float:
        logged = self.table.logged
        assert logged is not None
        if action != logged.actions[row]:
            return 0.0
        reward, propensity = float(logged.rewards[row]), float(logged.propensities[row])
        if self.rejects:
            return reward * float(random.random() < logged.propensities.min() / propensity)
        return reward * min(1.0 / propensity, self.most)


@dataclass(frozen=True)
class Live:
    """Somebody or something that answers now.

    Raises:
        ConfigError: (when asked) the answer is no finite number.
    """

    table: DecisionTable
    source: LiveSource

    def __call__(self, row: int, action: int, random: np.random.Generator) -> float:
        reward = float(self.source(self.table.ids[row], action))
        if not math.isfinite(reward):
            raise ConfigError(
                f"reward={reward} of action {action} in {self.table.ids[row]!r}: the live source must give a finite "
                "number; let it give 0 where it knows nothing"
            )
        return reward


def rated_rewards(
    ratings: Iterable[Rating], ids: Sequence[str], actions: Sequence[str], *, unrated: float
) -> NDArray[np.float32]:
    """Recorded ratings as rewards: float32 [N, K], the mean overall rating, in [0, 1], of each decision's action.

    A rating is of the action whose name is the text that was rated. `unrated`: of actions that nobody rated.

    Raises:
        ConfigError: none of the ratings is of one of these decisions and actions.
    """
    place = {id: row for row, id in enumerate(ids)}
    column = {action: index for index, action in enumerate(actions)}
    found: dict[tuple[int, int], list[float]] = {}
    for each in ratings:
        if each.prompt_id in place and each.text in column and OVERALL in each.ratings:
            found.setdefault((place[each.prompt_id], column[each.text]), []).append(each.ratings[OVERALL])
    if not found:
        raise ConfigError(
            f"ratings: none is of one of the {len(ids)} decisions and of an action of {', '.join(actions[:12])}; rate "
            "completions whose text is an action's name"
        )
    rewards = np.full((len(ids), len(actions)), unrated, np.float32)
    for (row, action), values in found.items():
        rewards[row, action] = fmean(values)
    return rewards
