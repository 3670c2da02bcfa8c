"""The parts of a step's reward: what each weighs now, how they become one reward, and what each has to say.

weights (schedule, multipliers) -> judge -> parts -> one reward a completion -> advantages
                    ^                          |
                    +---- means against floors +
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from actors.loop.judge import OVERLONG, Judged
from pipeline.algorithms.multi_reward import gdpo, next_multiplier, normalised_in_group, signal_shares
from pipeline.config import Algorithm, PartNormalisation, Rlhf


def learned_rewards(batch: Judged, algorithm: Algorithm) -> Tensor:
    """What is learned from, float32 [N]: the weighted sum of the parts, each normalised first where the recipe says so.

    The penalty on length is added to either as it is: normalised, its smallest difference would count like a right
    answer.
    """
    if algorithm.part_normalisation is PartNormalisation.NONE or not batch.weights:
        return batch.rewards
    rewards = gdpo(parts=_weighted_parts(batch), weights=_weights(batch)).flatten()
    return rewards + batch.parts[OVERLONG] if OVERLONG in batch.parts else rewards


def next_multipliers(settings: Rlhf, multipliers: Mapping[str, float], batch: Judged, step: int) -> dict[str, float]:
    """The multipliers of parts with a floor after a step.

    They hold while the policy, which waits for its critic, cannot follow; that of a part which applied to no completion
    holds, too.
    """
    floors = {name: each for name, each in settings.rewards.items() if each.floor is not None}
    means = batch.means() if settings.policy_learns(step) else {}
    return {
        name: next_multiplier(
            multiplier=multipliers.get(name, each.weight),
            value=means.get(name, each.floor),
            floor=each.floor,
            rate=settings.algorithm.multiplier_rate,
        )
        for name, each in floors.items()
        if each.floor is not None
    }


def part_metrics(batch: Judged, algorithm: Algorithm) -> dict[str, float]:
    """Mean, spread, weight and share of the signal of each part; a part that applies to no completion has its weight
    alone.
    """
    known = {name: part[~part.isnan()].double() for name, part in batch.parts.items()}
    shares = signal_shares(contributions=_contributions(batch, algorithm))
    return {
        **{f"reward/{name}": mean for name, mean in batch.means().items()},
        **{f"reward_std/{name}": float(values.std(unbiased=False)) for name, values in known.items() if len(values)},
        **{f"reward_weight/{name}": weight for name, weight in batch.weights.items()},
        **{f"reward_share/{name}": share for name, share in shares.items()},
    }


def _contributions(batch: Judged, algorithm: Algorithm) -> dict[str, Tensor]:
    """What each part adds to the reward of each completion, [G, n]."""
    parts = _weighted_parts(batch)
    if algorithm.part_normalisation is PartNormalisation.GROUP:
        parts = {name: normalised_in_group(values=part) for name, part in parts.items()}
    added = {name: weight * parts[name] for name, weight in _weights(batch).items()}
    if OVERLONG in batch.parts:
        size = 1.0
        if algorithm.part_normalisation is PartNormalisation.GROUP and added:
            # The others are divided by the size of their sum over the step, the penalty is not.
            size = float(torch.stack([*added.values()]).nansum(0).std(unbiased=False))
        added[OVERLONG] = size * batch.parts[OVERLONG].view(len(batch.rollouts), -1)
    return added


def _weights(batch: Judged) -> dict[str, Tensor]:
    """What each part is multiplied by in each group, [G, 1]."""
    return {name: each[:, None] for name, each in batch.weights_by_group().items()}


def _weighted_parts(batch: Judged) -> dict[str, Tensor]:
    """The parts that have a weight, [G, n]: not what is shown beside them."""
    return {name: batch.parts[name].view(len(batch.rollouts), -1) for name in batch.weights}
