"""What an evaluation while training measures, and what a run makes of a row of them: whether to go on.

Completions are scored as in the evaluation at the end, by exact match and `contains`. Prompts are the independent
units: samples are averaged within a prompt first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import chain, zip_longest
from typing import Any

from pipeline.config import TASK_MEASURES, Measure, Rlhf
from pipeline.records import Completion, PromptInfo, Rollout
from pipeline.rewards.contains import contains
from pipeline.rewards.exact_match import exact_match

TOLERANCE = 1e-9
"""Shares are quotients: .5 is .1 more than .4, whatever floating point makes of it."""


def chosen(infos: Sequence[PromptInfo], *, num_prompts: int | None) -> list[PromptInfo]:
    """Prompts with an answer, in turn from each task; within a task by a hash of the id, whatever the file's order."""
    tasks: dict[str, list[PromptInfo]] = {}
    for info in sorted(infos, key=lambda info: hashlib.sha256(info.id.encode()).digest()):
        if info.answer is not None:
            tasks.setdefault(info.task, []).append(info)
    turns = zip_longest(*(tasks[task] for task in sorted(tasks)))
    return [info for info in chain.from_iterable(turns) if info is not None][:num_prompts]


def measured(infos: Sequence[PromptInfo], *, sampled: Sequence[Rollout], greedy: Sequence[Rollout]) -> dict[str, float]:
    """The validation metrics: means over prompts of what their completions score, overall and for each task.

    infos: P prompts, with their answers; sampled: P groups of k samples; greedy: P groups of one greedy completion.

    `any_of_k` is the share of prompts of which any of the k samples is an exact match.
    """
    tasks: dict[str, list[dict[Measure, float]]] = {}
    for info, samples, likeliest in zip(infos, sampled, greedy, strict=True):
        tasks.setdefault(info.task, []).append(_scores(info, samples, likeliest))
    rows = [row for rows in tasks.values() for row in rows]
    return {
        **{measure.metric(): _mean(rows, measure) for measure in Measure},
        **{
            measure.metric(task): _mean(rows, measure)
            for task, rows in sorted(tasks.items())
            if task
            for measure in TASK_MEASURES
        },
    }


def _scores(info: PromptInfo, sampled: Rollout, greedy: Rollout) -> dict[Measure, float]:
    if info.answer is None:
        raise ValueError(f"{info.id}: no answer to compare with; prompts without one must not come here")
    matches = [_best(exact_match, completion, info) for completion in sampled.completions]
    contained = [_best(contains, completion, info) for completion in sampled.completions]
    (likeliest,) = greedy.completions
    return {
        Measure.EXACT_MATCH: sum(matches) / len(matches),
        Measure.CONTAINS: sum(contained) / len(contained),
        Measure.ANY_OF_K: max(matches),
        Measure.GREEDY_EXACT_MATCH: _best(exact_match, likeliest, info),
        Measure.GREEDY_CONTAINS: _best(contains, likeliest, info),
    }


def _best(rule: Callable[[str, str], float], completion: Completion, info: PromptInfo) -> float:
    return max(rule(completion.text, answer) for answer in info.answers)


def _mean(rows: Sequence[Mapping[Measure, float]], measure: Measure) -> float:
    return sum(row[measure] for row in rows) / len(rows)


@dataclass(frozen=True)
class Progress:
    """What the evaluations of a run have shown so far. Checkpoints keep it, so that a resumed run goes on counting.

    step: updates that the policy had at the newest evaluation; -1 before the first.
    metrics: what that one measured.
    metric: whose `best` value it is; None before the first evaluation.
    num_without_gain: evaluations since then in which it was no better.
    """

    step: int = -1
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    metric: str = ""
    best: float | None = None
    num_without_gain: int = 0

    def updated(
        self, *, step: int, metrics: Mapping[str, float], metric: str, min_delta: float, has_learned: bool
    ) -> Progress:
        """The progress after an evaluation at `step`.

        min_delta: by how much `metric` must be better than the best so far to count as better; more than 0 in any case.
        has_learned: whether the policy was updated at all; before that no gain is to be expected, and none is missed.
        """
        value, best = metrics[metric], self.best if metric == self.metric else None
        if best is None or (value > best and value - best >= min_delta - TOLERANCE):
            return Progress(step, metrics, metric, value)
        num_without_gain = self.num_without_gain + has_learned if metric == self.metric else 0
        return Progress(step, metrics, metric, best, num_without_gain)

    def at(self, step: int) -> Mapping[str, float]:
        """What was measured at this step, which may be nothing."""
        return self.metrics if step == self.step else {}

    def to_json(self) -> dict[str, Any]:
        """What `Progress(**...)` takes."""
        return asdict(self)


class EndReason(StrEnum):
    """Why a run ended."""

    TARGET = "target"
    PATIENCE = "patience"
    NUM_STEPS = "num_steps"


@dataclass(frozen=True)
class End:
    """The end of a run after `step` steps, and why, in a word and in a sentence."""

    reason: EndReason
    step: int
    detail: str


def end_of(settings: Rlhf, *, step: int, progress: Progress) -> End | None:
    """Whether a run that has made `step` steps ends here: it is good enough, learns no more, or has all its steps."""
    wanted = settings.validation
    # Only what these very weights have shown counts, and, after a resume, only in the metric that is asked for now.
    if settings.evaluate_every and progress.at(step) and progress.metric == wanted.stop_metric:
        value = progress.metrics[wanted.stop_metric]
        if wanted.stop_at is not None and value >= wanted.stop_at - TOLERANCE:
            detail = f"{wanted.stop_metric} is {value:.4g}: rlhf.validation.stop_at={wanted.stop_at:g} is reached"
            return End(EndReason.TARGET, step, detail)
        if wanted.patience is not None and progress.num_without_gain >= wanted.patience:
            detail = (
                f"{wanted.stop_metric} is {value:.4g}, and was {progress.best:.4g} {progress.num_without_gain} "
                f"evaluations ago: rlhf.validation.patience={wanted.patience} is at its end"
            )
            return End(EndReason.PATIENCE, step, detail)
    if step >= settings.num_steps:
        return End(EndReason.NUM_STEPS, step, f"rlhf.num_steps={settings.num_steps} are done")
    return None
