"""Advantages from comparing the completions of one prompt: GRPO, Dr.GRPO, RLOO, REINFORCE++ baseline, best and worst.

None needs a critic; every token of a completion takes its completion's advantage.

**A group whose rewards are all the same has an advantage of exactly 0, and so has a group of one**: there is nothing to
compare with, and nothing is learned from it. TRL does so too (1.16). verl takes the reward itself as the advantage of
a group of one, which turns the estimator into REINFORCE without a baseline and in silence: whoever wants that asks
for `reinforce`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.algorithms.aggregation import masked_whiten


def grpo(*, completion_rewards: Float[Tensor, "P n"], eps: float = 1e-6) -> Float[Tensor, "P n"]:
    """Group-relative advantages: A_i = (r_i - mean(r)) / (std(r) + eps) within each group.

    Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, section 4.1.2, outcome supervision). The paper does not say which
    standard deviation. Here it is that of the population (divide by n): a group then has mean square 1 whatever n, and
    a group of one is defined. TRL and verl divide by n - 1, which makes their advantages smaller by the constant factor
    sqrt((n - 1) / n).

    Args:
        completion_rewards: [P, n], n completions of each of P prompts.
        eps: added to the standard deviation, in units of reward.

    Returns:
        [P, n]; 0 in a flat group and in a group of one.
    """
    centred = dr_grpo(completion_rewards=completion_rewards)
    std = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / (std + eps)


def dr_grpo(*, completion_rewards: Float[Tensor, "P n"]) -> Float[Tensor, "P n"]:
    """GRPO without the standard deviation: A_i = r_i - mean(r) within each group (Liu et al. 2025, arXiv 2503.20783).

    Dividing by the standard deviation favours prompts that are nearly always or nearly never answered right. The paper
    also takes the mean over a fixed length: `Aggregation.FIXED_LENGTH`.

    Args:
        completion_rewards: [P, n], n completions of each of P prompts.

    Returns:
        [P, n]; 0 in a flat group and in a group of one.
    """
    centred = completion_rewards - completion_rewards.mean(dim=1, keepdim=True)
    # Rounding of the mean must not be blown up to size 1 in a group that tells us nothing.
    is_flat = completion_rewards.amax(dim=1, keepdim=True) == completion_rewards.amin(dim=1, keepdim=True)
    return centred.masked_fill(is_flat, 0.0)


def rloo(*, completion_rewards: Float[Tensor, "P n"]) -> Float[Tensor, "P n"]:
    """REINFORCE leave-one-out: A_i = r_i - mean of the other rewards of the group.

    Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for free!"); for language models Ahmadian et al. 2024
    (arXiv 2402.14740). A_i = n / (n - 1) * (r_i - mean(r)).

    Args:
        completion_rewards: [P, n], n completions of each of P prompts.

    Returns:
        [P, n]; 0 in a flat group and in a group of one, which has no others.
    """
    size = completion_rewards.shape[1]
    return dr_grpo(completion_rewards=completion_rewards) * (size / max(1, size - 1))


def reinforce_plus_plus_baseline(
    *, completion_rewards: Float[Tensor, "P n"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """REINFORCE++ with the group's mean as baseline, whitened over the step (Hu et al. 2025, arXiv 2501.03262).

    A_i = r_i - mean(r) within each group, given to all tokens of completion i, then shifted and scaled to mean 0 and
    variance 1 over all real tokens of the step, as OpenRLHF and verl do. The paper has the KL in the loss, with k2.

    Args:
        completion_rewards: [P, n], n completions of each of P prompts, of the whole step.
        mask: [B, T], True on real tokens; B = P * n, the completions of a prompt together.

    Returns:
        [B, T], 0 where padded. Flat groups and groups of one are as good as the step's mean.
    """
    advantages = dr_grpo(completion_rewards=completion_rewards).reshape(-1, 1).expand(mask.shape)
    return masked_whiten(values=advantages, mask=mask)


def best_and_worst(
    *, completion_rewards: Float[Tensor, "P n"], is_learned: Bool[Tensor, "P n"]
) -> Float[Tensor, "P n"]:
    """1 for the best completion of each group, -1 for the worst one, else 0: the pair of online DPO.

    Guo et al. 2024 (arXiv 2402.04792) compare the two of a group of two; of larger ones best and worst are the pair
    (Xu et al. 2023, arXiv 2312.16682; Dong et al. 2024, arXiv 2405.07863). Of equal rewards the first one counts.

    Args:
        completion_rewards: [P, n], n completions of each of P prompts.
        is_learned: [P, n], False for those that losses leave out, which are of no pair.

    Returns:
        [P, n]; 0 in a group whose rewards are all the same, and of which less than two are learned.
    """
    best = completion_rewards.masked_fill(~is_learned, -torch.inf).max(1, keepdim=True)
    worst = completion_rewards.masked_fill(~is_learned, torch.inf).min(1, keepdim=True)
    pair = torch.zeros_like(completion_rewards).scatter(1, best.indices, 1.0).scatter(1, worst.indices, -1.0)
    return torch.where(best.values > worst.values, pair, 0.0)
