"""The RLHF loop: generate -> score -> update.

    prompts -> encoder --features--> rollout -> completions --+--> reward ----+
       (once)                           ^                     +--> reference -+--> experience -> policy, critic
                                        |                     +--> critic ----+                    |
                                        +---------------- weights, with their version <-----------+

The driver holds ids, logprobs and rewards, never a medium: those travel as references in the object store.
With `rlhf.staleness` above 0 the next batches are sampled while this one is scored and learned from.
Where `rlhf.evaluate_every` asks for it, the rollout workers complete validation prompts between two steps.
Left out on purpose: a second policy pass where behaviour logprobs are the policy's own (`Recipe.scores_proximal`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from torch import Tensor

from actors.fleet.group import WorkerGroup
from actors.loop import checkpoints, parity, validation
from actors.loop.crew import Crew, Roles, collect, crew_of, loop_needs, loop_paths
from actors.loop.door import Batches, Door
from actors.loop.judge import Judged, check_tasks, groups_of, judged_batch, lacks
from actors.loop.metrics import ray_sinks
from actors.loop.sampler import Sampler
from actors.roles.critic import CriticWorker
from actors.roles.encoder import EncoderWorker, PromptRef
from actors.roles.policy import Minibatch, PolicyWorker, plan_update
from actors.roles.reference import ReferenceWorker
from actors.roles.rollout import RolloutWorker
from actors.roles.scoring import Scoring, ShardedWorker, score
from jobs.command import main
from pipeline.algorithms.kl import KlController
from pipeline.algorithms.shaping import RunningScale, clip_reward, is_clipped
from pipeline.config import Algorithm, Recipe, Rlhf
from pipeline.data.datasets import Datasets
from pipeline.experience import make_experience
from pipeline.records import Experience, FinishReason, Rollout
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, resume: bool = False, crew: Crew | None = None) -> Path:
    """Trains the policy and returns the directory of its Hugging Face checkpoint."""
    settings, algorithm = recipe.rlhf, recipe.rlhf.algorithm
    target = recipe.checkpoint("rlhf")
    if validation.is_done(recipe, resume=resume):
        return target
    check_tasks(recipe, Datasets(recipe.datasets, settings.split).check("rlhf.split"))
    if settings.evaluate_every:
        Datasets(recipe.datasets, settings.validation.split).check("rlhf.validation.split")
    with crew_of(recipe, crew) as workers:
        roles = workers.roles(loop_paths(recipe))
        for learner in filter(None, (roles.policy, roles.critic)):
            print(f"{learner.role}:", ray.get(learner.on_all(ShardedWorker.parameter_table)[0]), sep="\n", flush=True)
        state = checkpoints.LoopState.start(algorithm.kl)
        if resume:
            state = checkpoints.resume(roles, recipe)
        door = Door(roles, recipe, settings.split, stage="rlhf", needs=loop_needs(recipe), lacks=lacks(recipe))
        if settings.parity.num_rows and not resume:
            parity.check(roles, recipe, door, stage="after loading", stock=True)
        sync_weights(roles, state.step)
        if settings.parity.num_rows:
            parity.check(roles, recipe, door, stage="after the first weight sync", stock=not resume)
        validator = validation.Validator(roles, recipe)
        batches = Batches(door, recipe, size=settings.prompts_per_step, cursor=state.cursor)
        sampler = Sampler(roles, recipe, batches)
        tracker = Tracker(
            recipe.run,
            "rlhf",
            num_steps=settings.num_steps,
            resume_from_step=state.step,
            extra_sinks=ray_sinks(recipe.run, "rlhf"),
        )
        with tracker, closing(batches):
            state = validator.evaluated(state)
            while (end := validator.end(state)) is None:
                started, step, evaluated = time.monotonic(), state.step, state.progress.at(state.step)
                sampled = sampler.take(step)
                # All roles score at once, unless rewards say first which groups there are to score.
                is_dynamic = algorithm.dynamic_sampling.max_rounds > 0
                scorings = {} if is_dynamic else begin_scoring(roles, recipe, sampled.prompts, sampled.rollouts)
                batch = judged_batch(roles, recipe, sampled, sampler, step)
                if is_dynamic:
                    scorings = begin_scoring(roles, recipe, batch.prompts, batch.rollouts)
                scored, score_s = scores(scorings)
                rewards = batch.rewards
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
                )
                rows = list(zip(batch.prompts, experience, strict=True))
                updated, update_s = update(roles, recipe, rows, step, state.kl.weight)
                sync_weights(roles, step + 1)
                kl = next_kl(state.kl, settings, step, kl=statistics["kl/reference"], num_completions=len(rewards))
                state = replace(state, step=step + 1, kl=kl, reward_scale=scale, cursor=sampler.cursor)
                seconds = {**batch.seconds, **score_s, **update_s, "step": time.monotonic() - started}
                metrics = {
                    **batch_metrics(roles, door, batch, step),
                    **learning_counts(batch, scale, algorithm),
                    **batches.metrics(),
                    **statistics,
                    "kl/weight": state.kl.weight,
                    **updated,
                    **speed(batch.rollouts, seconds),
                }
                tracker.log(step, {**metrics, **evaluated})
                if step % settings.samples_every == 0:
                    tracker.samples(step, sample_rows(batch))
                state = validator.evaluated(state)
                if state.step % settings.checkpoints.save_every == 0 or validator.end(state):
                    checkpoints.save(roles, state, recipe, {**metrics, **state.progress.at(state.step)})
            if evaluated := state.progress.at(state.step):
                tracker.log(state.step, evaluated)
        checkpoints.export(roles, recipe, state.step, target)
        batches.record_rows("rlhf")
        validation.record_end(recipe, end, state)
    return target


def shape(rewards: Tensor, scale: RunningScale, algorithm: Algorithm) -> Tensor:
    """Rewards as advantages take them: scaled and clipped where the recipe says so."""
    shaped = scale.scaled(rewards=rewards) if algorithm.scale_rewards else rewards
    return shaped if algorithm.clip_reward is None else clip_reward(rewards=shaped, bound=algorithm.clip_reward)


def learning_counts(batch: Judged, scale: RunningScale, algorithm: Algorithm) -> dict[str, float]:
    """How many completions of the step have a clipped reward, and how many are left out of the losses."""
    counts: dict[str, float] = {}
    if algorithm.clip_reward is not None:
        unclipped = shape(batch.rewards, scale, algorithm.model_copy(update={"clip_reward": None}))
        counts["counts/rewards_clipped"] = float(is_clipped(rewards=unclipped, bound=algorithm.clip_reward).sum())
    if algorithm.mask_truncated:
        counts["counts/completions_left_out"] = float(num_truncated(batch.rollouts))
    return counts


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
    if recipe.scores_proximal:
        scorings["proximal"] = score(roles.policy, PolicyWorker.logprobs, groups, temperature=temperature)
    return scorings


def scores(scorings: Mapping[str, Scoring]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """What the roles found, one array a group, and the seconds it took."""
    results, seconds = collect({role: scoring.calls for role, scoring in scorings.items()})
    arrays = {role: scoring.in_order(results[role]) for role, scoring in scorings.items()}
    return arrays, {f"{role}_score": spent for role, spent in seconds.items()}


def update(
    roles: Roles, recipe: Recipe, rows: Sequence[tuple[PromptRef, Experience]], step: int, kl_weight: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Policy and critic learn at the same time; returns their metrics and seconds."""

    def plan(workers: WorkerGroup[Any]) -> list[list[Minibatch]]:
        settings: Any = workers.settings
        return plan_update(
            rows,
            num_ranks=len(workers),
            budget=settings.micro_batch_tokens,
            algorithm=recipe.rlhf.algorithm,
            seed=[recipe.run.seed, step],
        )

    calls: dict[str, list[ray.ObjectRef[Any]]] = {}
    if roles.critic:
        shares = plan(roles.critic)
        calls["critic"] = roles.critic.on_each(CriticWorker.update, shares, step=step, kl_weight=kl_weight)
    if recipe.rlhf.policy_learns(step):
        shares = plan(roles.policy)
        calls["policy"] = roles.policy.on_each(PolicyWorker.update, shares, step=step, kl_weight=kl_weight)
    results, seconds = collect(calls)
    metrics = {metric_name(role, name): value for role, parts in results.items() for name, value in parts[0].items()}
    return metrics, {f"{role}_update": spent for role, spent in seconds.items()}


def metric_name(role: str, name: str) -> str:
    """What a learner's metric is called among those of the step."""
    if name.startswith("mismatch/"):  # How far rollout and trainer are apart is not the policy's alone.
        return name
    return f"{name}:{role}" if name.startswith("counts/") else f"{role}/{name}"


def sync_weights(roles: Roles, version: int) -> None:
    """Sends the policy's weights on their way to the rollout workers, which take them before they sample again."""
    weights = roles.policy.on_all(PolicyWorker.weights, version)
    # The reference itself is passed: Ray hands its value to the workers, and none of it to the driver.
    roles.rollout.on_all(RolloutWorker.update_weights, weights[0])  # pyright: ignore[reportArgumentType]


def batch_metrics(roles: Roles, door: Door, batch: Judged, step: int) -> dict[str, float]:
    """Rewards, staleness, the feature cache, and what was left out, refused or cut short, by reason."""
    return {
        "reward/mean": float(batch.rewards.mean()),
        **{f"reward/{name}": mean for name, mean in batch.means().items()},
        **feature_cache(roles),
        "staleness": staleness(batch.rollouts, step),
        "queue/prompts_per_rollout_worker": len(batch.prompts) / len(roles.rollout),
        **{f"counts/{reason}": float(n) for reason, n in counts(door, batch).items()},
    }


def speed(rollouts: Sequence[Rollout], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each role, and completion tokens a second."""
    num_tokens = sum(len(completion.token_ids) for rollout in rollouts for completion in rollout.completions)
    return {
        **{f"time/{role}_s": spent for role, spent in seconds.items()},
        **{f"tokens_per_s/{role}": num_tokens / max(spent, 1e-9) for role, spent in seconds.items()},
    }


def staleness(rollouts: Sequence[Rollout], step: int) -> float:
    """Updates, on average, between the weights that sampled and those that learn."""
    return float(np.mean([step - rollout.completions[0].weights_version for rollout in rollouts]))


def feature_cache(roles: Roles) -> dict[str, float]:
    """What the encoders' caches hold and how often they helped, over the run so far."""
    counts = ray.get(roles.encoder.on_all(EncoderWorker.cache_counts))
    hits, misses = sum(each.hits for each in counts), sum(each.misses for each in counts)
    return {
        "feature_cache/hit_rate": hits / max(1, hits + misses),
        "feature_cache/evicted": float(sum(each.evicted for each in counts)),
        "feature_cache/mib": sum(each.kept_bytes for each in counts) / 2**20,
    }


def counts(door: Door, batch: Judged) -> dict[str, int]:
    """What failed, was left out or cut short in this step, and the rows refused so far in this process, by reason."""
    return {
        "truncated_completions": num_truncated(batch.rollouts),
        **{f"quarantined:{reason}": n for reason, n in door.quarantine.counts().items()},
        **batch.counts,
    }


def num_truncated(rollouts: Sequence[Rollout]) -> int:
    """Completions that met the length limit."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    return sum(completion.finish_reason is FinishReason.LENGTH for completion in completions)


def sample_rows(batch: Judged, limit: int = 8) -> list[dict[str, Any]]:
    """The first completion of some prompts, with its rewards and lineage, and what else its group says."""
    size = len(batch.rollouts[0].completions)
    return [
        {
            "prompt_id": rollout.prompt_id,
            "answer": prompt.info.answer,
            "completion": rollout.completions[0].text,
            "group": [completion.text for completion in rollout.completions],
            "finish_reason": rollout.completions[0].finish_reason,
            "weights_version": rollout.completions[0].weights_version,
            "rewards": {name: float(part[index * size]) for name, part in batch.parts.items()},
        }
        for index, (prompt, rollout) in enumerate(zip(batch.prompts[:limit], batch.rollouts[:limit], strict=True))
    ]


if __name__ == "__main__":
    main(run, __doc__, resumable=True)
