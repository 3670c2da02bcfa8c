"""Learning from a log alone: BC, MARWIL and discrete CQL on RLlib's offline path, and what they are worth by the log.

DecisionTable + Log -> sessions, an episode each -> `LoggedSessions` -> learner
                    -> OfflinePolicy -> doubly robust estimate, before anything goes live
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.marwil.torch.marwil_torch_learner import MARWILTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils import flatten_dict
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.config.decide import DecisionAlgorithm
from pipeline.config.offline import ClickLoss, OfflineLearning
from pipeline.decisions.conservative import ConservativeQConfig, ConservativeQLearner
from pipeline.decisions.environment import HISTORY, Session, observation_space
from pipeline.decisions.estimators import doubly_robust, held_out, ips, snips
from pipeline.decisions.learners import Partial
from pipeline.decisions.modules import FusionPolicyModule, FusionQModule
from pipeline.decisions.online import flat
from pipeline.decisions.records import Log
from pipeline.decisions.supervised import Arrays, Fit, learn_clicks
from pipeline.decisions.table import DecisionTable
from pipeline.models.fusion.model import FusionModel

_CHUNK = 256
_SESSIONS_AT_ONCE = 1024


class FusionMARWILLearner(Partial, MARWILTorchLearner):  # pyright: ignore[reportIncompatibleMethodOverride]
    """BC and MARWIL as RLlib has them."""


class LoggedSessions(OfflineData):
    """A log's sessions as a learner's batches: each decision once a pass, in an order drawn by the config's seed.

    RLlib's own draws from a buffer with replacement, once and for all where the mapped data are kept, so that a third
    of a log would never be seen; and it reads through Ray Data, in processes that take longer to start than most logs
    to be learned, and in an order that no seed fixes.
    """

    episodes: ClassVar[Sequence[SingleAgentEpisode]] = ()

    @classmethod
    def of(cls, episodes: Sequence[SingleAgentEpisode]) -> type[LoggedSessions]:
        """The class of these sessions: RLlib makes the object itself."""
        return type(cls.__name__, (cls,), {"episodes": episodes})

    def __init__(self, config: Any):  # pyright: ignore[reportMissingSuperCall] RLlib's opens what it will read.
        self.config = config
        self.learner_handles: Any = None
        self.spaces: Any = None
        self.iter_batches_kwargs: dict[str, Any] = {}
        self._dice = np.random.default_rng(config.seed)
        self._columns: dict[str, Tensor] = {}
        self._batch_size = 0

    def sample(self, num_samples: int, *_: Any, **__: Any) -> list[LoggedSessions]:
        """What `iter_torch_batches` goes through."""
        if not self._columns:
            (learner,) = self.learner_handles
            observations, actions = self.spaces[INPUT_ENV_SPACES]
            connector = self.config.build_learner_connector(observations, actions)
            parts = [
                _columns(connector, learner.module, self.episodes[at : at + _SESSIONS_AT_ONCE])
                for at in range(0, len(self.episodes), _SESSIONS_AT_ONCE)
            ]
            self._columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return [self]

    def iter_torch_batches(self, *, batch_size: int, device: Any = None) -> LoggedSessions:
        """Goes through all decisions, each time anew."""
        self._batch_size = batch_size
        return self

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        num_rows = len(next(iter(self._columns.values())))
        for rows in torch.from_numpy(self._dice.permutation(num_rows)).split(self._batch_size):
            yield {name: column[rows] for name, column in self._columns.items()}


def _columns(connector: Any, module: Any, episodes: Sequence[SingleAgentEpisode]) -> dict[str, Tensor]:
    """Decisions of sessions as the learner takes them, by `module/column`.

    Made once: returns of sessions that have ended (lambda 1) need no value function that has learned more.
    """
    made = connector(rl_module=module, batch={}, episodes=list(episodes), shared_data={}, metrics=None)
    columns = {name: torch.as_tensor(column) for name, column in flatten_dict(made).items()}
    # Value functions are asked about what follows the last decision, too; nobody learns from that row.
    is_decision = columns.get(f"{DEFAULT_MODULE_ID}/{Columns.LOSS_MASK}", slice(None))
    return {name: column[is_decision] for name, column in columns.items()}


def episodes_of(
    table: DecisionTable, log: Log, rewards: NDArray[np.floating]
) -> tuple[list[SingleAgentEpisode], gym.spaces.Dict]:
    """The decisions of a table as one episode a session, and the space of their observations.

    Rows of one session follow each other in the order of the table. Where one has several decisions, what was done
    before in the session is observed, too, as in the environment.

    Raises:
        ConfigError: table and log differ in length.
    """
    if not len(table) == len(log.actions) == len(rewards):
        raise ConfigError(
            f"log: {len(log.actions)} decisions and {len(rewards)} rewards for {len(table)} rows; give one each"
        )
    places: dict[str, list[int]] = {}
    for row, session in enumerate(log.sessions):
        places.setdefault(session, []).append(row)
    space = observation_space(table, Session(length=max(map(len, places.values()))))
    return [_episode(table, log, rewards, session, own, space) for session, own in places.items()], space


def _episode(
    table: DecisionTable,
    log: Log,
    rewards: NDArray[np.floating],
    session: str,
    rows: list[int],
    space: gym.spaces.Dict,
) -> SingleAgentEpisode:
    columns = _observed(table, log, rows, space)
    steps = [{name: column[step] for name, column in columns.items()} for step in range(len(rows))]
    episode = SingleAgentEpisode(
        id_=session,
        # What comes after the last action is never looked at: the session has ended.
        observations=[*steps, steps[-1]],
        actions=list(log.actions[rows]),
        rewards=[float(reward) for reward in rewards[rows]],
        terminated=True,
        observation_space=space,
        len_lookback_buffer=0,
    )
    episode.to_numpy()
    return episode


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
        parts = [
            self._chunk({name: each[at : at + _CHUNK] for name, each in states.items()}) for at in range(0, num, _CHUNK)
        ]
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
    episodes, space = episodes_of(table, log, rewards)
    config, module = _configured(name, settings)
    config.environment(observation_space=space, action_space=gym.spaces.Discrete(table.num_actions))
    config.learners(num_learners=0)
    config.training(
        lr=settings.learning_rate, train_batch_size_per_learner=settings.batch_size, gamma=gamma, grad_clip=10.0
    )
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=module, model_config=dict(model)))
    config.debugging(seed=seed, log_level="ERROR")
    config.offline_data(
        input_=["sessions"],  # RLlib wants a name.
        offline_data_class=LoggedSessions.of(episodes),
        # RLlib copies to a target network after each such round, and goes on in the data where it stopped.
        dataset_num_iters_per_learner=min(settings.target_steps, settings.num_steps),
    )
    algorithm = config.build_algo()
    try:
        result: dict[str, Any] = {}
        for _ in range(math.ceil(settings.num_steps / settings.target_steps)):
            result = algorithm.train()
        group: Any = algorithm.learner_group
        found = group.foreach_learner(lambda learner: learner.module[DEFAULT_MODULE_ID].unwrapped().eval())
        (learned,) = (each.get() for each in found)
    finally:
        algorithm.stop()
    return OfflinePolicy(learned), dict(flat({"learners": result.get("learners", {})}))


def offline_study(
    names: Sequence[DecisionAlgorithm],
    table: DecisionTable,
    log: Log,
    *,
    rewards: NDArray[np.floating],
    model: Mapping[str, Any],
    reward_model: Callable[[], FusionModel],
    settings: OfflineLearning,
    true_rewards: NDArray[np.floating] | None = None,
    gamma: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Learns by each algorithm from a part of the log, and tells by the rest what each policy is worth.

    The reward model of the doubly robust estimates learns from the same part as the policies: the rest is new to both.

    rewards: [N], as of `learn_offline`. reward_model: makes an untrained model for the table's inputs, with K classes.
    true_rewards: [N, K], where somebody knows them, such as a simulated world.

    Returns by algorithm `ips`, `snips` and `doubly_robust` (a `ValueEstimate` as a mapping), and where the truth is
    known `true_value`, in the contexts of the rest, and whether the doubly robust interval has it (`covered`).

    Raises:
        ConfigError: see `learn_offline`, `estimators.held_out` and `estimators.ips`.
    """
    judges = held_out(log.sessions, settings.judged_share, seed=seed)
    learned, judged = np.flatnonzero(~judges), np.flatnonzero(judges)
    known, unseen = table.rows(learned), table.rows(judged)
    rest, own = log.rows(judged), np.asarray(rewards, np.float64)[judged]
    fit = Fit(ClickLoss.REGRESSION, settings.num_steps, settings.batch_size, settings.learning_rate, seed)
    foreseen = learn_clicks(
        reward_model(), known.inputs, actions=log.actions[learned], rewards=rewards[learned], fit=fit
    ).predictions(unseen.inputs)
    study: dict[str, Any] = {}
    for name in names:
        policy, _ = learn_offline(
            name,
            known,
            log.rows(learned),
            rewards=rewards[learned],
            model=model,
            settings=settings,
            gamma=gamma,
            seed=seed,
        )
        target = policy.probabilities(unseen.inputs)
        robust = doubly_robust(rest, target, predictions=foreseen, rewards=own, clip=settings.clip)
        study[name.value] = {
            "ips": asdict(ips(rest, target, rewards=own, clip=settings.clip)),
            "snips": asdict(snips(rest, target, rewards=own, clip=settings.clip)),
            "doubly_robust": asdict(robust),
        }
        if true_rewards is not None:
            truth = float((target * true_rewards[judged]).sum(axis=1).mean())
            study[name.value] |= {"true_value": truth, "covered": robust.low <= truth <= robust.high}
    return study


def _configured(name: DecisionAlgorithm, settings: OfflineLearning) -> tuple[Any, type]:
    match name:
        case DecisionAlgorithm.BC:
            return BCConfig().training(learner_class=FusionMARWILLearner), FusionPolicyModule
        case DecisionAlgorithm.MARWIL:
            config = MARWILConfig().training(
                beta=settings.beta,
                # Of squared advantages. RLlib begins at 100 and hardly moves: rewards from 0 to 1 would be all alike.
                moving_average_sqd_adv_norm_start=1.0,
                moving_average_sqd_adv_norm_update_rate=0.01,
                learner_class=FusionMARWILLearner,
            )
            return config, FusionPolicyModule
        case DecisionAlgorithm.CQL:
            config = ConservativeQConfig().training(learner_class=ConservativeQLearner)
            config.conservatism = settings.conservatism
            return config, FusionQModule
        case _:
            raise ConfigError(f"algorithm={name}: learns from no log with RLlib; use bc, marwil or cql")
