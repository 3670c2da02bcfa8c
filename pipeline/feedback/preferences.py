"""What people said of completions, as a reward model learns it; and when that is enough to learn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from pipeline.config.feedback import Feedback, Refit
from pipeline.feedback.exchange.labels import Comparison, Report, comparisons, standing
from pipeline.feedback.overview import set_aside
from pipeline.feedback.records import Item, Judged, Judgement, JudgementKind
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersion, Trigger
from pipeline.feedback.weak_labels import weak_comparisons
from pipeline.records import MOST_TIED, Opinion, Preference, Ranking, RaterKind, Rating

FORGOTTEN = "forgotten"
"""The rater of what was said by somebody who asked to be forgotten."""
MOST_STARS = 5


@dataclass(frozen=True)
class HumanOpinion:
    """What somebody said of completions of a policy.

    judged_at: in seconds since 1970; None where nobody said it, and it was told from what he did (it weighs less then).
    foreseen: the share of what it decides between two completions for which the reward model of that time gave the
    better one the higher score; None where it decides nothing, and where there was no score.
    """

    opinion: Opinion
    judged_at: float | None
    foreseen: float | None


def human_opinions(store: FeedbackStore, settings: Feedback, criteria: Collection[str]) -> Iterator[HumanOpinion]:
    """The opinions of a store: ties too, without repeats and items whose judgement is known; weak ones at the end.

    Ratings are learned by criterion where the reward model scores all `criteria` that they are about; else they compare
    every two completions, as it is with a ranking of which more share a rank than one can learn from. Raters who are
    set aside are left out; so are texts that no policy wrote, which have no tokens.
    """
    judged = list(store.judged())
    aside = set_aside(judged, settings)
    for each in judged:
        if is_learned(each.item):
            heard = tuple(said for said in each.judgements if not said.is_repeat and said.rater not in aside)
            for judgement in standing(Judged(each.item, heard), Report()):
                yield from _opinions(each.item, judgement, criteria)
    if settings.weak_weight > 0:
        for item, found in weak_comparisons(store.viewings(), weight=settings.weak_weight, aside=aside):
            if is_learned(item) and found.weight > 0:
                yield HumanOpinion(_preference(item, found, found.rater, found.weight), None, None)


def is_learned(item: Item) -> bool:
    """Whether a reward model learns from an item: nobody knew its judgement, and a policy wrote its completions."""
    return item.gold is None and all(candidate.token_ids for candidate in item.candidates)


def _opinions(item: Item, judgement: Judgement, criteria: Collection[str]) -> Iterator[HumanOpinion]:
    compared = comparisons(Judged(item, (judgement,)), Report())
    rater, content = judgement.rater or FORGOTTEN, judgement.content
    if judgement.kind is JudgementKind.RANKING and max(Counter(content["ranks"]).values()) <= MOST_TIED:
        ids, texts = zip(*((each.token_ids, each.text) for each in item.candidates), strict=True)
        yield HumanOpinion(
            Ranking(item.prompt_id, ids, texts, tuple(content["ranks"]), rater, RaterKind.HUMAN),
            judgement.judged_at,
            _foreseen(item, compared),
        )
    elif judgement.kind is JudgementKind.RATING and {*chain(*content["ratings"])} <= {*criteria}:
        for each, stars in zip(item.candidates, content["ratings"], strict=True):
            ratings = {name: (value - 1) / (MOST_STARS - 1) for name, value in stars.items()}
            rating = Rating(item.prompt_id, each.token_ids, each.text, ratings, rater, RaterKind.HUMAN)
            yield HumanOpinion(rating, judgement.judged_at, _foreseen(item, compared))
    else:
        for each in compared:
            preference = _preference(item, each, judgement.rater)
            yield HumanOpinion(preference, judgement.judged_at, _foreseen(item, [each]))


def _preference(item: Item, found: Comparison, rater: str | None, weight: float = 1.0) -> Preference:
    first, second = item.candidates[found.first], item.candidates[found.second]
    if found.chosen == found.second:
        first, second = second, first
    return Preference(
        prompt_id=item.prompt_id,
        chosen_ids=first.token_ids,
        rejected_ids=second.token_ids,
        chosen=first.text,
        rejected=second.text,
        rater=rater or FORGOTTEN,
        rater_kind=RaterKind.HUMAN,
        is_tie=found.chosen is None,
        weight=weight,
    )


def _foreseen(item: Item, compared: Sequence[Comparison]) -> float | None:
    """The share of the choices in which the chosen one had the higher score."""
    right: list[bool] = []
    for each in compared:
        first, second = (item.candidates[place].score for place in (each.first, each.second))
        if each.chosen is not None and first is not None and second is not None:
            right.append(first != second and (first > second) == (each.chosen == each.first))
    return fmean(right) if right else None


def new_since(opinions: Sequence[HumanOpinion], last: RewardVersion | None) -> list[HumanOpinion]:
    """Those that somebody has said since a refit; all where there was none."""
    until = 0.0 if last is None else last.until
    return [each for each in opinions if each.judged_at is not None and each.judged_at > until]


def foreseen(opinions: Sequence[HumanOpinion]) -> dict[str, float] | None:
    """How often reward models were right on what they had not learned; None where that is not known."""
    known = [each.foreseen for each in opinions if each.foreseen is not None]
    return {"num": len(known), "accuracy": fmean(known)} if known else None


def reason_to_refit(
    opinions: Sequence[HumanOpinion], last: RewardVersion | None, settings: Refit, *, since: float, now: float
) -> Trigger | None:
    """Why the reward model should learn again; None where there is too little that is new.

    last: the refit before; since: when that was, or when the run began, in seconds since 1970, like `now`.
    """
    new = new_since(opinions, last)
    if len(new) >= settings.after_judgements:
        return Trigger.COUNT
    if len(new) < settings.least_judgements:
        return None
    if now - since >= settings.after_s:
        return Trigger.TIME
    found, before = foreseen(new), None if last is None else last.held_out["accuracy"]
    if found and found["num"] >= settings.least_judgements and before is not None:
        return Trigger.DRIFT if before - found["accuracy"] > settings.drift else None
    return None
