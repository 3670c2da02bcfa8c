"""From completions to rewards: rules, the reward model, the penalty on length; and which groups teach something."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from actors.fleet.answer import Answer, gather
from actors.loop.crew import Roles
from actors.loop.door import Lacks
from actors.loop.graders import answers
from actors.loop.sampler import Sampled, Sampler
from actors.roles.encoder import PromptRef
from actors.roles.reward import RewardWorker
from actors.roles.scoring import Group, score
from pipeline.algorithms.shaping import combine, overlong_penalty, varied_groups
from pipeline.config import ConfigError, Recipe, RewardName
from pipeline.data.datasets import Datasets
from pipeline.records import PromptInfo, Rollout
from pipeline.rewards import can_compare, needs_answer, score_rules

T = TypeVar("T")
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
    unrewarded: bool [N], completions of which no part says anything: they teach nothing, and have the mean reward of
        the others of their group, which changes nothing for those. None where there is none.
    weights: what each part was multiplied by.
    factors: of parts whose weight differs by task, what it was multiplied by on the rows of each.
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
    unrewarded: Tensor | None = None
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    @property
    def rewards(self) -> Tensor:
        """What is learned from: the unshaped rewards, and the penalty on length where there is one."""
        return self.unshaped + self.parts[OVERLONG] if OVERLONG in self.parts else self.unshaped

    def select(self, groups: Sequence[int], *, reason: str) -> Judged:
        """These groups alone; the others are counted under `reason`."""
        size = len(self.unshaped) // max(1, len(self.rollouts))
        index = torch.tensor(groups, dtype=torch.int64)
        rows = (index[:, None] * size + torch.arange(size)).flatten()
        return replace(
            self,
            prompts=[self.prompts[group] for group in groups],
            rollouts=[self.rollouts[group] for group in groups],
            parts={name: part[rows] for name, part in self.parts.items()},
            unshaped=self.unshaped[rows],
            greedy=None if self.greedy is None else self.greedy[index],
            counts=self.counts + Counter({reason: len(self.prompts) - len(groups)}),
            uncertainty=None if self.uncertainty is None else self.uncertainty[rows],
            unrewarded=None if self.unrewarded is None else self.unrewarded[rows],
        )

    def joined(self, other: Judged) -> Judged:
        """The groups of both, and what both counted and took."""
        return replace(
            self,
            prompts=self.prompts + other.prompts,
            rollouts=self.rollouts + other.rollouts,
            parts={name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()},
            unshaped=torch.cat([self.unshaped, other.unshaped]),
            greedy=_joined(self.greedy, other.greedy),
            counts=self.counts + other.counts,
            seconds={role: spent + other.seconds[role] for role, spent in self.seconds.items()},
            uncertainty=_joined(self.uncertainty, other.uncertainty),
            unrewarded=_joined(self.unrewarded, other.unrewarded),
        )

    def weights_by_group(self) -> dict[str, Tensor]:
        """What each part was multiplied by in each group, [G]."""
        return _by_group(self.weights, self.factors, self.prompts)

    def means(self) -> dict[str, float]:
        """The mean of each part over the completions to which it applies; a part that applies to none is missing."""
        return {name: float(part.nanmean()) for name, part in self.parts.items() if not part.isnan().all()}

    def mean(self) -> dict[str, float]:
        """The mean reward of the completions that have one; nothing where none has."""
        known = self.rewards if self.unrewarded is None else self.rewards[~self.unrewarded]
        return {"reward/mean": float(known.mean())} if len(known) else {}

    def varied(self) -> Judged:
        """The groups whose rewards differ before length enters: alike right or wrong, they do not vary (DAPO)."""
        is_varied = varied_groups(rewards=self.unshaped.view(len(self.rollouts), -1))
        return self.select(is_varied.nonzero()[:, 0].tolist(), reason="groups_without_variance")


def _by_group(
    weights: Mapping[str, float], factors: Mapping[str, Mapping[str, float]], prompts: Sequence[PromptRef]
) -> dict[str, Tensor]:
    """The weight of each part on the rows of each prompt's task, [G]."""
    return {
        name: torch.tensor([weight * factors.get(name, {}).get(prompt.info.task, 1.0) for prompt in prompts])
        for name, weight in weights.items()
    }


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else torch.cat([one, other])


def lacks(recipe: Recipe) -> Lacks:
    """What rows lack for the recipe's rewards: an answer, where one that applies to them compares with it."""

    def lacking(info: PromptInfo) -> str | None:
        weights = recipe.rlhf.own_rewards.items()
        comparing = ", ".join(name for name, each in weights if needs_answer(name) and each.applies(info.task))
        if not comparing or info.answer is not None:
            return None
        return f"no answer, which rlhf.rewards compares with ({comparing}); rewards={{learned: 1.0}} needs none"

    return lacking


def check_rows(recipe: Recipe, datasets: Datasets, split: str) -> None:
    """What rewards ask of the rows must be there; `split` is the one that `datasets` are of.

    Raises:
        ConfigError: a reward names a task of which there is no row, rows of a task have no reward at all, or no row has
            a column that functions and servers are to be told.
    """
    rewards, columns = recipe.rlhf.rewards, recipe.data.columns
    if columns and recipe.rlhf.outside_rewards and (lacking := sorted({*columns} - datasets.further(columns))):
        raise ConfigError(
            f"data.columns={list(columns)}: no row of the split {split} has {lacking[0]!r}; mind the spelling, or "
            "let `jobs.prepare` keep it with the same data.columns"
        )
    if all(each.tasks is None for each in rewards.values()):
        return
    tasks = sorted(datasets.tasks())
    for name, each in rewards.items():
        if unknown := sorted({*(each.tasks or ())} - {*tasks}):
            raise ConfigError(
                f"rlhf.rewards.{name}.tasks: no row of the split {split} has the task {unknown[0]!r}; "
                f"there are {', '.join(tasks)}"
            )
    if without := [task for task in tasks if not any(each.applies(task) for each in rewards.values())]:
        raise ConfigError(
            f"rlhf.rewards: no part applies to rows of the task {without[0]!r}, which would teach nothing; name it in "
            "the tasks of a part, or give a part to all tasks by a plain number"
        )


def judged_batch(
    roles: Roles,
    recipe: Recipe,
    sampled: Sampled,
    sampler: Sampler,
    step: int,
    said: Said = NOTHING_SAID,
    weights: Mapping[str, float] | None = None,
) -> Judged:
    """The batch of a step, from what was sampled for it.

    With dynamic sampling, groups whose unshaped rewards are all the same are replaced by those of further batches,
    while rounds last; what is left out is counted. Where nothing varies at all, the batch stays as it is.
    """
    batch = judge(roles, recipe, sampled, said, weights)
    rounds = recipe.rlhf.algorithm.dynamic_sampling.max_rounds
    if not rounds:
        return batch
    size, kept = len(batch.prompts), batch.varied()
    for index in range(rounds):
        if len(kept.prompts) >= size:
            break
        kept = kept.joined(judge(roles, recipe, sampler.more(step, index), said, weights).varied())
    if not kept.prompts:
        return replace(batch, counts=kept.counts, seconds=kept.seconds)
    return kept.select(range(min(size, len(kept.prompts))), reason="groups_beyond_the_batch")


def judge(
    roles: Roles,
    recipe: Recipe,
    sampled: Sampled,
    said: Said = NOTHING_SAID,
    weights: Mapping[str, float] | None = None,
    split: str | None = None,
) -> Judged:
    """Rewards of a sampled batch; the weights of parts are those given, or the recipe's first ones.

    split: whose rows the prompts are; None is `rlhf.split`.
    """
    split = split or recipe.rlhf.split
    parts, named, uncertainty, counts, seconds = _parts(roles, recipe, sampled.prompts, sampled.rollouts, said, split)
    weights = recipe.rlhf.reward_weights if weights is None else weights
    factors = {name: each.factors for name, each in recipe.rlhf.rewards.items()}
    by_group = _by_group(weights, factors, sampled.prompts)
    is_shaped = recipe.rlhf.algorithm.overlong_buffer > 0
    num = sum(len(rollout.completions) for rollout in sampled.rollouts)
    unshaped, unrewarded = _total(parts, by_group, num)
    shown: dict[str, Tensor] = {**parts, **named}
    if is_shaped:
        shown[OVERLONG] = _overlong(recipe, sampled.rollouts)
    greedy = None
    if sampled.greedy:
        greedy_parts, _, _, failures, spent = _parts(roles, recipe, sampled.prompts, sampled.greedy, said, split)
        greedy, without = _total(greedy_parts, by_group, len(sampled.greedy))
        if is_shaped:
            # Else a completion as long as the greedy one would be worse than it for its length alone.
            greedy = greedy + _overlong(recipe, sampled.greedy)
        # What is compared with a reward that is not there is not known either.
        unrewarded |= without.repeat_interleave(num // len(greedy))
        counts += failures
        seconds = {role: time + spent[role] for role, time in seconds.items()}
    if num_unrewarded := int(unrewarded.sum()):
        counts["completions_without_reward"] = num_unrewarded
        unshaped = _with_means(unshaped, unrewarded, num_groups=len(sampled.rollouts))
    return Judged(
        sampled.prompts,
        sampled.rollouts,
        shown,
        unshaped,
        greedy,
        counts,
        {**sampled.seconds, **seconds},
        uncertainty=uncertainty,
        unrewarded=unrewarded,
        weights=weights,
        factors=factors,
    )


def _total(parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], num: int) -> tuple[Tensor, Tensor]:
    """The sum of the parts [N] by the weights of their groups [G], and bool [N]: the completions of which no part that
    weighs anything says any.

    Without any part, as where a teacher alone says what is good, all have a reward of 0.
    """
    weighing = [part.isnan() for name, part in parts.items() if weights[name].any()]
    unrewarded = torch.stack(weighing).all(0) if weighing else torch.zeros(num, dtype=torch.bool)
    rows = {name: each.repeat_interleave(num // len(each)) for name, each in weights.items()}
    return combine(parts=parts, weights=rows) if parts else torch.zeros(num), unrewarded


def _with_means(rewards: Tensor, unrewarded: Tensor, *, num_groups: int) -> Tensor:
    """Rewards [N] in which those that are not there are the mean of the others of their group; 0 where all are not."""
    groups = rewards.masked_fill(unrewarded, torch.nan).view(num_groups, -1)
    return groups.where(~groups.isnan(), groups.nanmean(1, keepdim=True)).nan_to_num(0.0).flatten()


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
    split: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None, Counter[str], dict[str, float]]:
    """Each part [N], the named parts of those from outside [N], the reward model's uncertainty [N], what could not be
    given by reason, seconds by role.

    Rules work while the reward model does, and those who give rewards from outside.

    Raises:
        ValueError: a score of the reward model is not finite.
        TooManyFailures: a part from outside failed too often.
    """
    sizes = [len(rollout.completions) for rollout in rollouts]
    applies = {
        name: _each(sizes, [each.applies(prompt.info.task) and _can_compare(name, prompt.info) for prompt in prompts])
        for name, each in recipe.rlhf.own_rewards.items()
    }
    groups = groups_of(prompts, rollouts)
    scoring = score(roles.reward, RewardWorker.scores_and_uncertainties, groups) if roles.reward else None
    graders = roles.graders if recipe.rlhf.outside_rewards else None
    gradings = graders.ask(recipe, prompts, rollouts, split) if graders else {}
    rules = score_rules(
        names=[name for name in recipe.rlhf.own_rewards if needs_answer(name)],
        completions=[completion for rollout in rollouts for completion in rollout.completions],
        answers=_each(sizes, [prompt.info.answers for prompt in prompts]),
        applies=applies,
    )
    parts, uncertainty = dict(rules.values), None
    for failure in rules.failures:
        parts[failure.name][failure.row] = math.nan  # it is no reward of 0
    waited: dict[str, Answer[Any]] = {**answers(gradings)}
    if scoring:
        waited["reward_score"] = scoring.answer
    results, spent = gather(waited)
    seconds = {name: spent[name].busy_s if name in spent else 0.0 for name in waited}
    if scoring:
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
    shown: dict[str, Tensor] = {**parts}
    asked: dict[str, list[bool]] = {**applies}
    named, counts = dict[str, Tensor](), rules.num_failures
    for name, found in (graders.found(gradings, results) if graders else {}).items():
        shown[name], asked[name] = found.values, found.applies
        named.update(found.named)
        counts += found.counts
    counts += Counter({f"reward_not_applicable:{name}": each.count(False) for name, each in asked.items()})
    return shown, named, uncertainty, counts, seconds


def _each(sizes: Sequence[int], values: Sequence[T]) -> list[T]:
    """What each completion has of what there is for each prompt."""
    return [value for size, value in zip(sizes, values, strict=True) for _ in range(size)]


def _can_compare(name: RewardName, info: PromptInfo) -> bool:
    return any(can_compare(name, answer) for answer in info.answers or (None,))


def groups_of(prompts: Sequence[PromptRef], rollouts: Sequence[Rollout]) -> list[Group]:
    """Prompts with the token ids of their completions."""
    return [
        (prompt, [completion.token_ids for completion in rollout.completions])
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
