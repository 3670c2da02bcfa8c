"""From a step's rollouts, rewards, reference logprobs and values to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.algorithms.advantages import (
    a2c,
    gae,
    process_rewards,
    reinforce_plus_plus,
    remax,
    reward_to_go,
    token_rewards,
)
from pipeline.algorithms.aggregation import masked_mean, masked_whiten
from pipeline.algorithms.group_advantages import best_and_worst, dr_grpo, grpo, reinforce_plus_plus_baseline, rloo
from pipeline.algorithms.kl import estimate_kl
from pipeline.algorithms.off_policy import mismatch
from pipeline.config import AdvantageEstimator, Algorithm, KlPlace
from pipeline.records import Experience, FinishReason, Rollout

Rows = Sequence[NDArray[np.float32]]


def make_experience(
    rollouts: Sequence[Rollout],
    *,
    rewards: Tensor,
    reference_logprobs: Rows | None,
    values: Rows | None,
    algorithm: Algorithm,
    kl_weight: float,
    proximal_logprobs: Rows | None = None,
    greedy_rewards: Tensor | None = None,
    unrewarded: Tensor | None = None,
    potentials: Rows | None = None,
) -> tuple[list[Experience], dict[str, float]]:
    """Advantages and returns of a step, one `Experience` a group, and the step's statistics.

    Args:
        rewards: float [N], one a completion, groups together.
        reference_logprobs, values: one array [n, T_g] a group, right-padded; None where the role is not needed.
        kl_weight: reward (or loss) a nat of KL a token; used here where the KL is part of the reward.
        proximal_logprobs: the same, of the policy at the start of the update; None where the rollout's own, before
            filters, are those.
        greedy_rewards: float [G], of each prompt's greedy completion; None where the estimator takes none.
        potentials: one array [n, T_g] a group, what has been earned of `rewards` by what was said up to each token, in
            their units; None where it comes at the end.
        unrewarded: bool [N], completions that losses leave out because nobody knows what they are worth; None: none.

    Raises:
        ValueError: the estimator needs what is not there; the message names it.
    """
    _check(rollouts, rewards=rewards, values=values, greedy_rewards=greedy_rewards, estimator=algorithm.advantage)
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    behaviour = _spread([completion.behaviour_logprobs for completion in completions], mask)
    if proximal_logprobs is None:
        proximal = _spread([completion.policy_logprobs for completion in completions], mask)
    else:
        proximal = _pad(proximal_logprobs, mask)
    reference = proximal if reference_logprobs is None else _pad(reference_logprobs, mask)
    value = torch.zeros_like(behaviour) if values is None else _pad(values, mask)

    kl = None
    if algorithm.kl.place is KlPlace.REWARD:
        estimator = algorithm.kl.estimator
        kl = kl_weight * estimate_kl(estimator=estimator, policy_logprobs=proximal, reference_logprobs=reference)
    is_truncated = torch.tensor([completion.finish_reason is FinishReason.LENGTH for completion in completions])
    left_out = is_truncated & algorithm.mask_truncated
    if unrewarded is not None:
        left_out = left_out | unrewarded
    learned = mask & ~left_out[:, None]
    moved = None if potentials is None else process_rewards(potentials=_pad(potentials, mask), mask=mask)
    signal = _Signal(rewards, kl, mask, learned, value, len(rollouts), greedy_rewards, moved)
    advantages, returns = _advantages(signal, algorithm)
    statistics = _statistics(rollouts, mask, proximal - reference, advantages, value, returns)
    if proximal_logprobs is not None:
        apart = mismatch(proximal_logprobs=proximal, behaviour_logprobs=behaviour, mask=mask)
        statistics |= {f"mismatch/{name}": amount for name, amount in apart._asdict().items()}
    if algorithm.whitens:
        advantages = masked_whiten(values=advantages, mask=learned)

    columns: Mapping[str, Tensor] = {
        "mask": mask,
        "behaviour_logprobs": behaviour,
        "proximal_logprobs": proximal,
        "reference_logprobs": reference,
        "values": value,
        "advantages": advantages,
        "returns": returns,
    }
    token_ids = _spread([completion.token_ids for completion in completions], mask)
    groups = _groups(rollouts, {"token_ids": token_ids, **columns}, left_out)
    if algorithm.advantage is AdvantageEstimator.BEST_WORST:
        groups = list(map(_pair, groups))
        statistics["counts/groups_without_pair"] = float(sum(not group.num_learned for group in groups))
    return groups, statistics


@dataclass(frozen=True)
class _Signal:
    """What advantages are made of: rewards [N], their KL penalty and the values [N, T], zero where padded.

    `mask` is that of real tokens, `learned` that of those which the losses count: the estimators that whiten by
    definition do it over these.
    """

    rewards: Tensor
    kl: Tensor | None
    mask: Tensor
    learned: Tensor
    values: Tensor
    num_groups: int
    greedy_rewards: Tensor | None
    moved: Tensor | None
    """Rewards [N, T] of a sum of 0, which bring a completion's reward to the tokens that earned it."""

    @property
    def of_tokens(self) -> Tensor:
        """Rewards [N, T], with the KL."""
        found = token_rewards(completion_rewards=self.rewards, mask=self.mask, kl=self.kl, kl_weight=1.0)
        return found if self.moved is None else found + self.moved

    @property
    def of_groups(self) -> Tensor:
        """Rewards [G, n] of whole completions, with the KL of all their tokens."""
        penalty = 0.0 if self.kl is None else self.kl.sum(1)
        return (self.rewards - penalty).view(self.num_groups, -1)


def _advantages(signal: _Signal, algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    """Advantages and returns [N, T]; without a critic nothing is regressed on returns, which are 0."""
    mask, gamma, values = signal.mask, algorithm.gamma, signal.values
    match algorithm.advantage:
        case AdvantageEstimator.GAE:
            return gae(rewards=signal.of_tokens, values=values, mask=mask, gamma=gamma, lam=algorithm.lam)
        case AdvantageEstimator.A2C:
            return a2c(rewards=signal.of_tokens, values=values, mask=mask, gamma=gamma)
        case AdvantageEstimator.GRPO:
            advantages = _on_tokens(grpo(completion_rewards=signal.of_groups), mask)
        case AdvantageEstimator.DR_GRPO:
            advantages = _on_tokens(dr_grpo(completion_rewards=signal.of_groups), mask)
        case AdvantageEstimator.RLOO:
            advantages = _on_tokens(rloo(completion_rewards=signal.of_groups), mask)
        case AdvantageEstimator.REINFORCE_PLUS_PLUS:
            advantages = reinforce_plus_plus(rewards=signal.of_tokens, mask=signal.learned, gamma=gamma)
        case AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE:
            advantages = reinforce_plus_plus_baseline(completion_rewards=signal.of_groups, mask=signal.learned)
        case AdvantageEstimator.BEST_WORST:
            is_learned = signal.learned.any(1).view(signal.num_groups, -1)
            pairs = best_and_worst(completion_rewards=signal.of_groups, is_learned=is_learned)
            advantages = _on_tokens(pairs, mask)
        case AdvantageEstimator.REMAX:
            assert signal.greedy_rewards is not None  # _check saw to it
            advantages = remax(rewards=signal.of_tokens, greedy_rewards=signal.greedy_rewards, mask=mask)
        case AdvantageEstimator.REINFORCE:
            advantages = reward_to_go(rewards=signal.of_tokens, mask=mask, gamma=gamma)
    return advantages, torch.zeros_like(advantages)


def _on_tokens(of_groups: Tensor, mask: Tensor) -> Tensor:
    """Every real token takes its completion's advantage: [G, n] -> [N, T]."""
    return of_groups.view(-1, 1) * mask


def _check(
    rollouts: Sequence[Rollout],
    *,
    rewards: Tensor,
    values: Rows | None,
    greedy_rewards: Tensor | None,
    estimator: AdvantageEstimator,
) -> None:
    sizes = [len(rollout.completions) for rollout in rollouts]
    if len(rewards) != sum(sizes):
        raise ValueError(f"{len(rewards)} rewards for {sum(sizes)} completions: give one a completion")
    if estimator.needs_critic and values is None:
        raise ValueError(f"advantage={estimator} needs the critic's values, but values=None")
    if estimator.needs_greedy and (greedy_rewards is None or len(greedy_rewards) != len(rollouts)):
        found = "None" if greedy_rewards is None else str(len(greedy_rewards))
        raise ValueError(
            f"advantage={estimator} needs the reward of each prompt's greedy completion: "
            f"greedy_rewards of {len(rollouts)} prompts, but got {found}"
        )
    if (estimator.needs_group or estimator.needs_greedy) and len(set(sizes)) > 1:
        raise ValueError(f"advantage={estimator} needs groups of one size, but got sizes {sorted(set(sizes))}")


@dataclass(frozen=True)
class ExperienceBatch:
    """The experience of several groups, padded to one length: tensors [N, T]. `mask` is that of the loss."""

    mask: Tensor
    behaviour_logprobs: Tensor
    proximal_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def collate_experience(groups: Sequence[Experience], *, device: torch.device) -> ExperienceBatch:
    """Stacks the rows of several groups."""
    return ExperienceBatch(
        mask=_stack([group.loss_mask for group in groups]).to(device),
        behaviour_logprobs=_stack([group.behaviour_logprobs for group in groups]).to(device),
        proximal_logprobs=_stack([group.proximal_logprobs for group in groups]).to(device),
        reference_logprobs=_stack([group.reference_logprobs for group in groups]).to(device),
        values=_stack([group.values for group in groups]).to(device),
        advantages=_stack([group.advantages for group in groups]).to(device),
        returns=_stack([group.returns for group in groups]).to(device),
    )


def _spread(rows: Sequence[NDArray[Any]], mask: Tensor) -> Tensor:
    """Rows [T_i] below each other where `mask` [N, T] is True, zero elsewhere."""
    spread = np.zeros(mask.shape, rows[0].dtype)
    spread[mask.numpy()] = np.concatenate(rows)
    return torch.from_numpy(spread)


def _pad(blocks: Sequence[NDArray[Any]], mask: Tensor) -> Tensor:
    """Blocks [n, T_g] stacked into [N, T], zero where `mask` is False."""
    return _stack(blocks).masked_fill(~mask, 0)


def _stack(blocks: Sequence[NDArray[Any]]) -> Tensor:
    """Blocks [n, T_g] below each other, padded on the right with zeros to the longest."""
    stacked = np.zeros((sum(map(len, blocks)), max(block.shape[1] for block in blocks)), blocks[0].dtype)
    start = 0
    for block in blocks:
        stacked[start : start + len(block), : block.shape[1]] = block
        start += len(block)
    return torch.from_numpy(stacked)


def _groups(rollouts: Sequence[Rollout], columns: Mapping[str, Tensor], left_out: Tensor) -> list[Experience]:
    groups: list[Experience] = []
    wholes, is_left_out, start = {name: column.numpy() for name, column in columns.items()}, left_out.numpy(), 0
    for rollout in rollouts:
        length = max(len(completion.token_ids) for completion in rollout.completions)
        rows = slice(start, start + len(rollout.completions))
        arrays: dict[str, Any] = {name: np.ascontiguousarray(each[rows, :length]) for name, each in wholes.items()}
        groups.append(Experience(rollout.prompt_id, **arrays, left_out=is_left_out[rows]))
        start = rows.stop
    return groups


def _pair(group: Experience) -> Experience:
    """The best completion of a group and its worst one, in this order; left out where there is no such pair."""
    side = group.advantages[:, 0]
    rows, is_flat = [int(side.argmax()), int(side.argmin())], not side.any()
    length = int(group.mask[rows].sum(1).max())
    arrays = {name: value[rows, :length] for name, value in vars(group).items() if getattr(value, "ndim", 0) == 2}
    return replace(group, **arrays, left_out=np.full(2, is_flat))


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
