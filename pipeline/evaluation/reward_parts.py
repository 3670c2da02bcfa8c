"""What became of the parts of the reward over a run, out of the metrics of the stages that judge completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FAILED = "counts/reward_failed:"
NO_REASON = "rule"
"""Under which rewards are counted that a rule of ours could not give, of which no reason is told."""


@dataclass(frozen=True)
class RewardPart:
    """A part of the reward over the steps of a stage: means over the steps that tell of it, NaN where none does.

    first, last: its mean over the first and the last tenth of the steps; std: its spread within a step; weight: in the
    last step; share: of the signal; failures: rewards that could not be given, by reason.
    """

    name: str
    first: float
    last: float
    std: float
    weight: float
    share: float
    failures: Mapping[str, int]


Parts = Mapping[str, Sequence[RewardPart]]
"""By stage."""


def parts_of(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Parts:
    """The parts that the metrics of any stage tell of; stages that judge nothing are missing."""
    found = {stage: reward_parts(rows) for stage, rows in curves.items()}
    return {stage: parts for stage, parts in found.items() if parts}


def reward_parts(rows: Sequence[Mapping[str, Any]]) -> list[RewardPart]:
    """The parts that a stage's metrics tell of, in their order: those with a weight, and those shown beside them."""
    names = dict.fromkeys(
        name.partition("/")[2] for row in rows for name in row if name.startswith(("reward_weight/", "reward_std/"))
    )

    def values(name: str) -> list[float]:
        found = [row.get(name) for row in rows]
        return [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]

    def reason(failed: str, name: str) -> str:
        return failed.removeprefix(f"{FAILED}{name}").removeprefix(":") or NO_REASON

    def mean(found: Sequence[float]) -> float:
        return sum(found) / len(found) if found else math.nan

    failed = dict.fromkeys(name for row in rows for name in row if name.startswith(FAILED))
    parts: list[RewardPart] = []
    for name in names:
        means, weights = values(f"reward/{name}"), values(f"reward_weight/{name}")
        tenth = math.ceil(len(means) / 10)
        parts.append(
            RewardPart(
                name,
                first=mean(means[:tenth]),
                last=mean(means[len(means) - tenth :]),
                std=mean(values(f"reward_std/{name}")),
                weight=weights[-1] if weights else math.nan,
                share=mean(values(f"reward_share/{name}")),
                failures={
                    reason(each, name): round(sum(values(each)))
                    for each in failed
                    if f"{each}:".startswith(f"{FAILED}{name}:") and any(values(each))
                },
            )
        )
    return parts
