"""`summary.json`: what an evaluation found, for machines. docs/metrics.md describes its form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.results import ALL_BLANKED, ModelName
from pipeline.evaluation.reward_parts import Parts, RewardPart
from pipeline.evaluation.summary import TEXT_ONLY, Demonstrator, Evaluation, ModelSummary, Slice
from pipeline.tracking import finite


def summary_json(
    evaluation: Evaluation,
    *,
    stage_s: Mapping[str, float],
    total_s: float,
    seed: int,
    counts: Mapping[str, int],
    rows: Mapping[str, int] | None = None,
    parts: Parts | None = None,
) -> dict[str, Any]:
    """The run's result as plain JSON values; `stage_s` and `total_s` in seconds, `kl` in nats a token.

    rows: prompts that SFT learned from, that RL drew, and that both did (`sft`, `rlhf`, `both`); None: not recorded.
    parts: those of the reward, by stage.
    A task of text alone has the modality `text`. What was not measured is None.
    """
    tasks: dict[str, Any] = {}
    for name, part in evaluation.tasks.items():
        rlhf = part.models.get(ModelName.RLHF)
        tasks[name] = {"modalities": list(part.modalities) or [TEXT_ONLY], **_slice_json(part)}
        tasks[name]["blind_gaps"] = _gaps_json(rlhf.blind_gaps if rlhf else {})
    summary: dict[str, Any] = {
        "total_s": total_s,
        "stage_s": dict(stage_s),
        "seed": seed,
        "tasks": tasks,
        "modalities": {name: _slice_json(part) for name, part in evaluation.modalities.items()},
        "overall": _slice_json(evaluation.overall),
        "demonstrator_task": evaluation.demonstrator_task,
        "rows": None if rows is None else dict(rows),
        "counts": dict(counts),
        "reward_parts": {
            stage: {part.name: _part_json(part) for part in found} for stage, found in (parts or {}).items()
        },
    }
    return finite(summary)


def _part_json(part: RewardPart) -> dict[str, Any]:
    return {name: value for name, value in asdict(part).items() if name != "name"}


def _slice_json(part: Slice) -> dict[str, Any]:
    sft, rlhf = (part.models.get(model) for model in (ModelName.SFT, ModelName.RLHF))
    return {
        **{model.value: _model_json(part.models.get(model)) for model in ModelName},
        "gain": _estimate(part.gain),
        "greedy_gain": _estimate(part.greedy_gain),
        "contains_gain": _estimate(part.contains_gain),
        "greedy_contains_gain": _estimate(part.greedy_contains_gain),
        "skill_gain": _value(part.skill_gain),
        "skill_gain_interval": _bounds(part.skill_gain),
        "manner_gain": _value(part.manner_gain),
        "manner_gain_interval": _bounds(part.manner_gain),
        "any_of_k": {
            "k": part.num_tries,
            "sft": _value(sft and sft.any_of_k),
            "rlhf": _value(rlhf and rlhf.any_of_k),
            "gain": _estimate(part.any_of_k_gain),
        },
        "blind_gap": _value(rlhf and rlhf.blind_gaps.get(ALL_BLANKED)),
        "swapped_gap": _value(rlhf and rlhf.swapped_gap),
        "demonstrator": _demonstrator_json(part.demonstrator),
        "num_prompts": part.num_prompts,
    }


def _model_json(summary: ModelSummary | None) -> dict[str, Any]:
    if summary is None:
        return {"true_reward": None, "learned_reward": None, "kl": None}
    return {
        "true_reward": _value(summary.true_reward),
        "true_reward_interval": _bounds(summary.true_reward),
        "greedy_true_reward": _value(summary.greedy_true_reward),
        "greedy_true_reward_interval": _bounds(summary.greedy_true_reward),
        "contains": _value(summary.contains),
        "contains_interval": _bounds(summary.contains),
        "greedy_contains": _value(summary.greedy_contains),
        "any_of_k": _value(summary.any_of_k),
        "learned_reward": summary.learned_reward,
        "kl": summary.kl_per_token,
        "kl_per_completion": summary.kl_per_completion,
        "mean_length": summary.mean_length,
        "finish_reasons": summary.finish_reasons,
        "num_samples": summary.num_samples,
        "num_unscored": summary.num_unscored,
        "blind_gap": _estimate(summary.blind_gaps.get(ALL_BLANKED)),
        "blind_gaps": _gaps_json(summary.blind_gaps),
        "swapped_gap": _estimate(summary.swapped_gap),
        **summary.metrics,
    }


def _demonstrator_json(demonstrator: Demonstrator | None) -> dict[str, Any]:
    if demonstrator is None:
        return {"true_reward": None, "contains": None, "graded": None, "num_prompts": 0}
    return asdict(demonstrator)


def _gaps_json(gaps: Mapping[str, Estimate]) -> dict[str, Any]:
    return {label: asdict(gap) for label, gap in gaps.items()}


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _bounds(estimate: Estimate | None) -> list[float] | None:
    return [estimate.low, estimate.high] if estimate else None
