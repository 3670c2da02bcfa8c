"""Learning online: an RLlib algorithm over the environment, its regret decision by decision, checkpoints and resuming.

DecisionTable (a file) -> environments of the runners -> episodes -> learner -> weights -> runners
                                  regret of each session, as it ends -> the curve
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from pipeline.config import ConfigError
from pipeline.config.decide import Decide, DecisionAlgorithm, DecisionReward
from pipeline.decisions.environment import DecisionEnv, Observation, Session, observation_space, observed
from pipeline.decisions.feedback import Clicks, Feedback, Live, LiveSource, Replayed, Truth
from pipeline.decisions.learners import FusionDQNLearner, FusionPPOLearner, FusionSACLearner
from pipeline.decisions.modules import FusionPolicyModule, FusionQModule, FusionSACModule
from pipeline.decisions.policy_gradient import ActorCriticConfig, ReinforceConfig
from pipeline.decisions.replay import SessionReplay
from pipeline.decisions.table import DecisionTable

ENVIRONMENT = "decisions"
REGRET = "regrets"
PROGRESS_FILE = "progress.json"
QUIET = ("connector", "timer", "_agent", "default_agent", "weights_seq_no")
"""What of RLlib's metrics is left out: how long each of its parts took, and what is there twice."""

Policy = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.int64]]
"""Observations [B, ...] -> actions int64 [B]."""


@dataclass(frozen=True)
class Scene:
    """What an environment is made from, anywhere: it travels to the runners, and its table is a file that all reach."""

    table: str
    encoder_key: str
    reward: DecisionReward = DecisionReward.CLICKS
    live: str | None = None
    session: Session = field(default_factory=Session)
    order_seed: int = 0

    def open(self) -> DecisionTable:
        """The table, kept in this process."""
        return _open(self.table, self.encoder_key)

    def feedback(self) -> Feedback:
        """What answers."""
        table = self.open()
        match self.reward:
            case DecisionReward.CLICKS:
                return Clicks(table)
            case DecisionReward.LOGGED:
                return Replayed(table)
            case DecisionReward.LIVE:
                return Live(table, live_source(self.live or ""))
            case DecisionReward.TRUTH | DecisionReward.RATINGS:
                return Truth(table)

    def environment(self, *, stream: int = 0, num_streams: int = 1, skip: int = 0) -> DecisionEnv:
        """One of the environments of a run."""
        return DecisionEnv(
            self.open(),
            feedback=self.feedback(),
            session=self.session,
            stream=stream,
            num_streams=num_streams,
            order_seed=self.order_seed,
            skip=skip,
        )


@lru_cache(maxsize=8)
def _open(path: str, encoder_key: str) -> DecisionTable:
    return DecisionTable.load(Path(path), encoder_key=encoder_key)


def live_source(name: str) -> LiveSource:
    """The function that `module:name` names.

    Raises:
        ConfigError: there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"decide.live={name!r}: {error}; write module:name of a function that can be imported"
        ) from None


def make_environment(context: Any) -> DecisionEnv:
    """The next environment of a runner. RLlib seeds runner w with seed + w, and its environments with 1 more each."""
    num_envs, worker = int(context["per_runner"]), int(context.worker_index)
    scene: dict[str, Any] = {**context["scene"], "session": Session(**context["scene"]["session"])}
    return Scene(**scene).environment(
        stream=(worker - 1) * num_envs - worker if worker else 0,
        num_streams=max(1, int(context.num_workers or 0)) * num_envs,
        skip=int(context["skip"]),
    )


class RegretCallback(RLlibCallback):
    """Keeps the regret of each session."""

    def on_episode_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, episode: Any, metrics_logger: Any, **kwargs: Any
    ) -> None:
        """Logs what the session that just ended lost."""
        metrics_logger.log_value(REGRET, episode.get_infos(-1)["regret"], reduce="item_series")


def algorithm_config(
    name: DecisionAlgorithm,
    settings: Decide,
    scene: Scene,
    *,
    seed: int,
    model: Mapping[str, Any],
    skip: int = 0,
) -> AlgorithmConfig:
    """RLlib's configuration of an online algorithm. `model`: the `model_config` of the module, see `modules.py`."""
    makers: dict[DecisionAlgorithm, Callable[[Decide, int], tuple[Any, Any]]] = {
        DecisionAlgorithm.DQN: _dqn,
        DecisionAlgorithm.REINFORCE: _reinforce,
        DecisionAlgorithm.A2C: _a2c,
        DecisionAlgorithm.PPO: _ppo,
        DecisionAlgorithm.SAC: _sac,
    }
    table = scene.open()
    num_actions = table.num_actions + scene.session.asks
    register_env(ENVIRONMENT, make_environment)
    config, module = makers[name](settings, num_actions)
    context = {"scene": asdict(scene), "per_runner": settings.num_envs, "skip": skip}
    config.environment(ENVIRONMENT, env_config=context, disable_env_checking=True)
    config.env_runners(num_env_runners=settings.num_env_runners, num_envs_per_env_runner=settings.num_envs)
    config.learners(num_learners=0)
    config.callbacks(RegretCallback)
    config.training(gamma=settings.gamma)
    config.reporting(min_sample_timesteps_per_iteration=settings.report_every, min_time_s_per_iteration=0)
    config.debugging(seed=seed, log_level="ERROR")
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=module, model_config=dict(model)))
    config.observation_space = observation_space(table, scene.session)
    return config


def _dqn(settings: Decide, num_actions: int) -> tuple[AlgorithmConfig, type]:
    own = settings.dqn
    first, last = own.epsilon
    config = DQNConfig().training(
        lr=own.learning_rate,
        train_batch_size_per_learner=own.batch_size,
        training_intensity=own.intensity,
        num_steps_sampled_before_learning_starts=own.warmup_steps,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": own.buffer_size},
        n_step=own.n_step,
        double_q=own.double_q,
        dueling=own.dueling,
        epsilon=[[0, first], [own.epsilon_steps, last]],
        target_network_update_freq=own.target_steps,
        learner_class=FusionDQNLearner,
    )
    return config, FusionQModule


def _sac(settings: Decide, num_actions: int) -> tuple[AlgorithmConfig, type]:
    own = settings.sac
    config = SACConfig().training(
        actor_lr=own.learning_rate,
        critic_lr=own.learning_rate,
        alpha_lr=own.temperature_rate,
        train_batch_size_per_learner=own.batch_size,
        training_intensity=own.intensity,
        num_steps_sampled_before_learning_starts=own.warmup_steps,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": own.buffer_size},
        n_step=own.n_step,
        initial_alpha=own.temperature,
        # RLlib's `auto` is -1, an entropy that no distribution over K actions has: the temperature would only fall.
        target_entropy=own.entropy_share * float(np.log(num_actions)),
        tau=own.tau,
        learner_class=FusionSACLearner,
    )
    return config, FusionSACModule


def _reinforce(settings: Decide, num_actions: int) -> tuple[AlgorithmConfig, type]:
    own = settings.reinforce
    config = ReinforceConfig().training(
        lr=own.learning_rate,
        train_batch_size_per_learner=own.batch_size,
        entropy_coeff=own.entropy_schedule,
        baseline_momentum=own.baseline_momentum,
    )
    return config, FusionPolicyModule


def _a2c(settings: Decide, num_actions: int) -> tuple[AlgorithmConfig, type]:
    own = settings.a2c
    config = ActorCriticConfig().training(
        lr=own.learning_rate,
        train_batch_size_per_learner=own.batch_size,
        entropy_coeff=own.entropy_schedule,
        vf_loss_coeff=own.value_weight,
        lambda_=own.gae_lambda,
    )
    return config, FusionPolicyModule


def _ppo(settings: Decide, num_actions: int) -> tuple[AlgorithmConfig, type]:
    own, untyped = settings.ppo, cast(Any, PPOConfig())  # a schedule is no float, but may stand for one
    config = untyped.training(
        lr=own.learning_rate,
        train_batch_size_per_learner=own.batch_size,
        minibatch_size=min(own.minibatch_size, own.batch_size),
        num_epochs=own.num_epochs,
        entropy_coeff=own.entropy_schedule,
        vf_loss_coeff=own.value_weight,
        lambda_=own.gae_lambda,
        clip_param=own.clip,
        use_kl_loss=False,
        learner_class=FusionPPOLearner,
    )
    return config, FusionPolicyModule


@dataclass(frozen=True)
class Evaluation:
    """What a policy does on a split, one entry a session: the row, its last action, its regret and its reward."""

    rows: NDArray[np.int64]
    actions: NDArray[np.int64]
    regrets: NDArray[np.float64]
    rewards: NDArray[np.float64]


def evaluate(policy: Policy, scene: Scene) -> Evaluation:
    """Lets a policy decide each row of a table once, in whole sessions."""
    table = scene.open()
    num = len(table)
    if not scene.session.has_history and isinstance(scene.feedback(), Truth):
        actions = policy({name: observed(each) for name, each in table.inputs.items()})
        rewards = table.rewards[np.arange(num), actions].astype(np.float64)
        return Evaluation(np.arange(num), actions, table.rewards.max(1) - rewards, rewards)
    environments = [scene.environment(stream=row, num_streams=num) for row in range(num)]
    observations: list[Observation] = [each.reset(seed=0)[0] for each in environments]
    rows, actions = np.zeros(num, np.int64), np.zeros(num, np.int64)
    regrets, rewards = np.zeros(num), np.zeros(num)
    going = list(range(num))
    while going:
        chosen = policy({name: np.stack([observations[at][name] for at in going]) for name in observations[0]})
        left: list[int] = []
        for at, action in zip(going, chosen.tolist(), strict=True):
            observations[at], reward, done, _, infos = environments[at].step(action)
            rows[at], actions[at], regrets[at] = infos["row"], action, infos["regret"]
            rewards[at] += reward
            left += [] if done else [at]
        going = left
    return Evaluation(rows, actions, regrets, rewards)


def greedy(module: Any, *, batch_size: int = 512) -> Policy:
    """What an RLlib module does when it does not explore."""

    def policy(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        num = len(next(iter(observations.values())))
        found: list[NDArray[np.int64]] = []
        for start in range(0, num, batch_size):
            batch = {name: torch.from_numpy(each[start : start + batch_size]) for name, each in observations.items()}
            with torch.no_grad():
                output = module.forward_inference({Columns.OBS: batch})
            chosen = output.get(Columns.ACTIONS)
            found.append((output[Columns.ACTION_DIST_INPUTS].argmax(-1) if chosen is None else chosen).numpy())
        return np.concatenate(found)

    return policy


class OnlineRun:
    """One algorithm at its decisions, an iteration at a time.

    regrets: of the sessions so far, in the order in which they ended.
    """

    def __init__(
        self,
        name: DecisionAlgorithm,
        settings: Decide,
        scene: Scene,
        *,
        seed: int,
        model: Mapping[str, Any],
        directory: Path,
        resume: bool = False,
    ) -> None:
        """Builds it, or goes on from the last checkpoint in `directory`."""
        self._directory = directory
        self._settings = settings
        self.regrets: list[float] = []
        self.iteration = 0
        last = self._last() if resume else None
        if last is not None:
            progress = json.loads((last / PROGRESS_FILE).read_text(encoding="utf-8"))
            self.regrets, self.iteration = progress["regrets"], progress["iteration"]
        elif directory.is_dir():
            shutil.rmtree(directory)
        skip = len(self.regrets) // (settings.num_envs * max(1, settings.num_env_runners))
        config: Any = algorithm_config(name, settings, scene, seed=seed, model=model, skip=skip)
        self.algorithm: Any = config.build_algo()
        if getattr(config, "n_step", 1) > 1:
            # RLlib takes no other class by its configuration.
            self.algorithm.local_replay_buffer = SessionReplay(capacity=config.replay_buffer_config["capacity"])
        if last is not None:
            self.algorithm.restore_from_path(str(last / "algorithm"))

    @property
    def done(self) -> bool:
        """Whether it has made its decisions."""
        return len(self.regrets) >= self._settings.num_decisions

    @property
    def module(self) -> Any:
        """The module as it is learned now."""
        return self.algorithm.get_module()

    def step(self) -> dict[str, float]:
        """One iteration; returns RLlib's numbers of it, with slashes in their names."""
        result = self.algorithm.train()
        self.iteration += 1
        regrets = [float(each) for each in result["env_runners"].pop(REGRET, [])]
        self.regrets += regrets
        every = self._settings.checkpoint_every
        if self.done or (every and self.iteration % every == 0):
            self.save()
        numbers = {"regret/mean": float(np.mean(regrets))} if regrets else {}
        numbers["regret/cumulated"] = float(np.sum(self.regrets))
        numbers["counts/decisions"] = float(len(self.regrets))
        told = flat({name: result.get(name, {}) for name in ("learners", "env_runners")})
        return numbers | {name: value for name, value in told if not any(word in name for word in QUIET)}

    def save(self) -> Path:
        """Writes a checkpoint, complete or not at all; the one before goes."""
        before = self._last()
        target = self._directory / f"{self.iteration:06d}"
        draft = self._directory / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        self.algorithm.save_to_path(str(draft / "algorithm"))
        progress = {"iteration": self.iteration, "regrets": self.regrets}
        (draft / PROGRESS_FILE).write_text(json.dumps(progress), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        if before is not None and before != target:
            shutil.rmtree(before)
        return target

    def close(self) -> None:
        """Ends its runners."""
        self.algorithm.stop()

    def _last(self) -> Path | None:
        found = sorted(self._directory.glob("[0-9]*"))
        return found[-1] if found else None


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested mappings, with slashes in their names; what is no number is left out."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float | np.number | torch.Tensor) and getattr(value, "ndim", 0) == 0:
            found.append((f"{prefix}{name}", float(value)))
    return found
