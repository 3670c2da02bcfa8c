"""What happens to completion rewards before advantages: combine the parts, scale, clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Part = TypeVar("Part", bound=str)


def combine(*, parts: Mapping[Part, Float[Tensor, " B"]], weights: Mapping[Part, float]) -> Float[Tensor, " B"]:
    """Weighted sum of reward parts: sum over names of weights[name] * parts[name].

    Args:
        parts: name -> [B], all of one dtype.
        weights: name -> weight, for the same names.

    Raises:
        ValueError: a weight has no part, a part has no weight, or there is none at all; the message names them.
    """
    missing, unweighted = sorted(weights.keys() - parts.keys()), sorted(parts.keys() - weights.keys())
    if missing or unweighted or not weights:
        raise ValueError(
            f"reward parts {sorted(parts)} do not fit weights {sorted(weights)}: "
            f"missing parts {missing}, parts without a weight {unweighted}"
        )
    return torch.stack([weights[name] * parts[name] for name in weights]).sum(dim=0)


def clip_reward(*, rewards: Float[Tensor, " B"], bound: float) -> Float[Tensor, " B"]:
    """Clamps completion rewards [B] to [-bound, bound]."""
    return rewards.clamp(-bound, bound)


@dataclass(frozen=True)
class RunningScale:
    """Running standard deviation of completion rewards over the steps of a run, and division by it.

    Welford's recurrence, in batches (Chan, Golub and LeVeque 1983), in double precision. The mean is not subtracted:
    scaling must not change a reward's sign.

    count: rewards seen; mean: their mean; m2: sum of squared deviations from it.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 1 as long as no two different rewards were seen."""
        std = (self.m2 / self.count) ** 0.5 if self.count else 0.0
        return std if std > 1e-8 else 1.0

    def updated(self, *, rewards: Float[Tensor, " B"]) -> RunningScale:
        """The scale after a further batch [B] of rewards.

        Raises:
            ValueError: a reward is not finite; it would spoil the scale for the rest of the run.
        """
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError(f"{int((~torch.isfinite(rewards)).sum())} of {len(rewards)} rewards are not finite")
        if not len(rewards):
            return self
        batch = rewards.detach().double()
        batch_mean = float(batch.mean())
        count, shift = self.count + len(batch), batch_mean - self.mean
        return RunningScale(
            count=count,
            mean=self.mean + shift * len(batch) / count,
            m2=self.m2 + float((batch - batch_mean).square().sum()) + shift**2 * self.count * len(batch) / count,
        )

    def scaled(self, *, rewards: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Rewards [B] divided by `std`."""
        return rewards / self.std

    def state(self) -> dict[str, float]:
        """What a checkpoint holds; `from_state` gives an equal scale back."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> RunningScale:
        """The scale that `state()` came from."""
        return cls(count=int(state["count"]), mean=float(state["mean"]), m2=float(state["m2"]))
