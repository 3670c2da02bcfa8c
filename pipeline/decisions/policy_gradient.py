"""The algorithm around REINFORCE's and A2C's learners: sample, one pass over what was sampled, new weights.

A sample may end within a session. A2C goes on from the value there; REINFORCE needs the whole session, so its parts are
kept until it ends: nothing is thrown away, and environments are never reset for its sake.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.from_config import NotProvided
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from pipeline.decisions.learners import ActorCriticLearner, ReinforceLearner
from pipeline.decisions.modules import FusionPolicyModule


class PolicyGradient(Algorithm):
    """Synchronous and on-policy."""

    def training_step(self) -> None:
        """One update."""
        config: Any = self.config
        runners: Any = self.env_runner_group
        learners: Any = self.learner_group
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            sampled: Any = synchronous_parallel_sample(
                worker_set=runners,
                max_env_steps=config.total_train_batch_size,
                sample_timeout_s=config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
                concat=True,
            )
            episodes, results = sampled
            self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        episodes = self._whole(episodes) if config.needs_whole_sessions else episodes
        if not episodes:
            return
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            learned = learners.update(episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
            self.metrics.aggregate(learned, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            runners.sync_weights(
                from_worker_or_learner_group=learners,
                policies=set(learned[0]) - {ALL_MODULES},
                inference_only=True,
            )

    def _whole(self, chunks: list[Any]) -> list[Any]:
        """The sessions that end with one of these chunks; those of others wait."""
        waiting: dict[str, Any] = vars(self).setdefault("_waiting", {})
        whole: list[Any] = []
        for chunk in chunks:
            episode = waiting.pop(chunk.id_, None)
            if episode is None:
                episode = chunk
            else:
                episode.concat_episode(chunk)
            if episode.is_done:
                whole.append(episode)
            else:
                waiting[episode.id_] = episode
        return whole


class PolicyGradientConfig(AlgorithmConfig):
    """What both share. `train_batch_size_per_learner` steps make an update."""

    needs_whole_sessions = False

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.lr = 1e-3
        self.rollout_fragment_length = "auto"
        self.train_batch_size_per_learner = 64
        self.entropy_coeff = 0.01
        self.vf_loss_coeff = 0.5
        self.lambda_ = 1.0
        self.baseline_momentum: float | None = 0.9
        self.num_env_runners = 0

    def training(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        entropy_coeff: Any = NotProvided,
        vf_loss_coeff: Any = NotProvided,
        lambda_: Any = NotProvided,
        baseline_momentum: Any = NotProvided,
        **kwargs: Any,
    ) -> PolicyGradientConfig:
        """Sets what training is like: the weights of the entropy and of the value loss, GAE's lambda, and how much of
        REINFORCE's baseline stays with each batch (None: it has no baseline)."""
        super().training(**kwargs)
        given = {
            "entropy_coeff": entropy_coeff,
            "vf_loss_coeff": vf_loss_coeff,
            "lambda_": lambda_,
            "baseline_momentum": baseline_momentum,
        }
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The fusion policy."""
        return RLModuleSpec(module_class=FusionPolicyModule)


class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE: whole sessions, a moving baseline."""

    needs_whole_sessions = True

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or Reinforce)

    def get_default_learner_class(self) -> type[ReinforceLearner]:
        """Its loss."""
        return ReinforceLearner


class ActorCriticConfig(PolicyGradientConfig):
    """A2C: a learned value is the baseline."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or ActorCritic)

    def get_default_learner_class(self) -> type[ActorCriticLearner]:
        """Its loss."""
        return ActorCriticLearner


class Reinforce(PolicyGradient):
    """REINFORCE. RLlib makes an algorithm's configuration anew from the default of its class: each needs its own."""

    @classmethod
    def get_default_config(cls) -> ReinforceConfig:
        """Its own."""
        return ReinforceConfig()


class ActorCritic(PolicyGradient):
    """A2C."""

    @classmethod
    def get_default_config(cls) -> ActorCriticConfig:
        """Its own."""
        return ActorCriticConfig()
