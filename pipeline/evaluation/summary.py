"""The numbers that a report draws from completions: overall, by task, by kind of media.

The true reward is the exact match with the reference answer. Its mean over sampled completions estimates what the
policy earns in expectation; the greedy completion is scored beside it. Prompts are the independent units: values are
averaged within a prompt first (`intervals.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.config import RewardName
from pipeline.evaluation.intervals import Estimate, jackknife, paired, proportion
from pipeline.evaluation.results import Mode, ModelName, SampleResult, blind_labels
from pipeline.records import MediaKind
from pipeline.rewards.contains import contains
from pipeline.rewards.distance import distance_reward, is_integer
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.overlap import corpus_bleu
from pipeline.rewards.wer import corpus_wer, wer

TEXT_ONLY = "text"
CORPUS_METRICS = {"wer": corpus_wer, "bleu": corpus_bleu}
"""What is measured over all completions at once: errors and n-grams are summed before they are divided."""


@dataclass(frozen=True)
class ModelSummary:
    """One model on one slice. All means but the greedy ones are over sampled completions; None: nothing to average.

    contains, greedy_contains: share of completions that hold the answer, whatever stands beside it.
    any_of_k: share of prompts with an exact match among their sampled completions.
    metrics: the further rewards by name: `wer` and `bleu` of the corpus, means of the others.
    kl_per_token, kl_per_completion: to the reference model, in nats.
    mean_length: tokens, the end token included.
    num_unscored: completions, greedy ones too, without an exact match; they are in no true reward.
    blind_gaps: greedy true reward with media shown minus blanked, by what was blanked: a kind alone, several joined by
        `+`, or `all`.
    swapped_gap: the same minus with the media of another row of the task.
    """

    true_reward: Estimate | None
    greedy_true_reward: Estimate | None
    contains: Estimate | None
    greedy_contains: Estimate | None
    any_of_k: Estimate | None
    metrics: dict[str, float]
    learned_reward: float | None
    kl_per_token: float | None
    kl_per_completion: float | None
    mean_length: float | None
    finish_reasons: dict[str, int]
    num_samples: int
    num_unscored: int
    blind_gaps: dict[str, Estimate]
    swapped_gap: Estimate | None


@dataclass(frozen=True)
class Demonstrator:
    """How good the demonstrations of the evaluated rows are themselves, by the measures of the models.

    graded: mean `distance` over rows whose answer is a whole number; None where there is none.
    """

    true_reward: float
    contains: float
    graded: float | None
    num_prompts: int


@dataclass(frozen=True)
class Slice:
    """Some of the prompts. The gains are paired differences RLHF minus SFT over the prompts that both answered.

    skill_gain, manner_gain: how the gain divides, see `skill_and_manner`.
    num_tries: the k of `any_of_k`, completions sampled for each prompt.
    demonstrator: None where no row has a demonstration of its own.
    """

    name: str
    num_prompts: int
    modalities: tuple[str, ...]
    models: dict[ModelName, ModelSummary]
    gain: Estimate | None = None
    greedy_gain: Estimate | None = None
    contains_gain: Estimate | None = None
    greedy_contains_gain: Estimate | None = None
    any_of_k_gain: Estimate | None = None
    skill_gain: Estimate | None = None
    manner_gain: Estimate | None = None
    num_tries: int | None = None
    demonstrator: Demonstrator | None = None


@dataclass(frozen=True)
class Evaluation:
    """All prompts together, by task, and by kind of media (a prompt with two kinds counts in both)."""

    overall: Slice
    tasks: dict[str, Slice]
    modalities: dict[str, Slice]

    @property
    def demonstrator_task(self) -> str | None:
        """The task whose demonstrations hold the right answer least often; None where all of them always do."""
        known = {name: part.demonstrator.contains for name, part in self.tasks.items() if part.demonstrator}
        worst = min(known, key=lambda name: known[name], default=None)
        return worst if worst is not None and known[worst] < 1 else None


def summarise(samples: Sequence[SampleResult]) -> Evaluation:
    """Aggregates completions per task, per kind of media and overall."""
    kinds = [*(kind.value for kind in MediaKind), TEXT_ONLY]
    by_kind = {kind: [sample for sample in samples if kind in (sample.modalities or (TEXT_ONLY,))] for kind in kinds}
    by_task: dict[str, list[SampleResult]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    return Evaluation(
        overall=_slice("overall", samples),
        tasks={task: _slice(task, rows) for task, rows in by_task.items()},
        modalities={kind: _slice(kind, rows) for kind, rows in by_kind.items() if rows},
    )


def skill_and_manner(*, exact: tuple[float, float], contained: tuple[float, float]) -> tuple[float, float]:
    """What of a gain in exact match is skill, and what manner: two parts that sum to it.

    An exact match takes the right answer and nothing beside it: E = C M, with C the share of completions that contain
    the answer and M the share of those that say just it. Then dE = dC mean(M) + dM mean(C): skill, at the manner that
    the two models have on average, and manner, at their skill (Kitagawa 1955; with two factors it is their Shapley
    value). Skill has the sign of dC. Where a model contains nothing its M is unknown, and counts as the other's.

    Args:
        exact, contained: shares before and after.
    """
    known = [share / whole for share, whole in zip(exact, contained, strict=True) if whole > 0]
    if not known:
        return 0.0, 0.0
    before, after = (share / whole if whole > 0 else known[0] for share, whole in zip(exact, contained, strict=True))
    skill = (contained[1] - contained[0]) * (before + after) / 2
    manner = (after - before) * (contained[0] + contained[1]) / 2
    return skill, manner


Values = dict[str, list[float]]
"""Prompt -> one value a completion."""


def _slice(name: str, samples: Sequence[SampleResult]) -> Slice:
    present = {kind for sample in samples for kind in sample.modalities}
    by_model = {model: [sample for sample in samples if sample.model == model] for model in ModelName}

    def values(mode: Mode, reward: str) -> tuple[Values, Values]:
        sft, rlhf = (_values(_shown(by_model[model], mode), reward) for model in (ModelName.SFT, ModelName.RLHF))
        return sft, rlhf

    exact, contained = values(Mode.SAMPLED, RewardName.EXACT_MATCH), values(Mode.SAMPLED, RewardName.CONTAINS)
    num_tries = _num_tries(exact)
    skill, manner = _skill_and_manner(exact, contained) or (None, None)
    return Slice(
        name=name,
        num_prompts=len({sample.prompt_id for sample in samples}),
        modalities=tuple(kind.value for kind in MediaKind if kind.value in present),
        models={model: _summarise_model(rows, num_tries) for model, rows in by_model.items() if rows},
        gain=_gain(*exact),
        greedy_gain=_gain(*values(Mode.GREEDY, RewardName.EXACT_MATCH)),
        contains_gain=_gain(*contained),
        greedy_contains_gain=_gain(*values(Mode.GREEDY, RewardName.CONTAINS)),
        any_of_k_gain=_gain(*(_any_of(num_tries, model) for model in exact)),
        skill_gain=skill,
        manner_gain=manner,
        num_tries=num_tries,
        demonstrator=_demonstrator(samples),
    )


def _summarise_model(samples: Sequence[SampleResult], num_tries: int | None) -> ModelSummary:
    sampled, greedy = _shown(samples, Mode.SAMPLED), _shown(samples, Mode.GREEDY)
    exact, greedy_exact = (_values(rows, RewardName.EXACT_MATCH) for rows in (sampled, greedy))
    measured = [sample.token_kl for sample in sampled if sample.token_kl]
    return ModelSummary(
        true_reward=_share(exact),
        greedy_true_reward=_share(greedy_exact),
        contains=_share(_values(sampled, RewardName.CONTAINS)),
        greedy_contains=_share(_values(greedy, RewardName.CONTAINS)),
        any_of_k=_share(_any_of(num_tries, exact)),
        metrics=_metrics(sampled),
        learned_reward=_mean(sample.learned_reward for sample in sampled),
        kl_per_token=_mean(value for row in measured for value in row),
        kl_per_completion=_mean(math.fsum(row) for row in measured),
        mean_length=_mean(sample.num_tokens for sample in sampled),
        finish_reasons=dict(sorted(Counter(str(sample.finish_reason) for sample in sampled).items())),
        num_samples=len(sampled),
        num_unscored=sum(sample.true_reward is None for sample in [*sampled, *greedy]),
        blind_gaps=_blind_gaps(samples, greedy_exact),
        swapped_gap=_gain(
            _values([sample for sample in samples if sample.swapped is not None], RewardName.EXACT_MATCH), greedy_exact
        ),
    )


def _metrics(sampled: Sequence[SampleResult]) -> dict[str, float]:
    """The further rewards: corpus measures over the completions that have them, means of the others."""
    beside = (RewardName.EXACT_MATCH, RewardName.CONTAINS)
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(name for sample in sampled for name in sample.rewards if name not in beside):
        rows = [sample for sample in sampled if sample.reward(name) is not None]
        if name in CORPUS_METRICS:
            pairs = [(row.text, _closest(row.text, row.answer, row.accepted)) for row in rows if row.answer is not None]
            found[name] = CORPUS_METRICS[name](*zip(*pairs, strict=True)) if pairs else None
        else:
            found[name] = _mean(row.reward(name) for row in rows)
    return {name: value for name, value in found.items() if value is not None}


def _closest(text: str, answer: str, accepted: Sequence[str]) -> str:
    """Of several right answers the one that a text comes nearest to."""
    return min((answer, *accepted), key=lambda each: wer(text, each)) if accepted else answer


def _blind_gaps(samples: Sequence[SampleResult], shown: Values) -> dict[str, Estimate]:
    blind: dict[str, list[SampleResult]] = {}
    for sample in samples:
        if sample.mode == Mode.GREEDY and sample.blanked:
            for label in blind_labels(sample):
                blind.setdefault(label, []).append(sample)
    gaps = {label: _gain(_values(rows, RewardName.EXACT_MATCH), shown) for label, rows in sorted(blind.items())}
    return {label: gap for label, gap in gaps.items() if gap is not None}


def _demonstrator(samples: Sequence[SampleResult]) -> Demonstrator | None:
    rows = {
        sample.prompt_id: (sample.demonstration, _closest(sample.demonstration, sample.answer, sample.accepted))
        for sample in samples
        if sample.demonstration is not None and sample.answer is not None
    }
    if not rows:
        return None
    pairs = list(rows.values())
    graded = [distance_reward(said, answer) for said, answer in pairs if is_integer(answer)]
    return Demonstrator(
        true_reward=fmean(exact_match(said, answer) for said, answer in pairs),
        contains=fmean(contains(said, answer) for said, answer in pairs),
        graded=fmean(graded) if graded else None,
        num_prompts=len(pairs),
    )


def _skill_and_manner(
    exact: tuple[Values, Values], contained: tuple[Values, Values]
) -> tuple[Estimate, Estimate] | None:
    """Over the prompts that both models answered, as the gain is."""
    both = [prompt for prompt in exact[0] if all(prompt in each for each in (exact[1], *contained))]
    if not both:
        return None
    rows = [[fmean(values[prompt]) for values in (*exact, *contained)] for prompt in both]
    sums = [math.fsum(column) for column in zip(*rows, strict=True)]

    def parts(row: Sequence[float], num: int) -> tuple[float, float]:
        """Skill and manner without a prompt, of which `num` are left."""
        # Rounded, so that nothing is left where no other prompt has anything.
        shares = [round(total - value, 9) / max(num, 1) for total, value in zip(sums, row, strict=True)]
        return skill_and_manner(exact=(shares[0], shares[1]), contained=(shares[2], shares[3]))

    whole = parts([0.0] * 4, len(rows))
    without = [parts(row, len(rows) - 1) for row in rows]
    skill, manner = (
        jackknife(value, without=values) for value, values in zip(whole, zip(*without, strict=True), strict=True)
    )
    return skill, manner


def _shown(samples: Iterable[SampleResult], mode: Mode) -> list[SampleResult]:
    return [sample for sample in samples if sample.mode == mode and sample.is_shown]


def _values(samples: Iterable[SampleResult], reward: str) -> Values:
    """Each prompt's values of a reward; completions without one are left out."""
    values: Values = {}
    for sample in samples:
        if (value := sample.reward(reward)) is not None:
            values.setdefault(sample.prompt_id, []).append(value)
    return values


def _num_tries(models: Iterable[Values]) -> int | None:
    return max((len(row) for values in models for row in values.values()), default=None)


def _any_of(num_tries: int | None, exact: Values) -> Values:
    """1 for each prompt with a right one among its `num_tries` completions, else 0; prompts with fewer are left out."""
    return {prompt: [max(row)] for prompt, row in exact.items() if len(row) == num_tries}


def _share(values: Values) -> Estimate | None:
    return proportion([fmean(row) for row in values.values()], num_samples=sum(map(len, values.values())))


def _gain(before: Values, after: Values) -> Estimate | None:
    """`after` minus `before`, prompt by prompt."""
    return paired([fmean(row) - fmean(before[prompt]) for prompt, row in after.items() if prompt in before])


def _mean(values: Iterable[float | None]) -> float | None:
    known: list[float] = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None
