"""From a step's rollouts, rewards, reference logprobs and values to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.algorithms.advantages import gae, grpo, token_rewards
from pipeline.algorithms.aggregation import masked_mean, masked_whiten
from pipeline.algorithms.kl import estimate_kl
from pipeline.config import AdvantageEstimator, Algorithm, KlPlace
from pipeline.records import Experience, Rollout

Rows = Sequence[NDArray[np.float32]]


def make_experience(
    rollouts: Sequence[Rollout],
    *,
    rewards: Tensor,
    reference_logprobs: Rows | None,
    values: Rows | None,
    algorithm: Algorithm,
    kl_weight: float,
) -> tuple[list[Experience], dict[str, float]]:
    """Advantages and returns of a step, one `Experience` a group, and the step's statistics.

    Args:
        rewards: float [N], one a completion, groups together.
        reference_logprobs, values: one array [n, T_g] a group, right-padded; None where the role is not needed.
        kl_weight: reward (or loss) a nat of KL a token; used here where the KL is part of the reward.
    """
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    behaviour = _pad([completion.behaviour_logprobs[None] for completion in completions], mask)
    reference = behaviour if reference_logprobs is None else _pad(reference_logprobs, mask)
    value = torch.zeros_like(behaviour) if values is None else _pad(values, mask)
    kl = estimate_kl(estimator=algorithm.kl.estimator, policy_logprobs=behaviour, reference_logprobs=reference)

    if algorithm.advantage is AdvantageEstimator.GAE:
        kl_in_reward = kl if algorithm.kl.place is KlPlace.REWARD else None
        per_token = token_rewards(completion_rewards=rewards, mask=mask, kl=kl_in_reward, kl_weight=kl_weight)
        advantages, returns = gae(rewards=per_token, values=value, mask=mask, gamma=algorithm.gamma, lam=algorithm.lam)
    else:
        in_reward = (kl * mask).sum(1) * kl_weight if algorithm.kl.place is KlPlace.REWARD else 0.0
        groups = (rewards - in_reward).view(len(rollouts), -1)
        advantages = grpo(completion_rewards=groups).view(-1, 1) * mask
        returns = torch.zeros_like(advantages)
    statistics = _statistics(rollouts, mask, behaviour - reference, advantages, value, returns)
    if algorithm.whiten_advantages:
        advantages = masked_whiten(values=advantages, mask=mask)

    columns: Mapping[str, Tensor] = {
        "mask": mask,
        "behaviour_logprobs": behaviour,
        "reference_logprobs": reference,
        "values": value,
        "advantages": advantages,
        "returns": returns,
    }
    token_ids = _pad([completion.token_ids[None] for completion in completions], mask)
    return _groups(rollouts, {"token_ids": token_ids, **columns}), statistics


@dataclass(frozen=True)
class ExperienceBatch:
    """The experience of several groups, padded to one length: tensors [N, T]. `mask` leaves weightless rows out."""

    mask: Tensor
    behaviour_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def collate_experience(groups: Sequence[Experience], *, device: torch.device) -> ExperienceBatch:
    """Stacks the rows of several groups."""
    return ExperienceBatch(
        mask=_stack([group.mask & (group.weight > 0) for group in groups]).to(device),
        behaviour_logprobs=_stack([group.behaviour_logprobs for group in groups]).to(device),
        reference_logprobs=_stack([group.reference_logprobs for group in groups]).to(device),
        values=_stack([group.values for group in groups]).to(device),
        advantages=_stack([group.advantages for group in groups]).to(device),
        returns=_stack([group.returns for group in groups]).to(device),
    )


def _pad(blocks: Sequence[NDArray[Any]], mask: Tensor) -> Tensor:
    """Blocks [n, T_g] stacked into [N, T], zero where `mask` is False."""
    return _stack(blocks).masked_fill(~mask, 0)


def _stack(blocks: Sequence[NDArray[Any]]) -> Tensor:
    """Blocks [n, T_g] below each other, padded on the right with zeros to the longest."""
    width = max(block.shape[1] for block in blocks)
    return torch.from_numpy(np.concatenate([np.pad(block, ((0, 0), (0, width - block.shape[1]))) for block in blocks]))


def _groups(rollouts: Sequence[Rollout], columns: Mapping[str, Tensor]) -> list[Experience]:
    groups: list[Experience] = []
    start = 0
    for rollout in rollouts:
        length = max(len(completion.token_ids) for completion in rollout.completions)
        rows = slice(start, start + len(rollout.completions))
        arrays: dict[str, Any] = {
            name: np.ascontiguousarray(column[rows, :length].numpy()) for name, column in columns.items()
        }
        groups.append(Experience(rollout.prompt_id, **arrays))
        start = rows.stop
    return groups


def _statistics(
    rollouts: Sequence[Rollout], mask: Tensor, log_ratio: Tensor, advantages: Tensor, values: Tensor, returns: Tensor
) -> dict[str, float]:
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    residual = (returns - values)[mask].double()
    spread = returns[mask].double().var(unbiased=False)
    return {
        "kl/reference": float(masked_mean(values=log_ratio, mask=mask)),
        "kl/reference_completion": float((log_ratio * mask).sum(1).mean()),
        "advantage/mean": float(masked_mean(values=advantages, mask=mask)),
        "advantage/std": float(advantages[mask].std(unbiased=False)),
        "value/explained_variance": float(1 - residual.var(unbiased=False) / spread) if spread > 0 else 0.0,
        "completion/length": float(mask.sum(1).double().mean()),
        "completion/length_stop_fraction": sum(c.finish_reason == "length" for c in completions) / len(completions),
    }
