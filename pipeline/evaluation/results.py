"""What an evaluation measured: one record a completion, and the numbers that a report draws from them.

The true reward is the exact match with the reference answer. Its mean over sampled completions estimates what the
policy earns in expectation; the greedy completion is scored beside it. Prompts are the independent units: values are
averaged within a prompt first, and intervals come from a bootstrap over prompts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RewardName
from pipeline.records import MediaKind
from pipeline.tracking import append_lines, finite, read_lines

CONFIDENCE = 0.95
ALL_BLANKED = "all"
TEXT_ONLY = "text"


class ModelName(StrEnum):
    """The models that are compared, by the stage that wrote them."""

    SFT = "sft"
    RLHF = "rlhf"


class Mode(StrEnum):
    """How completions were chosen: drawn at the recipe's temperature, or the likeliest token each time."""

    SAMPLED = "sampled"
    GREEDY = "greedy"


@dataclass(frozen=True)
class SampleResult:
    """One completion of one prompt by one model, scored.

    modalities: kinds of media in the prompt, each once; empty for text alone.
    blanked: kinds whose media were blanked for this completion; empty where the prompt was shown whole.
    answer: the reference answer; None where nobody knows one.
    token_kl: policy minus reference logprob of each completion token, in nats; empty where it was not measured.
    rewards: by name: `exact_match` in [0, 1], `wer` (an error rate: lower is better), `bleu` and `rouge_l` in [0, 1].
        A name that does not apply, or whose scoring failed, is left out.
    learned_reward: the reward model's score, standardised as in training; None where there is none.
    """

    prompt_id: str
    task: str
    modalities: tuple[str, ...]
    model: ModelName
    mode: Mode
    blanked: tuple[str, ...]
    answer: str | None
    text: str
    finish_reason: str
    num_tokens: int
    token_texts: tuple[str, ...]
    token_kl: tuple[float, ...]
    rewards: dict[str, float]
    learned_reward: float | None

    def __post_init__(self) -> None:
        if self.token_kl and len(self.token_kl) != len(self.token_texts):
            raise ValueError(
                f"prompt {self.prompt_id}: {len(self.token_kl)} KL values for {len(self.token_texts)} token texts"
            )

    @property
    def true_reward(self) -> float | None:
        """Exact match with the reference answer; None where it could not be scored."""
        return _number(self.rewards.get(RewardName.EXACT_MATCH))


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float
    num_prompts: int


@dataclass(frozen=True)
class ModelSummary:
    """One model on one slice. All means but the greedy ones are over sampled completions; None: nothing to average.

    metrics: the further rewards by name, for example `wer`, `bleu`, `rouge_l`.
    kl_per_token, kl_per_completion: to the reference model, in nats.
    mean_length: tokens, the end token included.
    num_unscored: completions, greedy ones too, without an exact match; they are in no true reward.
    blind_gaps: greedy true reward with media shown minus blanked, by what was blanked: a kind alone, several joined by
        `+`, or `all`.
    """

    true_reward: Estimate | None
    greedy_true_reward: Estimate | None
    metrics: dict[str, float]
    learned_reward: float | None
    kl_per_token: float | None
    kl_per_completion: float | None
    mean_length: float | None
    finish_reasons: dict[str, int]
    num_samples: int
    num_unscored: int
    blind_gaps: dict[str, Estimate]


@dataclass(frozen=True)
class Slice:
    """Some of the prompts. The gains are paired differences RLHF minus SFT over the prompts that both answered."""

    name: str
    num_prompts: int
    modalities: tuple[str, ...]
    models: dict[ModelName, ModelSummary]
    gain: Estimate | None
    greedy_gain: Estimate | None


@dataclass(frozen=True)
class Evaluation:
    """All prompts together, by task, and by kind of media (a prompt with two kinds counts in both)."""

    overall: Slice
    tasks: dict[str, Slice]
    modalities: dict[str, Slice]


Bootstrap = Callable[[Iterable[float]], Estimate | None]


def summarise(samples: Sequence[SampleResult], *, seed: int = 0, num_resamples: int = 2000) -> Evaluation:
    """Aggregates completions per task, per kind of media and overall, with intervals that depend only on `seed`."""

    def bootstrap(values: Iterable[float]) -> Estimate | None:
        return estimate(values, seed=seed, num_resamples=num_resamples)

    kinds = [*(kind.value for kind in MediaKind), TEXT_ONLY]
    by_kind = {kind: [sample for sample in samples if kind in (sample.modalities or (TEXT_ONLY,))] for kind in kinds}
    by_task: dict[str, list[SampleResult]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    return Evaluation(
        overall=_slice("overall", samples, bootstrap),
        tasks={task: _slice(task, rows, bootstrap) for task, rows in by_task.items()},
        modalities={kind: _slice(kind, rows, bootstrap) for kind, rows in by_kind.items() if rows},
    )


def estimate(values: Iterable[float], *, seed: int, num_resamples: int) -> Estimate | None:
    """Mean of one value a prompt, with the percentile bootstrap's interval (Efron 1979); None for no values."""
    data = np.fromiter(values, dtype=np.float64)
    if data.size == 0:
        return None
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, 2**21 // data.size)  # bounds the resampled table to 16 MiB
    means: list[NDArray[np.float64]] = []
    for start in range(0, num_resamples, rows_at_once):
        num_rows = min(rows_at_once, num_resamples - start)
        means.append(data[generator.integers(data.size, size=(num_rows, data.size))].mean(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def _slice(name: str, samples: Sequence[SampleResult], bootstrap: Bootstrap) -> Slice:
    present = {kind for sample in samples for kind in sample.modalities}
    by_model = {model: [sample for sample in samples if sample.model == model] for model in ModelName}

    def gain(mode: Mode) -> Estimate | None:
        shown = {model: _by_prompt(_shown(rows, mode)) for model, rows in by_model.items()}
        return bootstrap(_differences(shown[ModelName.RLHF], shown[ModelName.SFT]))

    return Slice(
        name=name,
        num_prompts=len({sample.prompt_id for sample in samples}),
        modalities=tuple(kind.value for kind in MediaKind if kind.value in present),
        models={model: _summarise_model(rows, bootstrap) for model, rows in by_model.items() if rows},
        gain=gain(Mode.SAMPLED),
        greedy_gain=gain(Mode.GREEDY),
    )


def _summarise_model(samples: Sequence[SampleResult], bootstrap: Bootstrap) -> ModelSummary:
    sampled, greedy = _shown(samples, Mode.SAMPLED), _shown(samples, Mode.GREEDY)
    names = dict.fromkeys(name for sample in sampled for name in sample.rewards if name != RewardName.EXACT_MATCH)
    means = {name: _mean(sample.rewards.get(name) for sample in sampled) for name in names}
    measured = [sample.token_kl for sample in sampled if sample.token_kl]
    return ModelSummary(
        true_reward=bootstrap(_by_prompt(sampled).values()),
        greedy_true_reward=bootstrap(_by_prompt(greedy).values()),
        metrics={name: value for name, value in means.items() if value is not None},
        learned_reward=_mean(sample.learned_reward for sample in sampled),
        kl_per_token=_mean(value for row in measured for value in row),
        kl_per_completion=_mean(math.fsum(row) for row in measured),
        mean_length=_mean(sample.num_tokens for sample in sampled),
        finish_reasons=dict(sorted(Counter(str(sample.finish_reason) for sample in sampled).items())),
        num_samples=len(sampled),
        num_unscored=sum(sample.true_reward is None for sample in [*sampled, *greedy]),
        blind_gaps=_blind_gaps(samples, _by_prompt(greedy), bootstrap),
    )


def _blind_gaps(
    samples: Sequence[SampleResult], shown: Mapping[str, float], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    blind: dict[str, list[SampleResult]] = {}
    for sample in samples:
        if sample.mode == Mode.GREEDY and sample.blanked:
            for label in blind_labels(sample):
                blind.setdefault(label, []).append(sample)
    gaps = {label: bootstrap(_differences(shown, _by_prompt(rows))) for label, rows in sorted(blind.items())}
    return {label: gap for label, gap in gaps.items() if gap is not None}


def blind_labels(sample: SampleResult) -> tuple[str, ...]:
    """What a blanked completion counts under: the kinds blanked, and `all` where they are all the prompt has.

    With one kind in the prompt, to blank it is to blank all: it counts under both.
    """
    kinds = set(sample.modalities if sample.blanked == (ALL_BLANKED,) else sample.blanked)
    everything = (ALL_BLANKED,) if kinds == set(sample.modalities) else ()
    together = ("+".join(sorted(kinds)),) if len(kinds) == 1 or not everything else ()
    return everything + together


def _shown(samples: Iterable[SampleResult], mode: Mode) -> list[SampleResult]:
    return [sample for sample in samples if sample.mode == mode and not sample.blanked]


def _by_prompt(samples: Iterable[SampleResult]) -> dict[str, float]:
    """Mean true reward of each prompt; completions without one are left out."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        if (reward := sample.true_reward) is not None:
            values.setdefault(sample.prompt_id, []).append(reward)
    return {prompt: math.fsum(row) / len(row) for prompt, row in values.items()}


def _differences(left: Mapping[str, float], right: Mapping[str, float]) -> list[float]:
    return [value - right[prompt] for prompt, value in left.items() if prompt in right]


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def summary_json(
    evaluation: Evaluation, *, stage_s: Mapping[str, float], total_s: float, seed: int, counts: Mapping[str, int]
) -> dict[str, Any]:
    """The run's result as plain JSON values; `stage_s` and `total_s` in seconds, `kl` in nats a token.

    A task of text alone has the modality `text`. What was not measured is None.
    """
    rlhf = ModelName.RLHF
    tasks: dict[str, Any] = {}
    for name, part in evaluation.tasks.items():
        blind = part.models[rlhf].blind_gaps if rlhf in part.models else {}
        tasks[name] = {"modalities": list(part.modalities) or [TEXT_ONLY], **_slice_json(part)}
        tasks[name]["blind_gap"] = blind[ALL_BLANKED].value if ALL_BLANKED in blind else None
        tasks[name]["blind_gaps"] = {label: asdict(gap) for label, gap in blind.items()}
    summary: dict[str, Any] = {
        "total_s": total_s,
        "stage_s": dict(stage_s),
        "seed": seed,
        "tasks": tasks,
        "modalities": {name: _slice_json(part) for name, part in evaluation.modalities.items()},
        "overall": _slice_json(evaluation.overall),
        "counts": dict(counts),
    }
    return finite(summary)


def _slice_json(part: Slice) -> dict[str, Any]:
    models = {model.value: _model_json(part.models.get(model)) for model in ModelName}
    gains = {
        name: asdict(gain) if gain else None for name, gain in (("gain", part.gain), ("greedy_gain", part.greedy_gain))
    }
    return {**models, **gains, "num_prompts": part.num_prompts}


def _model_json(summary: ModelSummary | None) -> dict[str, Any]:
    if summary is None:
        return {"true_reward": None, "learned_reward": None, "kl": None}
    reward, greedy = summary.true_reward, summary.greedy_true_reward
    return {
        "true_reward": reward.value if reward else None,
        "true_reward_interval": [reward.low, reward.high] if reward else None,
        "greedy_true_reward": greedy.value if greedy else None,
        "learned_reward": summary.learned_reward,
        "kl": summary.kl_per_token,
        "kl_per_completion": summary.kl_per_completion,
        "mean_length": summary.mean_length,
        "finish_reasons": summary.finish_reasons,
        "num_samples": summary.num_samples,
        "num_unscored": summary.num_unscored,
        **summary.metrics,
    }


def write_samples(path: Path, samples: Iterable[SampleResult]) -> None:
    """Writes completions as JSONL, in place of what the file held before."""
    path.unlink(missing_ok=True)
    append_lines(path, (asdict(sample) for sample in samples))


def read_samples(path: Path) -> list[SampleResult]:
    """Reads what `write_samples` wrote; a number that was not finite comes back as NaN.

    Raises:
        ValueError: a line is no sample.
    """
    return [_sample(row, path) for row in read_lines(path)]


def _sample(row: Mapping[str, Any], path: Path) -> SampleResult:
    names = {field.name for field in fields(SampleResult)}
    if set(row) != names:
        raise ValueError(f"{path}: not a sample, keys that differ: {sorted(set(row) ^ names)}: {json.dumps(row)[:200]}")
    typed: dict[str, Any] = {
        **row,
        **{name: tuple(row[name]) for name in ("modalities", "blanked", "token_texts")},
        "model": ModelName(row["model"]),
        "mode": Mode(row["mode"]),
        "token_kl": tuple(math.nan if value is None else value for value in row["token_kl"]),
        "rewards": {name: math.nan if value is None else value for name, value in row["rewards"].items()},
    }
    return SampleResult(**typed)
