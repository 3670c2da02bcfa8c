"""What happens to completion rewards before advantages: combine the parts, scale, clip, punish what is overlong.

And which groups are worth an update at all: those whose rewards differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Part = TypeVar("Part", bound=str)


def combine(
    *, parts: Mapping[Part, Float[Tensor, " B"]], weights: Mapping[Part, Float[Tensor, " B"] | float]
) -> Float[Tensor, " B"]:
    """Weighted sum of reward parts: sum over names of weights[name] * parts[name], of those that apply to a row.

    Args:
        parts: name -> [B], all of one dtype; NaN where a part does not apply.
        weights: name -> weight, or that of each row [B], for the same names.

    Raises:
        ValueError: a weight has no part, a part has no weight, or there is none at all; the message names them.
    """
    missing, unweighted = sorted(weights.keys() - parts.keys()), sorted(parts.keys() - weights.keys())
    if missing or unweighted or not weights:
        raise ValueError(
            f"reward parts {sorted(parts)} do not fit weights {sorted(weights)}: "
            f"missing parts {missing}, parts without a weight {unweighted}"
        )
    return torch.stack([weights[name] * parts[name] for name in weights]).nansum(dim=0)


def clip_reward(*, rewards: Float[Tensor, " B"], bound: float) -> Float[Tensor, " B"]:
    """Clamps completion rewards [B] to [-bound, bound]."""
    return rewards.clamp(-bound, bound)


def is_clipped(*, rewards: Float[Tensor, " B"], bound: float) -> Bool[Tensor, " B"]:
    """Which completion rewards [B] lie beyond [-bound, bound], so that `clip_reward` changes them."""
    return rewards.abs() > bound


def overlong_penalty(
    *, lengths: Int[Tensor, " B"], max_length: int, buffer: int, penalty: float
) -> Float[Tensor, " B"]:
    """Soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13): to be added to the rewards.

    0 up to `max_length - buffer` tokens, then linear, and `-penalty` from `max_length` on:
    -penalty * clip((length - (max_length - buffer)) / buffer, 0, 1). The paper has a penalty of 1.

    Args:
        lengths: [B], tokens of each completion.
        max_length: tokens at which the whole penalty is due: the limit of generation.
        buffer: tokens before it over which the penalty grows; 0 leaves rewards alone.
        penalty: in units of reward, not negative.

    Returns:
        float32 [B], never positive.

    Raises:
        ValueError: the buffer is longer than a completion can be.
    """
    if not 0 <= buffer <= max_length:
        raise ValueError(f"buffer={buffer}: must lie between 0 and max_length={max_length}")
    if not buffer:
        return torch.zeros(len(lengths))
    return -penalty * ((lengths - (max_length - buffer)) / buffer).clamp(0.0, 1.0)


def varied_groups(*, rewards: Float[Tensor, "G n"], tolerance: float = 1e-6) -> Bool[Tensor, " G"]:
    """Which groups have rewards that differ; the others teach nothing where completions are compared in their group.

    Dynamic sampling keeps these and draws new prompts for the others (DAPO: Yu et al. 2025, arXiv 2503.14476,
    section 3.2).

    Args:
        rewards: [G, n], n completions of each of G prompts, before length shapes them: the paper filters on accuracy.
        tolerance: largest minus smallest reward must be more than this, in units of reward.

    Returns:
        [G]; False for groups of one.
    """
    return rewards.amax(dim=1) - rewards.amin(dim=1) > tolerance


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
