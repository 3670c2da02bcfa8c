"""REINFORCE and A2C as learners on RLlib's stack, which has neither any more; and what all our learners share.

Losses are pure functions of tensors; `mask` leaves out the steps that RLlib appends for bootstrapping.
"""

from __future__ import annotations

from typing import Any, cast

from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.connectors.learner import (
    AddColumnsFromEpisodesToTrainBatch,
    AddOneTsToEpisodesAndTruncate,
    ComputeReturnsToGo,
    GeneralAdvantageEstimation,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

BASELINE = "baseline"


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [B], of those that a mask [B] has; 0 where it has none."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp_min(1)


def reinforce_loss(
    *,
    logp: Tensor,
    returns: Tensor,
    entropy: Tensor,
    baseline: float = 0.0,
    entropy_weight: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """REINFORCE (Williams 1992): -mean_t (G_t - b) log pi(a_t | s_t) - c mean_t H(pi(. | s_t)).

    logp, returns, entropy: float32 [B], of the actions taken, to the end of their session, in nats. baseline: b.
    """
    return -masked_mean((returns - baseline) * logp, mask) - entropy_weight * masked_mean(entropy, mask)


def actor_critic_loss(
    *,
    logp: Tensor,
    advantages: Tensor,
    values: Tensor,
    targets: Tensor,
    entropy: Tensor,
    value_weight: float,
    entropy_weight: float,
    mask: Tensor | None = None,
) -> Tensor:
    """A2C (Mnih et al. 2016, arXiv 1602.01783): -mean A log pi + v mean (V - target)^2 - c mean H.

    All float32 [B]; advantages and targets carry no gradient.
    """
    policy = -masked_mean(advantages.detach() * logp, mask)
    value = masked_mean((values - targets.detach()) ** 2, mask)
    return policy + value_weight * value - entropy_weight * masked_mean(entropy, mask)


class Partial(TorchLearner):
    """A learner of modules in which some parameters learn nothing, as frozen encoders do: they have no gradient, and
    RLlib asks each gradient whether it is finite."""

    def compute_gradients(self, loss_per_module: dict[str, Any], **kwargs: Any) -> dict[Any, Any]:
        """The gradients that there are."""
        gradients: dict[Any, Any] = super().compute_gradients(loss_per_module, **kwargs)
        return {name: gradient for name, gradient in gradients.items() if gradient is not None}


class FusionPPOLearner(Partial, PPOTorchLearner):  # pyright: ignore[reportIncompatibleMethodOverride]
    """PPO as RLlib has it."""


class FusionDQNLearner(Partial, DQNTorchLearner):  # pyright: ignore[reportIncompatibleMethodOverride]
    """DQN as RLlib has it."""


class FusionSACLearner(Partial, SACTorchLearner):  # pyright: ignore[reportIncompatibleMethodOverride]
    """SAC as RLlib has it."""


class PolicyGradientLearner(Partial):
    """What REINFORCE and A2C share: log probabilities and entropy of the policy on a batch, and the entropy's weight,
    which may follow a schedule."""

    def build(self) -> None:
        """Builds the learner."""
        super().build()
        coefficient = cast(Any, self.config).entropy_coeff
        self.entropy_weight = Scheduler(fixed_value_or_schedule=coefficient, framework="torch")

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Moves the entropy's weight to where it is at this step."""
        super().after_gradient_based_update(timesteps=timesteps)
        self.entropy_weight.update(timestep=timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))

    def terms(self, module_id: str, batch: dict[str, Any], fwd_out: dict[str, Any]) -> dict[str, Tensor | None]:
        """`logp`, `entropy` [B] and `mask` [B] (None: all count)."""
        module: Any = self.module[module_id].unwrapped()
        distribution = module.get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        return {
            "logp": distribution.logp(batch[Columns.ACTIONS]),
            "entropy": distribution.entropy(),
            "mask": batch.get(Columns.LOSS_MASK),
        }

    def log(self, module_id: str, **values: Tensor | float) -> None:
        """Logs this batch's numbers."""
        numbers = {name: each.detach() if isinstance(each, Tensor) else each for name, each in values.items()}
        self.metrics.log_dict(numbers, key=module_id, window=1)


class ReinforceLearner(PolicyGradientLearner):
    """Monte-Carlo returns against a moving mean of returns; needs whole sessions."""

    def build(self) -> None:
        """Adds the returns of whole sessions to what a batch is made of."""
        super().build()
        self.baselines: dict[str, float] = {}
        # Before items are batched: returns are of episodes.
        connectors: Any = self._learner_connector
        connectors.insert_after(AddColumnsFromEpisodesToTrainBatch, ComputeReturnsToGo(gamma=self.config.gamma))

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """See `reinforce_loss`; the baseline is that of the batches before, so that it depends on no action of this."""
        returns = batch[Columns.RETURNS_TO_GO]
        terms: Any = self.terms(module_id, batch, fwd_out)
        mean = float(masked_mean(returns, terms["mask"]))
        momentum = config.baseline_momentum
        baseline = 0.0 if momentum is None else self.baselines.get(module_id, mean)
        if momentum is not None:
            self.baselines[module_id] = momentum * baseline + (1 - momentum) * mean
        loss = reinforce_loss(
            returns=returns, baseline=baseline, entropy_weight=float(self.entropy_weight.get_current_value()), **terms
        )
        self.log(module_id, policy_loss=loss, entropy=masked_mean(terms["entropy"], terms["mask"]), baseline=baseline)
        return loss

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The learner's state, its baseline with it."""
        return super().get_state(*args, **kwargs) | {BASELINE: dict(self.baselines)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes on what `get_state` gave."""
        super().set_state(state)
        self.baselines = dict(state.get(BASELINE, {}))


class ActorCriticLearner(PolicyGradientLearner):
    """Advantages by GAE (Schulman et al. 2016, arXiv 1506.02438); with lambda 1 over the fragment, n-step returns.

    RLlib standardises them over the batch.
    """

    def build(self) -> None:
        """Adds values, advantages and targets to what a batch is made of."""
        super().build()
        connectors, config = cast(Any, self._learner_connector), cast(Any, self.config)
        connectors.prepend(AddOneTsToEpisodesAndTruncate())
        connectors.append(GeneralAdvantageEstimation(gamma=config.gamma, lambda_=config.lambda_))

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """See `actor_critic_loss`."""
        module: Any = self.module[module_id].unwrapped()
        terms: Any = self.terms(module_id, batch, fwd_out)
        values = module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        loss = actor_critic_loss(
            advantages=batch["advantages"],
            values=values,
            targets=batch["value_targets"],
            value_weight=config.vf_loss_coeff,
            entropy_weight=float(self.entropy_weight.get_current_value()),
            **terms,
        )
        error = masked_mean((values - batch["value_targets"]) ** 2, terms["mask"])
        self.log(module_id, loss=loss, vf_loss=error, entropy=masked_mean(terms["entropy"], terms["mask"]))
        return loss
