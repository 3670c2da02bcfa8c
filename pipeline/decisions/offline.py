"""Learning from a log alone: BC, MARWIL and discrete CQL on RLlib's offline path, and what they are worth by the log.

    DecisionTable + Log -> sessions, a Parquet row each -> Ray Data -> `LoggedSessions` (rows become a batch) -> learner
                        -> OfflinePolicy -> doubly robust estimate, before anything goes live

RLlib 2.60's own CQL is a variant of its continuous SAC: its learner needs resampled actions and their densities
(`actions_curr_repeat`, `logp_next_resampled`), which its module makes for Box actions only. For K actions the same idea
is one term beside the temporal-difference loss of DQN, with no sampling: `conservative_term`.

RLlib's own reader of episodes draws each batch from a buffer with replacement, once and for all where the mapped data
are kept, so that a third of a log would never be seen; `LoggedSessions` gives each session once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.algorithms.marwil import MARWIL, MARWILConfig
from ray.rllib.algorithms.marwil.torch.marwil_torch_learner import MARWILTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.offline.offline_prelearner import OfflinePreLearner
from ray.rllib.utils import flatten_dict
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.config.decide import DecisionAlgorithm
from pipeline.config.offline import OfflineLearning
from pipeline.decisions.environment import HISTORY, Session, observation_space
from pipeline.decisions.learners import FusionDQNLearner, Partial
from pipeline.decisions.modules import FusionPolicyModule, FusionQModule
from pipeline.decisions.records import Log
from pipeline.decisions.supervised import Arrays
from pipeline.decisions.table import DecisionTable

SESSIONS_FILE = "sessions.parquet"
_OBSERVED = "observed/"
_CHUNK = 256


def conservative_term(q_values: Tensor, actions: Tensor) -> Tensor:
    """mean(log sum_k exp Q_k - Q_a), the regulariser of CQL(H) (Kumar et al. 2020, arXiv 2006.04779, equation 4).

    q_values: float32 [B, K]; actions: int64 [B]. At least 0: it is -log softmax(Q)_a.
    """
    taken = q_values.gather(1, actions.long().view(-1, 1))[:, 0]
    return (torch.logsumexp(q_values, dim=1) - taken).mean()


class ConservativeQLearner(FusionDQNLearner):
    """DQN's loss (double Q by default) plus `conservatism` times `conservative_term`."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Float32 scalar."""
        rewards = batch[Columns.REWARDS]
        batch["n_step"], batch["weights"] = torch.ones_like(rewards), torch.ones_like(rewards)
        loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        term = conservative_term(fwd_out[QF_PREDS], batch[Columns.ACTIONS])
        self.metrics.log_value((module_id, "conservative_term"), term.detach(), window=1)
        return loss + config.conservatism * term


class FusionMARWILLearner(Partial, MARWILTorchLearner):
    """BC and MARWIL as RLlib has them."""


class ConservativeQConfig(MARWILConfig):
    """Offline Q-learning in MARWIL's training step, as RLlib's IQL does it."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or ConservativeQ)
        self.conservatism = 0.1
        self.double_q, self.dueling, self.num_atoms, self.n_step = True, True, 1, 1
        self.td_error_loss_fn, self.burn_in_len = "mse", 0
        self.tau, self.target_network_update_freq = 1.0, 0
        self.epsilon = 0.0

    def build_learner_connector(self, *args: Any, **kwargs: Any) -> Any:
        """Without MARWIL's returns, for which it lengthens sessions."""
        pipeline = super().build_learner_connector(*args, **kwargs)
        pipeline.remove("AddOneTsToEpisodesAndTruncate")
        pipeline.remove("GeneralAdvantageEstimation")
        return pipeline

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        own = {"double_q": self.double_q, "dueling": self.dueling, "epsilon": self.epsilon}
        return super()._model_config_auto_includes | own


class ConservativeQ(MARWIL):
    """Discrete CQL."""

    @classmethod
    def get_default_config(cls) -> ConservativeQConfig:
        """Its own."""
        return ConservativeQConfig()


class LoggedSessions(OfflinePreLearner):
    """Rows of `write_sessions` as a learner's batch, each session once."""

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A batch of columns, flat."""
        space = cast(gym.spaces.Dict, self.observation_space)
        episodes = [_episode(batch, row, space) for row in range(len(batch["session"]))]
        made = self._learner_connector(rl_module=self._module, batch={}, episodes=episodes, shared_data={}, metrics=None)
        return flatten_dict(made)


def _episode(batch: Mapping[str, NDArray[Any]], row: int, space: gym.spaces.Dict) -> SingleAgentEpisode:
    actions = np.asarray(batch["actions"][row], np.int64)
    columns = {
        name: np.asarray(batch[_OBSERVED + name][row], box.dtype).reshape(len(actions), *(box.shape or ()))
        for name, box in space.items()
    }
    steps = [{name: column[step] for name, column in columns.items()} for step in range(len(actions))]
    episode = SingleAgentEpisode(
        id_=str(batch["session"][row]),
        # What comes after the last action is never looked at: the session has ended.
        observations=[*steps, steps[-1]],
        actions=list(actions),
        rewards=[float(reward) for reward in batch["rewards"][row]],
        terminated=True,
        observation_space=space,
        len_lookback_buffer=0,
    )
    episode.to_numpy()
    return episode


def write_sessions(path: Path, table: DecisionTable, log: Log, rewards: NDArray[np.floating]) -> gym.spaces.Dict:
    """Writes the decisions of a table, with a row a session, and returns the space of their observations.

    Rows of one session follow each other in the order of the table. Where one has several decisions, what was done
    before in the session is observed, too, as in the environment.

    Raises:
        ConfigError: table and log differ in length.
    """
    if not len(table) == len(log.actions) == len(rewards):
        raise ConfigError(
            f"log: {len(log.actions)} decisions and {len(rewards)} rewards for {len(table)} rows of the table; give one each"
        )
    places: dict[str, list[int]] = {}
    for row, session in enumerate(log.sessions):
        places.setdefault(session, []).append(row)
    longest = max(map(len, places.values()))
    space = observation_space(table, Session(length=longest))
    rows = [
        {
            "session": session,
            "actions": log.actions[own],
            "rewards": np.asarray(rewards, np.float64)[own],
            **{_OBSERVED + name: column.ravel() for name, column in _observed(table, log, own, space).items()},
        }
        for session, own in places.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{k: _listed(v) for k, v in row.items()} for row in rows]), path)
    return space


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _observed(table: DecisionTable, log: Log, rows: list[int], space: gym.spaces.Dict) -> dict[str, NDArray[Any]]:
    seen = {name: table.inputs[name][rows].astype(box.dtype) for name, box in space.items() if name != HISTORY}
    if HISTORY in space.spaces:
        taken = np.eye(table.num_actions, dtype=np.float32)[log.actions[rows]]
        before = np.concatenate([np.zeros_like(taken[:1]), taken[:-1]])
        seen[HISTORY] = np.maximum.accumulate(before, axis=0)
    return seen


@dataclass(frozen=True)
class OfflinePolicy:
    """A learned module as a policy over a table's inputs.

    temperature: of the softmax over Q values; 0 takes the best. A policy of logits has its own probabilities.
    """

    module: Any
    temperature: float = 0.0

    @torch.no_grad()
    def probabilities(self, states: Arrays) -> NDArray[np.float32]:
        """Float32 [N, K], at the beginning of a session."""
        num = len(next(iter(states.values())))
        parts = [self._chunk({name: each[at : at + _CHUNK] for name, each in states.items()}) for at in range(0, num, _CHUNK)]
        return np.concatenate(parts)

    def _chunk(self, states: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        space = cast(gym.spaces.Dict, self.module.observation_space)
        num = len(next(iter(states.values())))
        observed = {
            name: torch.from_numpy(
                states[name].astype(box.dtype) if name in states else np.zeros((num, *(box.shape or ())), box.dtype)
            )
            for name, box in space.items()
        }
        if hasattr(self.module, "compute_q_values"):
            values = self.module.compute_q_values({Columns.OBS: observed})[QF_PREDS]
            if self.temperature > 0:
                return (values / self.temperature).softmax(dim=1).numpy()
            return torch.nn.functional.one_hot(values.argmax(dim=1), values.shape[1]).float().numpy()
        return self.module.forward_train({Columns.OBS: observed})[Columns.ACTION_DIST_INPUTS].softmax(dim=1).numpy()


def learn_offline(
    name: DecisionAlgorithm,
    table: DecisionTable,
    log: Log,
    *,
    rewards: NDArray[np.floating],
    model: Mapping[str, Any],
    settings: OfflineLearning,
    gamma: float = 0.95,
    seed: int = 0,
) -> tuple[OfflinePolicy, dict[str, float]]:
    """Trains `bc`, `marwil` or `cql` on a log, and returns the policy with its last metrics.

    rewards: [N], such as `estimators.examined_rewards`. model: the module's `model_config`, see `modules`.

    Raises:
        ConfigError: it is no offline algorithm of RLlib's, or the log does not fit the table.
    """
    with TemporaryDirectory(prefix="sessions-") as folder:
        space = write_sessions(Path(folder) / SESSIONS_FILE, table, log, rewards)
        config, module = _configured(name, settings)
        config.environment(observation_space=space, action_space=gym.spaces.Discrete(table.num_actions))
        config.learners(num_learners=0)
        config.training(
            lr=settings.learning_rate, train_batch_size_per_learner=settings.batch_size, gamma=gamma, grad_clip=10.0
        )
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=module, model_config=dict(model)))
        config.debugging(seed=seed, log_level="ERROR")
        config.offline_data(
            input_=[str(Path(folder) / SESSIONS_FILE)],
            prelearner_class=LoggedSessions,
            map_batches_kwargs={"concurrency": 1},
            iter_batches_kwargs={"local_shuffle_buffer_size": 8 * settings.batch_size, "prefetch_batches": 1},
            # RLlib copies to a target network after each such round, and goes on in the data where it stopped.
            dataset_num_iters_per_learner=min(settings.target_steps, settings.num_steps),
        )
        algorithm = config.build_algo()
        result: dict[str, Any] = {}
        try:
            for _ in range(math.ceil(settings.num_steps / settings.target_steps)):
                result = algorithm.train()
            learned = algorithm.learner_group._learner.module["default_policy"].unwrapped()  # pyright: ignore
            learned.eval()
        finally:
            algorithm.stop()
    found = result.get("learners", {}).get("default_policy", {})
    return OfflinePolicy(learned), {key: float(each) for key, each in found.items() if np.ndim(each) == 0}


def _configured(name: DecisionAlgorithm, settings: OfflineLearning) -> tuple[Any, type]:
    match name:
        case DecisionAlgorithm.BC:
            return BCConfig().training(learner_class=FusionMARWILLearner), FusionPolicyModule
        case DecisionAlgorithm.MARWIL:
            config = MARWILConfig().training(beta=settings.beta, learner_class=FusionMARWILLearner)
            return config, FusionPolicyModule
        case DecisionAlgorithm.CQL:
            config = ConservativeQConfig().training(learner_class=ConservativeQLearner)
            config.conservatism = settings.conservatism
            return config, FusionQModule
        case _:
            raise ConfigError(f"algorithm={name}: learns from no log with RLlib; use bc, marwil or cql")
