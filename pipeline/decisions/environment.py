"""A gymnasium environment over a table of decisions: a contextual bandit, or sessions of several steps.

    reset -> the next decision of this environment's stream -> observation: its inputs as the fusion model takes them
    step  -> an action brings its feedback; or, where asking is possible, it costs something and shows what was hidden

Streams are the same for every algorithm: environment i of n sees decisions i, i + n, ... of an order that the seed
gives, and another order of all of them when they are over. Gymnasium's vector environments seed their i-th one with
seed + i, which is how one knows its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.decisions.feedback import Feedback, Truth
from pipeline.decisions.table import PRESENT, DecisionTable

HISTORY = "history"
"""The observation of what was done in this session: float32 [A], 1 for actions that were taken."""

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Session:
    """What happens between a reset and the end.

    length: actions until it ends, 1 for a contextual bandit; it ends sooner with the first that brings something. What
        was taken before in the same session brings nothing.
    question_cost: an action more, the last one, costs this much and shows hidden modalities; it does not count against
        `length`, but once. None: nobody can ask.
    """

    length: int = 1
    question_cost: float | None = None

    @property
    def asks(self) -> bool:
        """Whether asking is an action."""
        return self.question_cost is not None

    @property
    def has_history(self) -> bool:
        """Whether what was done matters: then it is observed."""
        return self.length > 1 or self.asks


class DecisionEnv(gym.Env[Observation, np.int64]):
    """Decisions of a table, one after the other.

    Observation: a Dict of Boxes, one an input of the fusion model, `present` float32 [M], and `history` where the
    session has one. Action: Discrete(K), or K + 1 with the question last. Infos: `row` in the table, and `regret`, of
    the session so far, against the best action left at each step (NaN where rewards are unknown), with questions.

    stream, num_streams: as many disjoint parts of the order as there are environments. With the first seed s it takes
        part (stream + s) mod num_streams.
    order_seed: of the order of the decisions, the same for all environments of a run. skip: sessions that were before,
        of a run that goes on.

    Raises:
        ConfigError: the session makes no sense.
    """

    def __init__(
        self,
        table: DecisionTable,
        *,
        feedback: Feedback | None = None,
        session: Session | None = None,
        stream: int = 0,
        num_streams: int = 1,
        order_seed: int = 0,
        skip: int = 0,
    ) -> None:
        self.table = table
        self.session = session or Session()
        if self.session.length < 1 or (self.session.question_cost or 0) < 0:
            raise ConfigError(f"decide.session={self.session}: length must be at least 1, and question_cost at least 0")
        self._feedback = feedback or Truth(table)
        self._stream, self._num_streams, self._order_seed = stream, num_streams, order_seed
        self._skip = skip
        self._place = stream % num_streams + skip * num_streams
        self.num_actions = table.num_actions + self.session.asks
        self.observation_space = observation_space(table, self.session)
        self.action_space = spaces.Discrete(self.num_actions)
        self._order = np.zeros(0, np.int64)
        self._round = -1
        self._row, self._steps, self._regret = 0, 0, 0.0
        self._taken = np.zeros(self.num_actions, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The next decision; with a seed the first one of its stream."""
        super().reset(seed=seed)
        if seed is not None:
            self._place = (self._stream + seed) % self._num_streams + self._skip * self._num_streams
            self._round = -1
        round, at = divmod(self._place, len(self.table))
        if round != self._round:
            self._order, self._round = order(len(self.table), self._order_seed, round), round
        self._row = int(self._order[at])
        self._place += self._num_streams
        self._steps, self._regret = 0, 0.0
        self._taken = np.zeros(self.num_actions, np.float32)
        return self._observe(), self._infos()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes an action.

        Raises:
            ConfigError: it is none of the actions.
        """
        chosen, session = int(action), self.session
        if not 0 <= chosen < self.num_actions:
            raise ConfigError(f"action={chosen}: K={self.num_actions} actions, from 0 to {self.num_actions - 1}")
        asked = session.asks and chosen == self.table.num_actions
        if asked:
            reward = -float(session.question_cost or 0.0)
            self._regret -= reward
        else:
            left = np.where(self._taken[: self.table.num_actions] > 0, 0.0, self.table.rewards[self._row])
            self._regret += float(left.max() - left[chosen])
            reward = 0.0 if self._taken[chosen] else self._feedback(self._row, chosen, self.np_random)
        self._taken[chosen] = 1.0
        self._steps += 1
        done = (reward > 0 and not asked) or self._steps >= session.length + session.asks
        done = done or (not asked and session.length == 1)
        return self._observe(), reward, bool(done), False, self._infos()

    def _infos(self) -> dict[str, Any]:
        return {"row": self._row, "regret": self._regret}

    def _observe(self) -> Observation:
        table, row = self.table, self._row
        seen = {name: array[row] for name, array in table.inputs.items()}
        present = seen[PRESENT].astype(np.float32)
        if table.hidden[row].any() and not (self.session.asks and self._taken[-1]):
            for modality, is_hidden in zip(table.modalities, table.hidden[row], strict=True):
                if is_hidden:
                    seen |= {name: np.zeros_like(seen[name]) for name in inputs_of(modality, seen)}
            present = present * ~table.hidden[row]
        observation = {name: observed(array) for name, array in seen.items()}
        observation[PRESENT] = present
        if self.session.has_history:
            observation[HISTORY] = self._taken.copy()
        return observation


def order(length: int, seed: int, round: int) -> NDArray[np.int64]:
    """The decisions of one round: int64 [N], each once."""
    return np.random.default_rng((seed, round)).permutation(length)


def inputs_of(modality: str, names: Mapping[str, Any]) -> list[str]:
    """The inputs that belong to a modality: `audio`, or its features and their mask."""
    return [name for name in names if name == modality or name.startswith(f"{modality}_")]


def observation_space(table: DecisionTable, session: Session) -> spaces.Dict:
    """A Box for each input: float32 without bounds, ids int64 from 0, masks and presence float32 in [0, 1]."""
    boxes = dict[str, spaces.Space[Any]]()
    for name, array in table.inputs.items():
        shape = array.shape[1:]
        if array.dtype == np.bool_:
            boxes[name] = spaces.Box(0.0, 1.0, shape, np.float32)
        elif np.issubdtype(array.dtype, np.integer):
            boxes[name] = spaces.Box(0, np.iinfo(np.int64).max, shape, np.int64)
        else:
            boxes[name] = spaces.Box(-np.inf, np.inf, shape, np.float32)
    if session.has_history:
        boxes[HISTORY] = spaces.Box(0.0, 1.0, (table.num_actions + session.asks,), np.float32)
    return spaces.Dict(boxes)


def observed(array: NDArray[Any]) -> NDArray[Any]:
    """An input as it is observed: ids int64, all else float32."""
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
