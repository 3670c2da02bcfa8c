"""Estimators of the KL divergence from the reference to the policy, and controllers of its weight.

With x sampled from the policy and d = log reference(x) - log policy(x), Schulman 2020
(http://joschu.net/blog/kl-approx.html) estimates KL(policy || reference) by k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d.

Which one where: in the *reward*, k1 is unbiased and the usual choice. In the *loss*, what counts is the gradient, on
average over the policy's own samples: that of k1 is zero, so it holds nothing; that of k2 is the gradient of
KL(policy || reference); that of k3, GRPO's choice, is the gradient of KL(reference || policy)
(Tang and Munos 2025, arXiv 2506.09477).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import KlEstimator


def kl_k1(
    *, policy_logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k1 = log policy - log reference, per token, in nats: unbiased, high variance, often negative."""
    return policy_logprobs - reference_logprobs


def kl_k2(
    *, policy_logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k2 = (log policy - log reference)^2 / 2, per token, in nats: biased, low variance, never negative."""
    return (policy_logprobs - reference_logprobs).square() / 2


def kl_k3(
    *, policy_logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k3 = r - 1 - log r with r = reference / policy, per token, in nats: unbiased, low variance, never negative."""
    log_ratio = reference_logprobs - policy_logprobs
    return torch.expm1(log_ratio) - log_ratio


_ESTIMATORS: Mapping[KlEstimator, Callable[..., Tensor]] = {
    KlEstimator.K1: kl_k1,
    KlEstimator.K2: kl_k2,
    KlEstimator.K3: kl_k3,
}


def estimate_kl(
    *,
    estimator: KlEstimator,
    policy_logprobs: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """The estimator of that name; see `kl_k1`, `kl_k2`, `kl_k3`. Per token, in nats."""
    return _ESTIMATORS[estimator](policy_logprobs=policy_logprobs, reference_logprobs=reference_logprobs)


@dataclass(frozen=True)
class FixedKl:
    """A KL weight that stays as it is."""

    weight: float

    def updated(self, *, kl: float, num_completions: int) -> FixedKl:
        """The controller for the next step: this one."""
        return self

    def state(self) -> dict[str, float]:
        """What a checkpoint holds; `from_state` gives an equal controller back."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> FixedKl:
        """The controller that `state()` came from."""
        return cls(**state)


@dataclass(frozen=True)
class AdaptiveKl:
    """A KL weight that follows a target: the proportional controller of Ziegler et al. 2019 (arXiv 1909.08593).

    error = clip(kl / target - 1, -0.2, 0.2); weight *= clip(1 + error * num_completions / horizon, 1/2, 2).
    The second clip is ours: with more than 5 horizons of completions in a step the factor would be negative, and with
    it the weight, which would then reward the distance from the reference.

    weight: the weight now; a weight of 0 stays 0.
    target: the KL to hold, in nats, in the unit of the `kl` given to `updated` (here: mean a token).
    horizon: time constant, in completions.
    """

    weight: float
    target: float
    horizon: float

    MAX_ERROR = 0.2
    MAX_FACTOR = 2.0

    def updated(self, *, kl: float, num_completions: int) -> AdaptiveKl:
        """The controller for the next step, after `num_completions` completions whose mean KL was `kl` nats."""
        error = min(max(kl / self.target - 1.0, -self.MAX_ERROR), self.MAX_ERROR)
        factor = 1.0 + error * num_completions / self.horizon
        return replace(self, weight=self.weight * min(max(factor, 1.0 / self.MAX_FACTOR), self.MAX_FACTOR))

    def state(self) -> dict[str, float]:
        """What a checkpoint holds; `from_state` gives an equal controller back."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> AdaptiveKl:
        """The controller that `state()` came from."""
        return cls(**state)


KlController = FixedKl | AdaptiveKl
