"""Advantages, losses and KL."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.section import Section


class AdvantageEstimator(StrEnum):
    GAE = "gae"
    GRPO = "grpo"


class KlPlace(StrEnum):
    REWARD = "reward"
    LOSS = "loss"


class KlEstimator(StrEnum):
    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KlControl(StrEnum):
    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class Kl(Section):
    weight: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty to the reference; 0 leaves the reference out altogether."""
    place: KlPlace = KlPlace.REWARD
    """`reward`: subtracted from each token's reward (InstructGPT); `loss`: added to the policy loss (GRPO)."""
    estimator: KlEstimator = KlEstimator.K1
    """Estimator of the per-token KL (Schulman 2020)."""
    control: KlControl = KlControl.FIXED
    """`adaptive`: the weight follows `target` (Ziegler et al. 2019)."""
    target: float = Field(default=0.1, gt=0)
    """Target of the adaptive controller: mean KL a token, in nats."""
    horizon: int = Field(default=1000, gt=0)
    """Time constant of the adaptive controller, in completions."""

    @model_validator(mode="after")
    def _check(self) -> Kl:
        if self.place is KlPlace.LOSS and self.estimator is KlEstimator.K1:
            raise ValueError(
                "place=loss with estimator=k1: its gradient is zero on average, so that it would hold nothing; "
                "use k2 or k3, or place=reward"
            )
        return self


class Algorithm(Section):
    advantage: AdvantageEstimator = AdvantageEstimator.GAE
    """`gae`: PPO with a critic; `grpo`: group-relative advantages without one."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    clip: float = Field(default=0.2, gt=0)
    """PPO's clip range of the policy ratio."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of the value update."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    whiten_advantages: bool = True
    """Whether advantages are shifted and scaled to mean 0 and variance 1 over the step's tokens."""
    scale_rewards: bool = False
    """Whether rewards are divided by a running standard deviation."""
    clip_reward: float | None = Field(default=10.0, gt=0)
    """Absolute bound of a completion's reward; null for none."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over a step's experience."""
    num_minibatches: int = Field(default=2, ge=1)
    """Optimizer steps in a pass."""
    kl: Kl = Kl()
    """The KL penalty."""
