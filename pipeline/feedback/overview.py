"""How the rating goes: throughput, agreement, and what is known of each rater. What the administrator sees."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean, median
from typing import Any

from pipeline.config.feedback import Feedback
from pipeline.feedback.agreement import (
    Level,
    bootstrap_alpha,
    krippendorff_alpha,
    mean_pairwise_kappa,
    position_bias,
)
from pipeline.feedback.judging import agrees_with_gold
from pipeline.feedback.records import ANSWERS, Judged, Judgement, JudgementKind
from pipeline.feedback.reliability import Reliability, reliabilities
from pipeline.feedback.store import FeedbackStore, RaterRow
from pipeline.feedback.strengths import version_strengths
from pipeline.feedback.versions import RewardVersions

SHORTEST_SPAN_S = 60.0
"""Time between a rater's first and last answer below which no rate is told."""


@dataclass(frozen=True)
class Standing:
    """What is known of how well a rater judges.

    gold_accuracy: share of right answers among `num_gold` whose right one is known. self_agreement: share of repeated
    items that were judged as before. reliability: expected share of right answers, by `num_shared` items that others
    have judged too (`reliabilities`). None: there are none, or too few.
    """

    num_gold: int
    gold_accuracy: float | None
    self_agreement: float | None
    num_shared: int
    reliability: float | None
    reason: str | None
    """Why the rater is set aside; None: is not."""


def standings(judged: Sequence[Judged], settings: Feedback) -> dict[str, Standing]:
    """What is known of each rater who has answered."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    same: defaultdict[str, list[bool]] = defaultdict(list)
    raters: dict[str, None] = {}
    for each in judged:
        firsts: dict[str, Hashable] = {}
        for said in _answers(each):
            raters[said.rater] = None
            if said.is_repeat:
                if said.rater in firsts:
                    same[said.rater].append(firsts[said.rater] == label(said))
                continue
            firsts[said.rater] = label(said)
            if each.item.gold is not None:
                right[said.rater].append(agrees_with_gold(said.content, each.item.gold))
    shared = reliabilities(judged)
    return {rater: _standing(right[rater], same[rater], shared.get(rater), settings) for rater in raters}


def set_aside(judged: Sequence[Judged], settings: Feedback) -> frozenset[str]:
    """The raters who are set aside: nothing is learned from what they say."""
    return frozenset(rater for rater, known in standings(judged, settings).items() if known.reason is not None)


def label(said: Judgement) -> Hashable:
    """An answer as one label: the completion that was chosen, those that are ranked first, or the mean rating."""
    if said.kind is JudgementKind.PAIR:
        return said.content["chosen"]
    if said.kind is JudgementKind.RANKING:
        ranks = said.content["ranks"]
        best = [place for place, rank in enumerate(ranks) if rank == min(ranks)]
        return best[0] if len(best) == 1 else None
    return fmean(score for rating in said.content["ratings"] for score in rating.values())


def agreement(judged: Sequence[Judged]) -> dict[str, Any]:
    """Krippendorff's alpha with its interval, and kappa, of all items that two or more have judged."""
    chosen: list[Mapping[str, float]] = []
    rated: list[Mapping[str, float]] = []
    for each in judged:
        firsts = {said.rater: said for said in reversed(_answers(each)) if not said.is_repeat}
        if len(firsts) > 1:
            is_rating = any(said.kind is JudgementKind.RATING for said in firsts.values())
            # A tie is a label like another one.
            labels = {rater: label(said) for rater, said in firsts.items()}
            unit = {rater: -1.0 if value is None else float(str(value)) for rater, value in labels.items()}
            (rated if is_rating else chosen).append(unit)
    units, level = (chosen, Level.NOMINAL) if chosen else (rated, Level.INTERVAL)
    interval = bootstrap_alpha(units, level=level) if units else None
    low, high = interval or (None, None)
    return {
        "alpha": krippendorff_alpha(units, level=level) if units else None,
        "low": low,
        "high": high,
        "num_items": len(units),
        "kappa": mean_pairwise_kappa(chosen) if chosen else None,
    }


def summary(store: FeedbackStore, settings: Feedback, versions: RewardVersions) -> dict[str, Any]:
    """All of it, as the administrator's page takes it."""
    judged = list(store.judged())
    said = [judgement for each in judged for judgement in each.judgements]
    known = standings(judged, settings)
    aside = {rater for rater, standing in known.items() if standing.reason is not None}
    hours = Counter(datetime.fromtimestamp(each.judged_at // 3600 * 3600, UTC).isoformat() for each in said)
    return {
        "raters": [_rater(row, said, known.get(row.name)) for row in store.raters()],
        "agreement": agreement(judged),
        "items": store.num_items(),
        "judgements": {
            "num": len(said),
            "withdrawn": store.num_withdrawn(),
            "by_kind": dict(Counter(each.kind.value for each in said)),
            "by_hour": [{"hour": hour, "num": number} for hour, number in sorted(hours.items())],
        },
        "strengths": [asdict(each) for each in version_strengths(judged, aside=aside)],
        "reward_model": _reward_model(versions),
    }


def _reward_model(versions: RewardVersions) -> dict[str, Any]:
    every, current = versions.all(), versions.current
    rows = [
        {
            "version": each.number,
            "num_judgements": each.num_judgements,
            "accuracy_new": None if each.fresh is None else each.fresh["accuracy"],
            "accuracy_before": each.held_out_before["accuracy"],
            "accuracy_after": each.held_out["accuracy"],
            "at": each.fitted_at,
            "state": "current" if each.number == current else "kept" if each.is_accepted else "refused",
        }
        for each in every
    ]
    return {"versions": rows, "num_eaten": every[-1].num_judgements if every else 0}


def _answers(judged: Judged) -> list[Any]:
    """Answers of raters whose names are known, but for those who skipped."""
    return [
        each for each in judged.judgements if each.kind in ANSWERS - {JudgementKind.SKIP} and each.rater is not None
    ]


def _standing(right: Sequence[bool], same: Sequence[bool], shared: Reliability | None, settings: Feedback) -> Standing:
    accuracy = fmean(right) if right else None
    reasons: list[str] = []
    if accuracy is not None and len(right) >= settings.min_gold_judgements and accuracy < settings.min_gold_accuracy:
        reasons.append(
            f"right in {accuracy:.0%} of {len(right)} items whose judgement is known; "
            f"feedback.min_gold_accuracy={settings.min_gold_accuracy:g}"
        )
    is_known = shared is not None and shared.num_items >= settings.min_shared_items
    if shared is not None and is_known and shared.value < settings.min_reliability:
        reasons.append(
            f"reliability {shared.value:.2f} by {shared.num_items} items that others have judged too; "
            f"feedback.min_reliability={settings.min_reliability:g}"
        )
    return Standing(
        num_gold=len(right),
        gold_accuracy=accuracy,
        self_agreement=fmean(same) if same else None,
        num_shared=shared.num_items if shared else 0,
        reliability=shared.value if shared and is_known else None,
        reason=" | ".join(reasons) or None,
    )


def _rater(row: RaterRow, said: Sequence[Judgement], standing: Standing | None) -> dict[str, Any]:
    mine = [each for each in said if each.rater == row.name and each.kind in ANSWERS]
    answers = [each for each in mine if each.kind is not JudgementKind.SKIP]
    latencies = [each.latency_s for each in answers if each.latency_s is not None]
    times = [each.judged_at for each in answers]
    span_s = max(times) - min(times) if times else 0.0
    shown = [each for each in answers if each.kind is JudgementKind.PAIR and each.order]  # The others were imported.
    pairs = [each for each in shown if each.content["chosen"] is not None]
    bias = position_bias(sum(each.order[0] == each.content["chosen"] for each in pairs), len(pairs))
    return {
        "name": row.name,
        "role": row.role.value,
        "revoked": row.is_revoked,
        "num_judged": len(answers),
        "num_skipped": len(mine) - len(answers),
        "median_latency_s": median(latencies) if latencies else None,
        "per_hour": len(answers) / span_s * 3600 if span_s >= SHORTEST_SPAN_S else None,
        "num_gold": standing.num_gold if standing else 0,
        "gold_accuracy": standing.gold_accuracy if standing else None,
        "position_bias": {
            "first_share": bias.share if bias else None,
            "p_value": bias.p_value if bias else None,
            "num": len(pairs),
        },
        "self_agreement": standing.self_agreement if standing else None,
        "reliability": standing.reliability if standing else None,
        "num_shared": standing.num_shared if standing else 0,
        "is_set_aside": bool(standing and standing.reason),
        "reason": standing.reason if standing else None,
    }
