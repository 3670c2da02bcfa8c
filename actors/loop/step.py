"""One step of the loop: draw, judge, score, learn, sync. What is done stays done: a step can be gone on with.

sampler -> completions -> rewards --------------------------+
                +-------> reference, critic, policy scores -+-> experience -> policy, critic -> weights -> rollout
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from actors.fleet.answer import Answer, gather
from actors.fleet.world import World
from actors.loop.checkpoints import LoopState
from actors.loop.crew import Roles
from actors.loop.judge import NOTHING_SAID, Judged, Said, groups_of, judged_batch
from actors.loop.reward_parts import learned_rewards, next_multipliers
from actors.loop.sampler import Sampled, Sampler
from actors.roles.critic import CriticWorker
from actors.roles.encoder import PromptRef
from actors.roles.policy import Minibatches, PolicyWorker, plan_update
from actors.roles.reference import ReferenceWorker
from actors.roles.reward import RewardWorker
from actors.roles.rollout import RolloutWorker
from actors.roles.scoring import Scoring, score
from pipeline.algorithms.kl import KlController
from pipeline.algorithms.shaping import RunningScale, clip_reward
from pipeline.config import Algorithm, Recipe, RewardName, Rlhf
from pipeline.experience import make_experience
from pipeline.records import Experience, Rollout


@dataclass(frozen=True)
class Learned:
    """What a step was made of, and what came of it."""

    batch: Judged
    scale: RunningScale
    statistics: dict[str, float]
    updated: dict[str, float]
    seconds: dict[str, float]
    """At work, measured in the workers: by role, and by what a role did where it does several things."""
    phases: Mapping[str, float]
    """That the driver spent on each phase, most of it waiting."""


class Step:
    """A step from the loop's state at its beginning. `run` can be repeated after what it lost was brought back."""

    def __init__(self, roles: Roles, recipe: Recipe, sampler: Sampler, state: LoopState, said: Said = NOTHING_SAID):
        """said: what people said of completions of earlier steps."""
        self._said = said
        self._roles = roles
        self._recipe = recipe
        self._sampler = sampler
        self._state = state
        self._sampled: Sampled | None = None
        self._batch: Judged | None = None
        self._scored: tuple[dict[str, list[Any]], dict[str, float]] | None = None
        self._learned: Learned | None = None
        self._phases: dict[str, float] = {}

    def run(self) -> tuple[LoopState, Learned]:
        """The state after the step.

        Raises:
            Lost: something has to be brought back before this is called again; a learner takes the step with it.
        """
        step = self._state.step
        if self._sampled is None:
            drew_s = self._sampler.drawing_s
            with self._timed("generate"):
                self._sampled = self._sampler.take(step)
            self._phases["draw"] = self._sampler.drawing_s - drew_s
            self._phases["generate"] -= self._phases["draw"]
        if self._scored is None:
            with self._timed("score"):
                self._batch, self._scored = self._judge_and_score(self._sampled)
        if self._learned is None:
            assert self._batch is not None
            with self._timed("update"):
                self._learned = self._learn(self._batch, *self._scored)
        with self._timed("sync"):
            sync_weights(self._roles, step + 1)
        learned = self._learned
        kl = next_kl(
            self._state.kl,
            self._recipe.rlhf,
            step,
            kl=learned.statistics["kl/reference"],
            num_completions=len(learned.batch.rewards),
        )
        after = replace(
            self._state,
            step=step + 1,
            kl=kl,
            reward_scale=learned.scale,
            cursor=self._sampler.cursor,
            multipliers=next_multipliers(self._recipe.rlhf, self._state.multipliers, learned.batch, step),
        )
        return after, learned

    @contextmanager
    def _timed(self, phase: str) -> Generator[None, None, None]:
        started = time.monotonic()
        yield
        self._phases[phase] = time.monotonic() - started

    def renew(self) -> None:
        """Has the step's prompts encoded again: some are no longer in the object store."""
        self._sampler.renew()
        if self._sampled is not None:
            self._sampled = replace(self._sampled, prompts=self._sampler.again(self._sampled.prompts))
        if self._batch is not None:
            self._batch = replace(self._batch, prompts=self._sampler.again(self._batch.prompts))

    def _judge_and_score(self, sampled: Sampled) -> tuple[Judged, tuple[dict[str, list[Any]], dict[str, float]]]:
        # All roles score at once, unless rewards say first which groups there are to score.
        is_dynamic = self._recipe.rlhf.algorithm.dynamic_sampling.max_rounds > 0
        scorings = {}
        if not is_dynamic:
            scorings = begin_scoring(self._roles, self._recipe, sampled.prompts, sampled.rollouts)
        weights = self._recipe.rlhf.weights_at(self._state.step, self._state.multipliers)
        batch = judged_batch(self._roles, self._recipe, sampled, self._sampler, self._state.step, self._said, weights)
        batch = replace(batch, reward_version=self._state.reward_version)
        if is_dynamic:
            scorings = begin_scoring(self._roles, self._recipe, batch.prompts, batch.rollouts)
        return batch, scores(scorings)

    def _learn(self, batch: Judged, scored: Mapping[str, list[Any]], score_s: Mapping[str, float]) -> Learned:
        state = self._state
        experience, statistics, scale = experience_of(batch, scored, state, self._recipe.rlhf.algorithm)
        rows = list(zip(batch.prompts, experience, strict=True))
        updated, update_s = update(self._roles, self._recipe, rows, state.step, state.kl.weight)
        return Learned(batch, scale, statistics, updated, {**batch.seconds, **score_s, **update_s}, self._phases)


def experience_of(
    batch: Judged, scored: Mapping[str, list[Any]], state: LoopState, algorithm: Algorithm
) -> tuple[list[Experience], dict[str, float], RunningScale]:
    """What the update learns from, one `Experience` a group; the step's statistics; the scale of rewards with its own.

    scored: by role, one array [n, T] a group.
    """
    rewards = learned_rewards(batch, algorithm)
    scale = state.reward_scale.updated(rewards=rewards)
    experience, statistics = make_experience(
        batch.rollouts,
        rewards=shape(rewards, scale, algorithm),
        reference_logprobs=scored.get("reference"),
        values=scored.get("critic"),
        algorithm=algorithm,
        kl_weight=state.kl.weight,
        proximal_logprobs=scored.get("proximal"),
        greedy_rewards=None if batch.greedy is None else shape(batch.greedy, scale, algorithm),
        unrewarded=batch.unrewarded,
        potentials=potentials(batch, scored.get("process"), scale, algorithm),
    )
    return experience, statistics, scale


def shape(rewards: Tensor, scale: RunningScale, algorithm: Algorithm) -> Tensor:
    """Rewards as advantages take them: scaled and clipped where the recipe says so."""
    shaped = scale.scaled(rewards=rewards) if algorithm.scale_rewards else rewards
    return shaped if algorithm.clip_reward is None else clip_reward(rewards=shaped, bound=algorithm.clip_reward)


def potentials(
    batch: Judged, scores: Sequence[Any] | None, scale: RunningScale, algorithm: Algorithm
) -> list[Any] | None:
    """What the learned part of the reward has come to at each token, a group [n, T], in units of the shaped rewards.

    Nothing where it does not apply.
    """
    if scores is None:
        return None
    weights = batch.weights_by_group()[RewardName.LEARNED] / (scale.std if algorithm.scale_rewards else 1.0)
    applies = (~batch.parts[RewardName.LEARNED].isnan()).view(len(scores), -1, 1).numpy()
    return [weight * of * each for weight, of, each in zip(weights.tolist(), applies, scores, strict=True)]


def next_kl(controller: KlController, settings: Rlhf, step: int, *, kl: float, num_completions: int) -> KlController:
    """The controller of the KL weight for the next step; it holds while the policy, which waits, cannot follow."""
    return controller.updated(kl=kl, num_completions=num_completions) if settings.policy_learns(step) else controller


def begin_scoring(
    roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], rollouts: Sequence[Rollout]
) -> dict[str, Scoring]:
    """Asks for reference logprobs, values and, where behaviour logprobs may differ from the policy's, proximal ones."""
    groups, temperature = groups_of(prompts, rollouts), recipe.rlhf.sampling.temperature
    scorings: dict[str, Scoring] = {}
    if roles.reference:
        scorings["reference"] = score(roles.reference, ReferenceWorker.logprobs, groups, temperature=temperature)
    if roles.critic:
        scorings["critic"] = score(roles.critic, CriticWorker.values, groups)
    if recipe.rlhf.algorithm.process_rewards and roles.reward:
        scorings["process"] = score(roles.reward, RewardWorker.scores_so_far, groups)
    if recipe.scores_proximal:
        scorings["proximal"] = score(roles.policy, PolicyWorker.logprobs, groups, temperature=temperature)
    return scorings


def scores(scorings: Mapping[str, Scoring]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """What the roles found, one array a group, and the seconds that each was at work."""
    results, spent = gather({role: scoring.answer for role, scoring in scorings.items()})
    arrays = {role: scoring.in_order(results[role]) for role, scoring in scorings.items()}
    return arrays, {f"{role}_score": each.busy_s for role, each in spent.items()}


def update(
    roles: Roles, recipe: Recipe, rows: Sequence[tuple[PromptRef, Experience]], step: int, kl_weight: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Policy and critic learn at the same time; returns their metrics and seconds."""

    @cache
    def plan(num_ranks: int, budget: int) -> list[Minibatches]:
        return plan_update(
            rows, num_ranks=num_ranks, budget=budget, algorithm=recipe.rlhf.algorithm, seed=[recipe.run.seed, step]
        )

    def begin(world: World[Any], method: Any) -> Answer[dict[str, float]]:
        settings: Any = world.settings
        shares = plan(len(world), settings.micro_batch_tokens)
        return world.on_each(method, shares, step=step, kl_weight=kl_weight)

    answers: dict[str, Answer[dict[str, float]]] = {}
    if roles.critic:
        answers["critic"] = begin(roles.critic, CriticWorker.update)
    if recipe.rlhf.policy_learns(step):
        answers["policy"] = begin(roles.policy, PolicyWorker.update)
    results, spent = gather(answers)
    metrics = {metric_name(role, name): value for role, parts in results.items() for name, value in parts[0].items()}
    return metrics, {f"{role}_update": each.busy_s for role, each in spent.items()}


def metric_name(role: str, name: str) -> str:
    """What a learner's metric is called among those of the step."""
    if name.startswith("mismatch/"):  # How far rollout and trainer are apart is not the policy's alone.
        return name
    return f"{name}:{role}" if name.startswith("counts/") else f"{role}/{name}"


def sync_weights(roles: Roles, version: int) -> None:
    """Offers the policy's weights to the rollout workers, which take them before what they are asked from now on."""
    weights, answer = roles.policy.offer(PolicyWorker.weights, version)
    answer.result()
    roles.rollout.publish(RolloutWorker.update_weights, weights)
