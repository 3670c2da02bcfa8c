"""From completions to rewards: rules, the reward model, the penalty on length; and which groups teach something."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from actors.fleet.answer import gather
from actors.loop.crew import Roles
from actors.loop.door import Lacks
from actors.loop.sampler import Sampled, Sampler
from actors.roles.encoder import PromptRef
from actors.roles.reward import RewardWorker
from actors.roles.scoring import Group, score
from pipeline.algorithms.shaping import combine, overlong_penalty, varied_groups
from pipeline.config import ConfigError, Recipe, RewardName
from pipeline.data.datasets import Datasets
from pipeline.records import PromptInfo, Rollout
from pipeline.rewards import can_compare, needs_answer, score_rules

Said = Mapping[tuple[str, tuple[int, ...]], float]
"""What people said of completions, from -1 to 1, by prompt and tokens."""
NOTHING_SAID: Said = {}
OVERLONG = "overlong"
"""Under which name the penalty on length is shown beside the parts of the reward."""


@dataclass(frozen=True)
class Judged:
    """Groups with their rewards.

    parts: each part of the reward, float32 [N], groups together, NaN where it does not apply, and the penalty on length
        as `overlong`.
    unshaped: float32 [N], the weighted sum of the parts that apply.
    greedy: float32 [G], of each prompt's greedy completion, shaped like `rewards`; or None.
    counts: by reason, rewards that could not be given and groups that were left out.
    seconds: by role.
    reward_version: which reward model scored; 0 is the run's own.
    uncertainty: float32 [N], of its scores, in units of these; None where there is no reward model.
    """

    prompts: list[PromptRef]
    rollouts: list[Rollout]
    parts: dict[str, Tensor]
    unshaped: Tensor
    greedy: Tensor | None
    counts: Counter[str]
    seconds: dict[str, float]
    reward_version: int = 0
    uncertainty: Tensor | None = None

    @property
    def rewards(self) -> Tensor:
        """What is learned from: the unshaped rewards, and the penalty on length where there is one."""
        return self.unshaped + self.parts[OVERLONG] if OVERLONG in self.parts else self.unshaped

    def select(self, groups: Sequence[int], *, reason: str) -> Judged:
        """These groups alone; the others are counted under `reason`."""
        size = len(self.unshaped) // max(1, len(self.rollouts))
        index = torch.tensor(groups, dtype=torch.int64)
        rows = (index[:, None] * size + torch.arange(size)).flatten()
        return Judged(
            [self.prompts[group] for group in groups],
            [self.rollouts[group] for group in groups],
            {name: part[rows] for name, part in self.parts.items()},
            self.unshaped[rows],
            None if self.greedy is None else self.greedy[index],
            self.counts + Counter({reason: len(self.prompts) - len(groups)}),
            self.seconds,
            self.reward_version,
            None if self.uncertainty is None else self.uncertainty[rows],
        )

    def joined(self, other: Judged) -> Judged:
        """The groups of both, and what both counted and took."""
        return Judged(
            self.prompts + other.prompts,
            self.rollouts + other.rollouts,
            {name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()},
            torch.cat([self.unshaped, other.unshaped]),
            _joined(self.greedy, other.greedy),
            self.counts + other.counts,
            {role: spent + other.seconds[role] for role, spent in self.seconds.items()},
            self.reward_version,
            _joined(self.uncertainty, other.uncertainty),
        )

    def means(self) -> dict[str, float]:
        """The mean of each part over the completions to which it applies; a part that applies to none is missing."""
        return {name: float(part.nanmean()) for name, part in self.parts.items() if not part.isnan().all()}

    def varied(self) -> Judged:
        """The groups whose rewards differ before length enters: alike right or wrong, they do not vary (DAPO)."""
        is_varied = varied_groups(rewards=self.unshaped.view(len(self.rollouts), -1))
        return self.select(is_varied.nonzero()[:, 0].tolist(), reason="groups_without_variance")


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else torch.cat([one, other])


def lacks(recipe: Recipe) -> Lacks:
    """What rows lack for the recipe's rewards: an answer, where one that applies to them compares with it."""

    def lacking(info: PromptInfo) -> str | None:
        weights = recipe.rlhf.rewards.items()
        comparing = ", ".join(name for name, each in weights if needs_answer(name) and each.applies(info.task))
        if not comparing or info.answer is not None:
            return None
        return f"no answer, which rlhf.rewards compares with ({comparing}); rewards={{learned: 1.0}} needs none"

    return lacking


def check_tasks(recipe: Recipe, datasets: Datasets) -> None:
    """Rewards of some tasks only must fit the tasks that there are.

    Raises:
        ConfigError: a reward names a task of which there is no row, or rows of a task have no reward at all.
    """
    rewards = recipe.rlhf.rewards
    if all(each.tasks is None for each in rewards.values()):
        return
    tasks = sorted(datasets.tasks())
    for name, each in rewards.items():
        if unknown := sorted({*(each.tasks or ())} - {*tasks}):
            raise ConfigError(
                f"rlhf.rewards.{name}.tasks: no row of the train split has the task {unknown[0]!r}; there are "
                f"{', '.join(tasks)}"
            )
    if without := [task for task in tasks if not any(each.applies(task) for each in rewards.values())]:
        raise ConfigError(
            f"rlhf.rewards: no part applies to rows of the task {without[0]!r}, which would teach nothing; name it in "
            "the tasks of a part, or give a part to all tasks by a plain number"
        )


def judged_batch(
    roles: Roles, recipe: Recipe, sampled: Sampled, sampler: Sampler, step: int, said: Said = NOTHING_SAID
) -> Judged:
    """The batch of a step, from what was sampled for it.

    With dynamic sampling, groups whose unshaped rewards are all the same are replaced by those of further batches,
    while rounds last; what is left out is counted. Where nothing varies at all, the batch stays as it is.
    """
    batch = judge(roles, recipe, sampled, said)
    rounds = recipe.rlhf.algorithm.dynamic_sampling.max_rounds
    if not rounds:
        return batch
    size, kept = len(batch.prompts), batch.varied()
    for index in range(rounds):
        if len(kept.prompts) >= size:
            break
        kept = kept.joined(judge(roles, recipe, sampler.more(step, index), said).varied())
    if not kept.prompts:
        return replace(batch, counts=kept.counts, seconds=kept.seconds)
    return kept.select(range(min(size, len(kept.prompts))), reason="groups_beyond_the_batch")


def judge(roles: Roles, recipe: Recipe, sampled: Sampled, said: Said = NOTHING_SAID) -> Judged:
    """Rewards of a sampled batch."""
    parts, uncertainty, counts, seconds = _parts(roles, recipe, sampled.prompts, sampled.rollouts, said)
    weights, is_shaped = recipe.rlhf.reward_weights, recipe.rlhf.algorithm.overlong_buffer > 0
    shown: dict[str, Tensor] = {**parts}
    if is_shaped:
        shown[OVERLONG] = _overlong(recipe, sampled.rollouts)
    greedy = None
    if sampled.greedy:
        greedy_parts, _, failures, spent = _parts(roles, recipe, sampled.prompts, sampled.greedy, said)
        greedy = combine(parts=greedy_parts, weights=weights)
        if is_shaped:
            # Else a completion as long as the greedy one would be worse than it for its length alone.
            greedy = greedy + _overlong(recipe, sampled.greedy)
        counts += failures
        seconds = {role: time + spent[role] for role, time in seconds.items()}
    unshaped, seconds = combine(parts=parts, weights=weights), {**sampled.seconds, **seconds}
    return Judged(sampled.prompts, sampled.rollouts, shown, unshaped, greedy, counts, seconds, uncertainty=uncertainty)


def _overlong(recipe: Recipe, rollouts: Sequence[Rollout]) -> Tensor:
    """The penalty on length of each completion, [N]."""
    return overlong_penalty(
        lengths=torch.tensor([len(each.token_ids) for rollout in rollouts for each in rollout.completions]),
        max_length=recipe.rlhf.sampling.max_new_tokens,
        buffer=recipe.rlhf.algorithm.overlong_buffer,
        penalty=recipe.rlhf.algorithm.overlong_penalty,
    )


def _parts(
    roles: Roles,
    recipe: Recipe,
    prompts: Sequence[PromptRef],
    rollouts: Sequence[Rollout],
    said: Said,
) -> tuple[dict[RewardName, Tensor], Tensor | None, Counter[str], dict[str, float]]:
    """Each part [N], the reward model's uncertainty [N], what could not be given by reason, seconds by role.

    Rules work while the reward model does.

    Raises:
        ValueError: a score of the reward model is not finite.
    """
    infos = [prompt.info for prompt, rollout in zip(prompts, rollouts, strict=True) for _ in rollout.completions]
    applies = {
        name: [each.applies(info.task) and _can_compare(name, info) for info in infos]
        for name, each in recipe.rlhf.rewards.items()
    }
    asked = groups_of(prompts, rollouts)
    scoring = score(roles.reward, RewardWorker.scores_and_uncertainties, asked) if roles.reward else None
    rules = score_rules(
        names=[name for name in recipe.rlhf.rewards if needs_answer(name)],
        completions=[completion for rollout in rollouts for completion in rollout.completions],
        answers=[info.answers for info in infos],
        applies=applies,
    )
    parts, uncertainty, seconds = dict(rules.values), None, {}
    if scoring:
        results, spent = gather({"reward_score": scoring.answer})
        seconds = {name: each.busy_s for name, each in spent.items()}
        learned, uncertainty = torch.from_numpy(np.concatenate(scoring.in_order(results["reward_score"]))).unbind(1)
        if num_bad := int((~learned.isfinite()).sum()):
            raise ValueError(f"{num_bad} of {len(learned)} scores of the reward model are not finite; train it anew")
        parts[RewardName.LEARNED] = learned
    if RewardName.HUMAN in recipe.rlhf.rewards:
        human = [
            said.get((rollout.prompt_id, tuple(completion.token_ids.tolist())))
            for rollout in rollouts
            for completion in rollout.completions
        ]
        parts[RewardName.HUMAN] = torch.tensor([math.nan if each is None else each for each in human])
        # It applies to completions of which somebody said something.
        of_task = applies[RewardName.HUMAN]
        applies[RewardName.HUMAN] = [of and each is not None for of, each in zip(of_task, human, strict=True)]
    for name, part in parts.items():
        part[~torch.tensor(applies[name])] = math.nan
    left_out = Counter({f"reward_not_applicable:{name}": each.count(False) for name, each in applies.items()})
    return parts, uncertainty, rules.num_failures + left_out, seconds


def _can_compare(name: RewardName, info: PromptInfo) -> bool:
    return any(can_compare(name, answer) for answer in info.answers or (None,))


def groups_of(prompts: Sequence[PromptRef], rollouts: Sequence[Rollout]) -> list[Group]:
    """Prompts with the token ids of their completions."""
    return [
        (prompt, [completion.token_ids for completion in rollout.completions])
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
