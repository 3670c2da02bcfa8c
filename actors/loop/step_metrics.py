"""What a step of the loop tells of itself: metrics, counts by reason, and samples with their lineage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.loop.crew import Roles
from actors.loop.door import Door
from actors.loop.judge import Judged
from actors.loop.reward_parts import learned_rewards, part_metrics
from actors.loop.step import Learned, shape
from actors.roles.encoder import EncoderWorker
from pipeline.algorithms.shaping import RunningScale, is_clipped
from pipeline.config import Algorithm
from pipeline.records import FinishReason, Rollout

ROLE_OF = {"proximal": "policy", "greedy": "rollout", "process": "reward"}
"""Who is at work where what is done is not called after its role."""


class Clock:
    """Seconds since it was made, of the wall and of the driver's own work."""

    def __init__(self) -> None:
        self._wall, self._own = time.monotonic(), time.thread_time()

    def seconds(self) -> tuple[float, float]:
        """All that have passed, and those in which the driver did something itself."""
        return time.monotonic() - self._wall, time.thread_time() - self._own


def step_metrics(
    roles: Roles, door: Door, learned: Learned, algorithm: Algorithm, *, step: int, clock: Clock
) -> dict[str, float]:
    """All that a step is logged with, but for the state of the loop."""
    batch = learned.batch
    step_s, driver_s = clock.seconds()
    seconds = {**learned.seconds, "encoder": roles.encoder.busy_s()}
    return {
        **batch_metrics(roles, door, batch, step, algorithm),
        **learning_counts(batch, learned.scale, algorithm),
        **learned.statistics,
        **learned.updated,
        **speed(batch.rollouts, {**seconds, "step": step_s}),
        **{f"busy/{role}": spent / step_s for role, spent in by_role(seconds).items()},
        **{f"phase/{phase}_s": spent for phase, spent in learned.phases.items()},
        "time/driver_s": driver_s,
        "busy/driver": driver_s / step_s,
        **{f"wait/{fleet.role}_s": fleet.waited_s() for fleet in roles.all},
        **{f"pool/workers:{pool.role}": float(len(pool)) for pool in (roles.encoder, roles.rollout)},
        **{f"queue/tasks:{pool.role}": float(pool.num_waiting) for pool in (roles.encoder, roles.rollout)},
        **roles.recoveries.counts(),
        **roles.recoveries.seconds(),
    }


def by_role(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of work of each role, of those by what was done: `critic_score`, `critic_update`."""
    found: defaultdict[str, float] = defaultdict(float)
    for work, spent in seconds.items():
        name = work.split("_")[0]
        found[ROLE_OF.get(name, name)] += spent
    return dict(found)


def learning_counts(batch: Judged, scale: RunningScale, algorithm: Algorithm) -> dict[str, float]:
    """How many completions of the step have a clipped reward, and how many are left out of the losses."""
    counts: dict[str, float] = {}
    if algorithm.clip_reward is not None:
        unclipped = shape(learned_rewards(batch, algorithm), scale, algorithm.model_copy(update={"clip_reward": None}))
        counts["counts/rewards_clipped"] = float(is_clipped(rewards=unclipped, bound=algorithm.clip_reward).sum())
    if algorithm.mask_truncated:
        counts["counts/completions_left_out"] = float(num_truncated(batch.rollouts))
    return counts


def batch_metrics(roles: Roles, door: Door, batch: Judged, step: int, algorithm: Algorithm) -> dict[str, float]:
    """Rewards, staleness, the feature cache, and what was left out, refused or cut short, by reason."""
    return {
        **batch.mean(),
        "reward/version": float(batch.reward_version),
        **part_metrics(batch, algorithm),
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
    counts = roles.encoder.on_all(EncoderWorker.cache_counts)
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
            "reward_version": batch.reward_version,
            "rewards": {name: float(part[index * size]) for name, part in batch.parts.items()},
        }
        for index, (prompt, rollout) in enumerate(zip(batch.prompts[:limit], batch.rollouts[:limit], strict=True))
    ]
