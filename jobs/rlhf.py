"""The RLHF loop: generate -> score -> update.

    prompts -> encoder --features--> rollout -> completions --+--> reward ----+
       (once)                           ^                     +--> reference -+--> experience -> policy, critic
                                        |                     +--> critic ----+                    |
                                        +---------------- weights, with their version <-----------+

The driver holds ids, logprobs and rewards, never a medium: those travel as references in the object store.
With `rlhf.staleness` above 0 the next batches are sampled while this one is scored and learned from.
Where `rlhf.evaluate_every` asks for it, the rollout workers complete validation prompts between two steps.
Left out on purpose: a second policy pass in steps that are on-policy. Their behaviour logprobs are the policy's own.
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

from actors import checkpoints, parity, validation
from actors.critic import CriticWorker
from actors.door import Batches, Door
from actors.encoder import EncoderWorker, PromptRef
from actors.group import WorkerGroup
from actors.judge import Judged, groups_of, judged_batch, lacks
from actors.metrics import ray_sinks
from actors.policy import Minibatch, PolicyWorker, plan_update
from actors.reference import ReferenceWorker
from actors.roles import Crew, Roles, collect, crew_of, loop_needs, loop_paths
from actors.rollout import RolloutWorker
from actors.sampler import Sampler
from actors.scoring import Scoring, ShardedWorker, score
from jobs.command import main
from pipeline.algorithms.shaping import RunningScale, clip_reward
from pipeline.config import Algorithm, Recipe
from pipeline.experience import make_experience
from pipeline.records import Experience, FinishReason, Rollout
from pipeline.tracking import Tracker


def run(recipe: Recipe, *, resume: bool = False, crew: Crew | None = None) -> Path:
    """Trains the policy and returns the directory of its Hugging Face checkpoint."""
    settings, algorithm = recipe.rlhf, recipe.rlhf.algorithm
    target = recipe.checkpoint("rlhf")
    if validation.is_done(recipe, resume=resume):
        return target
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
                scale = state.reward_scale.updated(rewards=batch.rewards)
                experience, statistics = make_experience(
                    batch.rollouts,
                    rewards=shape(batch.rewards, scale, algorithm),
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
                kl = state.kl.updated(kl=statistics["kl/reference"], num_completions=len(batch.rewards))
                state = replace(state, step=step + 1, kl=kl, reward_scale=scale, cursor=sampler.cursor)
                seconds = {**batch.seconds, **score_s, **update_s, "step": time.monotonic() - started}
                metrics = {
                    **batch_metrics(roles, door, batch, step),
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


def begin_scoring(
    roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef], rollouts: Sequence[Rollout]
) -> dict[str, Scoring]:
    """Asks for reference logprobs, values and, where behaviour logprobs may not be the policy's, proximal logprobs."""
    groups, temperature = groups_of(prompts, rollouts), recipe.rlhf.sampling.temperature
    scorings: dict[str, Scoring] = {}
    if roles.reference:
        scorings["reference"] = score(roles.reference, ReferenceWorker.logprobs, groups, temperature=temperature)
    if roles.critic:
        scorings["critic"] = score(roles.critic, CriticWorker.values, groups)
    if recipe.rlhf.is_off_policy:
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
    if not roles.critic or step >= recipe.rlhf.critic_warmup_steps:
        shares = plan(roles.policy)
        calls["policy"] = roles.policy.on_each(PolicyWorker.update, shares, step=step, kl_weight=kl_weight)
    results, seconds = collect(calls)
    metrics = {
        # How far rollout and trainer are apart is not the policy's alone.
        name if name.startswith("mismatch/") else f"{role}/{name}": value
        for role, parts in results.items()
        for name, value in parts[0].items()
    }
    return metrics, {f"{role}_update": spent for role, spent in seconds.items()}


def sync_weights(roles: Roles, version: int) -> None:
    """Sends the policy's weights on their way to the rollout workers, which take them before they sample again."""
    weights = roles.policy.on_all(PolicyWorker.weights, version)
    # The reference itself is passed: Ray hands its value to the workers, and none of it to the driver.
    roles.rollout.on_all(RolloutWorker.update_weights, weights[0])  # pyright: ignore[reportArgumentType]


def batch_metrics(roles: Roles, door: Door, batch: Judged, step: int) -> dict[str, float]:
    """Rewards, staleness, the feature cache, and what was left out, refused or cut short, by reason."""
    return {
        "reward/mean": float(batch.rewards.mean()),
        **{f"reward/{name}": float(part.mean()) for name, part in batch.parts.items()},
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
    completions = [completion for rollout in batch.rollouts for completion in rollout.completions]
    return {
        "truncated_completions": sum(completion.finish_reason is FinishReason.LENGTH for completion in completions),
        **{f"quarantined:{reason}": n for reason, n in door.quarantine.counts().items()},
        **batch.counts,
    }


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
