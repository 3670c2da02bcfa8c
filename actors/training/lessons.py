"""What preference learning is taught: pairs, or completions that are good or bad; their losses, and what is shown.

opinions of a batch -> lessons -> log probabilities of whole completions -> the recipe's loss, rewards
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actors.training.opinions import Example, compared
from actors.training.references import Asked, reference_key
from pipeline.algorithms.aggregation import weighted_mean
from pipeline.algorithms.direct_preference import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from pipeline.algorithms.kahneman_tversky import apo_zero_loss, kl_baseline, kto_loss
from pipeline.algorithms.reference_free import orpo_loss, simpo_loss
from pipeline.config import PreferenceLearning, PreferenceLoss
from pipeline.records import OVERALL, Preference, Rating

UNDECIDED = 0.5
"""A rating in the middle of the scale, which says neither good nor bad."""


@dataclass(frozen=True)
class Lesson:
    """Completions of a prompt, and what is said of them: the better one first, or one alone that is good or bad.

    foreign: a completion of another prompt of the batch, on which the KL to the reference is measured; None where
        nobody asks, or there is none.
    """

    asked: tuple[Asked, ...]
    is_good: bool = True
    margin: float = 0.0
    weight: float = 1.0
    foreign: Asked | None = None


def lessons_of(examples: Sequence[Example], loss: PreferenceLoss) -> list[Lesson]:
    """The lessons of a batch. Those without one, such as ties, say nothing that this loss could learn.

    Of a ranking every decided pair is one, and together they weigh as many choices as it is. For losses without pairs
    the two of a pair are a good and a bad completion, and a rating is either, unless it is in the middle of the scale.
    """
    if not loss.is_unpaired:
        return [lesson for each in examples for lesson in _pairs(each)]
    alone = [lesson for each in examples for lesson in _judged(each)]
    return _with_foreign(alone) if loss.needs_baseline else alone


def _pairs(example: Example) -> list[Lesson]:
    opinion = example.opinion
    decided = [(one, other) for one, other, is_tie in compared(opinion) if not is_tie]
    margin = opinion.margin if isinstance(opinion, Preference) else 0.0
    return [
        Lesson(
            (_asked(example, one), _asked(example, other)),
            margin=margin,
            weight=opinion.weight * opinion.num_observations / len(decided),
        )
        for one, other in decided
    ]


def _judged(example: Example) -> list[Lesson]:
    opinion = example.opinion
    match opinion:
        case Preference(is_tie=False):
            good, bad = (Lesson((_asked(example, place),), weight=opinion.weight) for place in range(2))
            return [good, replace(bad, is_good=False)]
        case Rating(ratings=ratings):
            value = ratings.get(OVERALL, sum(ratings.values()) / len(ratings))
            lesson = Lesson((_asked(example, 0),), is_good=value > UNDECIDED, weight=opinion.weight)
            return [] if value == UNDECIDED else [lesson]
        case _:
            return []


def _asked(example: Example, place: int) -> Asked:
    """The completion at a place of what the example is about."""
    opinion = example.opinion
    given = (opinion.chosen_given, opinion.rejected_given)[place] if isinstance(opinion, Preference) else ()
    return Asked(example.prompt, opinion.completions[place], given)


def _with_foreign(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Each lesson with the completion of the nearest one before it, in a circle, that has another prompt."""
    found: list[Lesson] = []
    for place, lesson in enumerate(lessons):
        prompt = lesson.asked[0].prompt
        before = (lessons[place - step].asked[0] for step in range(1, len(lessons)))
        other = next((each for each in before if each.prompt.id != prompt.id), None)
        found.append(lesson if other is None else replace(lesson, foreign=other._replace(prompt=prompt)))
    return found


def all_asked(lessons: Sequence[Lesson]) -> list[Asked]:
    """Every completion whose log probability under the reference some lesson needs."""
    return [each for lesson in lessons for each in (*lesson.asked, *([lesson.foreign] if lesson.foreign else []))]


@dataclass(frozen=True)
class Totals:
    """What a whole optimizer step holds: the global normalisers, and the baseline.

    weight: of all lessons. num_chosen, num_rejected: completions; chosen ones are the good ones too. num_tokens: of the
    chosen, by weight. baseline: KL to the reference, in nats.
    """

    weight: float
    num_chosen: int
    num_rejected: int
    num_tokens: float
    baseline: float = 0.0

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Totals:
        good = [each for each in lessons if each.is_good]
        return cls(
            weight=sum(each.weight for each in lessons),
            num_chosen=len(good),
            num_rejected=sum(len(each.asked) for each in lessons) - len(good),
            num_tokens=sum(each.weight * each.asked[0].num_learned for each in good),
        )


Sums = Callable[[Sequence[Lesson]], Tensor]
"""Log probabilities [N] of all completions of some lessons, one lesson after the other, in nats."""


@dataclass(frozen=True)
class LessonLosses:
    """The losses of a pass.

    references: log probabilities of completions under the reference, by `reference_key`.
    """

    sums: Sums
    settings: PreferenceLearning
    references: Mapping[bytes, float]

    def __call__(self, lessons: Sequence[Lesson], totals: Totals) -> dict[str, Tensor]:
        """What is minimised, and beside it the field's metrics, each a share of the whole step's."""
        return self.of_sums(lessons, self.sums(lessons), totals)

    def of_sums(self, lessons: Sequence[Lesson], sums: Tensor, totals: Totals) -> dict[str, Tensor]:
        """The same of log probabilities [N] that are known.

        `rewards/chosen` and `logps/chosen` are means over chosen or good completions, `rewards/rejected` over the
        others; `rewards/margin` is their difference. `rewards/accuracy` is the share of pairs whose chosen reward is
        higher (of equal ones, half), or of completions whose reward is on their side of the baseline.
        """
        lengths = torch.tensor([asked.num_learned for each in lessons for asked in each.asked], device=sums.device)
        weight = sums.new_tensor([each.weight for each in lessons])
        is_chosen = torch.tensor(
            [each.is_good and not place for each in lessons for place in range(len(each.asked))], device=sums.device
        )
        ratios = sums / lengths if not self.settings.loss.needs_reference else sums - self._reference(lessons, sums)
        loss = (
            self._of_judged(ratios, is_chosen, weight, totals)
            if self.settings.loss.is_unpaired
            else self._of_pairs(ratios, lengths, lessons, weight, totals)
        )
        found: dict[str, Tensor] = {"loss": loss}
        if self.settings.likelihood_weight and totals.num_tokens:
            good = weight[torch.tensor([each.is_good for each in lessons], device=sums.device)]
            found["sft_loss"] = -weighted_mean(values=sums[is_chosen], weight=good, total_weight=totals.num_tokens)
            found["loss"] = loss + self.settings.likelihood_weight * found["sft_loss"]
        return found | self._shown(self.settings.beta * ratios.detach(), sums.detach(), is_chosen, totals)

    def _of_pairs(
        self, ratios: Tensor, lengths: Tensor, lessons: Sequence[Lesson], weight: Tensor, totals: Totals
    ) -> Tensor:
        settings = self.settings
        chosen, rejected, total, beta = ratios[0::2], ratios[1::2], totals.weight, settings.beta
        margin = settings.margin_weight * weight.new_tensor([each.margin for each in lessons])
        smoothing = settings.label_smoothing
        match settings.loss:
            case PreferenceLoss.ROBUST:
                return robust_dpo_loss(
                    chosen=chosen,
                    rejected=rejected,
                    margin=margin,
                    weight=weight,
                    total_weight=total,
                    beta=beta,
                    label_smoothing=smoothing,
                )
            case PreferenceLoss.HINGE:
                return hinge_loss(
                    chosen=chosen, rejected=rejected, margin=margin, weight=weight, total_weight=total, beta=beta
                )
            case PreferenceLoss.IPO:
                return ipo_loss(
                    chosen=chosen,
                    rejected=rejected,
                    chosen_lengths=lengths[0::2],
                    rejected_lengths=lengths[1::2],
                    weight=weight,
                    total_weight=total,
                    beta=beta,
                )
            case PreferenceLoss.SIMPO:
                return simpo_loss(
                    chosen=chosen,
                    rejected=rejected,
                    margin=margin,
                    weight=weight,
                    total_weight=total,
                    beta=beta,
                    gamma=settings.gamma,
                    label_smoothing=smoothing,
                )
            case PreferenceLoss.ORPO:
                return orpo_loss(chosen=chosen, rejected=rejected, weight=weight, total_weight=total, beta=beta)
            case _:
                return dpo_loss(
                    chosen=chosen,
                    rejected=rejected,
                    margin=margin,
                    weight=weight,
                    total_weight=total,
                    beta=beta,
                    label_smoothing=smoothing,
                )

    def _of_judged(self, ratios: Tensor, is_good: Tensor, weight: Tensor, totals: Totals) -> Tensor:
        settings = self.settings
        sides = weight.new_tensor([settings.undesirable_weight, settings.desirable_weight])[is_good.long()]
        weight, total, beta = weight * sides, totals.weight, settings.beta
        if settings.loss is PreferenceLoss.APO_ZERO:
            return apo_zero_loss(log_ratios=ratios, is_good=is_good, weight=weight, total_weight=total, beta=beta)
        return kto_loss(
            log_ratios=ratios,
            is_good=is_good,
            weight=weight,
            total_weight=total,
            beta=beta,
            baseline=totals.baseline,
        )

    def _shown(self, rewards: Tensor, sums: Tensor, is_chosen: Tensor, totals: Totals) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, mask, count in (
            ("chosen", is_chosen, totals.num_chosen),
            ("rejected", ~is_chosen, totals.num_rejected),
        ):
            if count:
                found[f"rewards/{name}"] = rewards[mask].sum() / count
                found[f"logps/{name}"] = sums[mask].sum() / count
        if totals.num_chosen and totals.num_rejected:
            found["rewards/margin"] = found["rewards/chosen"] - found["rewards/rejected"]
        if self.settings.loss.is_unpaired:
            ahead = torch.where(is_chosen, rewards, -rewards) - torch.where(is_chosen, 1, -1) * (
                self.settings.beta * totals.baseline
            )
        else:
            ahead = rewards[0::2] - rewards[1::2]
        right = (ahead > 0).float() + 0.5 * (ahead == 0).float()
        count = totals.num_chosen + (totals.num_rejected if self.settings.loss.is_unpaired else 0)
        return {**found, "rewards/accuracy": right.sum() / count}

    def _reference(self, lessons: Sequence[Lesson], like: Tensor) -> Tensor:
        return like.new_tensor([self.references[reference_key(each)] for lesson in lessons for each in lesson.asked])

    def with_baseline(self, lessons: Sequence[Lesson], scored: Callable[[Sequence[Asked]], list[float]]) -> Totals:
        """The totals of a whole step; for KTO with the baseline, which `scored` log probabilities give."""
        totals = Totals.of(lessons)
        foreign = [each.foreign for each in lessons if each.foreign]
        if not (self.settings.loss.needs_baseline and foreign):
            return totals
        ratios = [
            found - self.references[reference_key(each)] for each, found in zip(foreign, scored(foreign), strict=True)
        ]
        return replace(totals, baseline=kl_baseline(sum_log_ratios=sum(ratios), num=len(ratios)))
