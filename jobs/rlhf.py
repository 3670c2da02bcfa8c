"""The RLHF loop: generate -> score -> update.

    prompts -> encoder --features--> rollout -> completions --+--> reward ----+
       (once)                           ^                     +--> reference -+--> experience -> policy, critic
                                        |                     +--> critic ----+                    |
                                        +---------------- weights, with their version <-----------+

The driver holds ids, logprobs and rewards, never a medium: those travel as references in the object store.
Left out on purpose: overlap of generation and update. Every step is on-policy, so behaviour logprobs are the
policy's own and no second policy pass is needed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors import checkpoints
from actors.critic import CriticWorker
from actors.door import Door
from actors.encoder import PromptRef
from actors.group import split
from actors.metrics import ray_sinks
from actors.policy import Minibatch, PolicyWorker, plan_update
from actors.reference import ReferenceWorker
from actors.reward import RewardWorker
from actors.roles import Crew, Roles, collect, crew_of, loop_paths
from actors.rollout import RolloutWorker
from jobs.command import main
from pipeline.algorithms.shaping import clip_reward, combine
from pipeline.config import Recipe, RewardName
from pipeline.data.table import PromptOrder
from pipeline.experience import make_experience
from pipeline.records import Experience, FinishReason, PromptInfo, Rollout
from pipeline.rewards import RuleScores, score_rules
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, resume: bool = False, crew: Crew | None = None) -> Path:
    """Trains the policy and returns the directory of its Hugging Face checkpoint."""
    settings, algorithm = recipe.rlhf, recipe.rlhf.algorithm
    target = recipe.checkpoint("rlhf")
    with crew_of(recipe, crew) as workers:
        roles = workers.roles(loop_paths(recipe))
        print("\n".join(ray.get(roles.policy.on_all(PolicyWorker.parameter_table)[:1])), flush=True)
        state = checkpoints.LoopState.start(algorithm.kl)
        if resume:
            state = checkpoints.resume(roles, recipe)
            sync_weights(roles, state.step)
        door = Door(roles, recipe, "train", stage="rlhf")
        order = PromptOrder(list(door.infos), recipe.run.seed)
        tracker = Tracker(
            recipe.run,
            "rlhf",
            num_steps=settings.num_steps,
            resume_from_step=state.step,
            extra_sinks=ray_sinks(recipe.run, "rlhf"),
        )
        with tracker:
            for step in range(state.step, settings.num_steps):
                started = time.monotonic()
                prompts = door.admit(order.batch(step, settings.prompts_per_step))
                if step + 1 < settings.num_steps:
                    door.announce(order.batch(step + 1, settings.prompts_per_step))
                rollouts, rollout_s = generate(roles, recipe, prompts, step)
                scored, score_s = score(roles, recipe, prompts, rollouts)
                rules = score_rules(
                    names=[name for name in settings.rewards if name is not RewardName.LEARNED],
                    completions=[completion for rollout in rollouts for completion in rollout.completions],
                    answers=[door.infos[rollout.prompt_id].answer for rollout in rollouts for _ in rollout.completions],
                )
                parts = reward_parts(rules, scored.get("reward"))
                rewards = combine(parts=parts, weights=settings.rewards)
                scale = state.reward_scale.updated(rewards=rewards)
                shaped = scale.scaled(rewards=rewards) if algorithm.scale_rewards else rewards
                if algorithm.clip_reward is not None:
                    shaped = clip_reward(rewards=shaped, bound=algorithm.clip_reward)
                experience, statistics = make_experience(
                    rollouts,
                    rewards=shaped,
                    reference_logprobs=scored.get("reference"),
                    values=scored.get("critic"),
                    algorithm=algorithm,
                    kl_weight=state.kl.weight,
                )
                updated, update_s = update(
                    roles, recipe, list(zip(prompts, experience, strict=True)), step, state.kl.weight
                )
                sync_weights(roles, step + 1)
                kl = state.kl.updated(kl=statistics["kl/reference"], num_completions=len(rewards))
                state = checkpoints.LoopState(step + 1, kl, scale, cursor=(step + 1) * settings.prompts_per_step)
                metrics = {
                    "reward/mean": float(rewards.mean()),
                    **{f"reward/{name}": float(part.mean()) for name, part in parts.items()},
                    **statistics,
                    "kl/weight": state.kl.weight,
                    **updated,
                    **speed(rollouts, {**rollout_s, **score_s, **update_s, "step": time.monotonic() - started}),
                    "queue/prompts_per_rollout_worker": len(prompts) / len(roles.rollout),
                    **{f"counts/{reason}": float(n) for reason, n in counts(door, rules, rollouts).items()},
                }
                tracker.log(step, metrics)
                if step % settings.samples_every == 0:
                    tracker.samples(step, sample_rows(rollouts, parts, door.infos))
                if state.step % settings.checkpoints.save_every == 0 or state.step == settings.num_steps:
                    checkpoints.save(roles, state, recipe, metrics)
        ray.get(roles.policy.on_all(PolicyWorker.export, target.absolute()))
    return target


def generate(
    roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], step: int
) -> tuple[list[Rollout], dict[str, float]]:
    """A group for each prompt, in order, and the seconds it took."""
    calls = roles.rollout.on_each(
        RolloutWorker.generate,
        split(prompts, len(roles.rollout)),
        recipe.rlhf.sampling,
        group_size=recipe.rlhf.group_size,
        step=step,
    )
    results, seconds = collect({"rollout": calls})
    rollouts = [rollout for part in results["rollout"] for rollout in part]
    check_fresh(rollouts, version=step)
    return rollouts, seconds


def check_fresh(rollouts: Sequence[Rollout], *, version: int) -> None:
    """Makes sure that the policy's newest weights sampled: nobody waits for them to arrive, so a failure shows here.

    Raises:
        RuntimeError: some completions come from other weights.
    """
    versions = {completion.weights_version for rollout in rollouts for completion in rollout.completions}
    if versions - {version}:
        raise RuntimeError(f"completions of weights versions {sorted(versions)}, not {version}: weights did not arrive")


def score(
    roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], rollouts: Sequence[Rollout]
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Reward scores, reference logprobs and values, one array a group, from all roles at once."""
    groups = [
        (prompt, [completion.token_ids for completion in rollout.completions])
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    calls: dict[str, list[ray.ObjectRef[Any]]] = {}
    if roles.reward:
        calls["reward"] = roles.reward.scatter(RewardWorker.scores, groups)
    if roles.reference:
        temperature = recipe.rlhf.sampling.temperature
        calls["reference"] = roles.reference.scatter(ReferenceWorker.logprobs, groups, temperature=temperature)
    if roles.critic:
        calls["critic"] = roles.critic.scatter(CriticWorker.values, groups)
    results, seconds = collect(calls)
    gathered = {role: [row for part in parts for row in part][: len(groups)] for role, parts in results.items()}
    return gathered, {f"{role}_score": spent for role, spent in seconds.items()}


def reward_parts(rules: RuleScores, learned: Sequence[Any] | None) -> dict[RewardName, Tensor]:
    """Each reward part, float32 [N]."""
    parts = dict(rules.values)
    if learned is not None:
        parts[RewardName.LEARNED] = torch.from_numpy(np.concatenate(learned))
    return parts


def update(
    roles: Roles, recipe: Recipe, rows: Sequence[tuple[PromptRef, Experience]], step: int, kl_weight: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Policy and critic learn at the same time; returns their metrics and seconds."""

    def plan(num_ranks: int) -> list[list[Minibatch]]:
        return plan_update(rows, num_ranks=num_ranks, algorithm=recipe.rlhf.algorithm, seed=[recipe.run.seed, step])

    calls: dict[str, list[ray.ObjectRef[Any]]] = {}
    if roles.critic:
        shares = plan(len(roles.critic))
        calls["critic"] = roles.critic.on_each(CriticWorker.update, shares, step=step, kl_weight=kl_weight)
    if not roles.critic or step >= recipe.rlhf.critic_warmup_steps:
        shares = plan(len(roles.policy))
        calls["policy"] = roles.policy.on_each(PolicyWorker.update, shares, step=step, kl_weight=kl_weight)
    results, seconds = collect(calls)
    metrics = {f"{role}/{name}": value for role, parts in results.items() for name, value in parts[0].items()}
    return metrics, {f"{role}_update": spent for role, spent in seconds.items()}


def sync_weights(roles: Roles, version: int) -> None:
    """Sends the policy's weights on their way to the rollout workers, which take them before they sample again."""
    weights = roles.policy.on_all(PolicyWorker.weights, version)
    # The reference itself is passed: Ray hands its value to the workers, and none of it to the driver.
    roles.rollout.on_all(RolloutWorker.update_weights, weights[0])  # pyright: ignore[reportArgumentType]


def speed(rollouts: Sequence[Rollout], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each role, and completion tokens a second."""
    num_tokens = sum(len(completion.token_ids) for rollout in rollouts for completion in rollout.completions)
    return {
        **{f"time/{role}_s": spent for role, spent in seconds.items()},
        **{f"tokens_per_s/{role}": num_tokens / max(spent, 1e-9) for role, spent in seconds.items()},
    }


def counts(door: Door, rules: RuleScores, rollouts: Sequence[Rollout]) -> dict[str, int]:
    """What failed or was cut short in this step, and the rows refused so far in this process, by reason."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    return {
        "truncated_completions": sum(completion.finish_reason is FinishReason.LENGTH for completion in completions),
        **{f"quarantined:{reason}": n for reason, n in door.quarantine.counts().items()},
        **rules.num_failures,
    }


def sample_rows(
    rollouts: Sequence[Rollout], parts: Mapping[RewardName, Tensor], infos: Mapping[str, PromptInfo], limit: int = 8
) -> list[dict[str, Any]]:
    """The first completion of some prompts, with its rewards and lineage."""
    size = len(rollouts[0].completions)
    return [
        {
            "prompt_id": rollout.prompt_id,
            "answer": infos[rollout.prompt_id].answer,
            "completion": rollout.completions[0].text,
            "finish_reason": rollout.completions[0].finish_reason,
            "weights_version": rollout.completions[0].weights_version,
            "rewards": {name: float(part[index * size]) for name, part in parts.items()},
        }
        for index, rollout in enumerate(rollouts[:limit])
    ]


if __name__ == "__main__":
    main(run, __doc__, resumable=True)
