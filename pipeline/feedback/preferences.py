"""What people said of two completions, as a reward model learns it; and when that is enough to learn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.feedback import Feedback, Refit
from pipeline.feedback.exchange.labels import Comparison, comparisons
from pipeline.feedback.overview import set_aside
from pipeline.feedback.records import Item, Judged
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersion, Trigger
from pipeline.feedback.weak_labels import weak_comparisons
from pipeline.records import Preference, RaterKind


@dataclass(frozen=True)
class HumanPreference:
    """A comparison that somebody made of completions of a policy.

    judged_at: in seconds since 1970; None where nobody said it, and it was told from what he did (it weighs less then).
    is_foreseen: whether the reward model of that time gave the chosen one the higher score; None of a tie, and where
    there was no score.
    """

    preference: Preference
    judged_at: float | None
    is_foreseen: bool | None


def human_preferences(store: FeedbackStore, settings: Feedback) -> Iterator[HumanPreference]:
    """The comparisons of a store: ties too, without repeats and items whose judgement is known; weak ones at the end.

    A ranking or ratings compare every two. Raters who are set aside are left out; so are texts that no policy wrote,
    which have no tokens.
    """
    judged = list(store.judged())
    aside = set_aside(judged, settings)
    for each in judged:
        if is_learned(each.item):
            heard = tuple(said for said in each.judgements if not said.is_repeat and said.rater not in aside)
            for found in comparisons(Judged(each.item, heard), Counter()):
                assert found.judgement is not None
                yield _preference(each.item, found, found.judgement.rater, judged_at=found.judgement.judged_at)
    if settings.weak_weight > 0:
        for item, found in weak_comparisons(store.viewings(), weight=settings.weak_weight, aside=aside):
            if is_learned(item) and found.weight > 0:
                yield _preference(item, found, found.rater, weight=found.weight)


def is_learned(item: Item) -> bool:
    """Whether a reward model learns from an item: nobody knew its judgement, and a policy wrote its completions."""
    return item.gold is None and all(candidate.token_ids for candidate in item.candidates)


def _preference(
    item: Item, found: Comparison, rater: str | None, *, judged_at: float | None = None, weight: float = 1.0
) -> HumanPreference:
    first, second = item.candidates[found.first], item.candidates[found.second]
    if found.chosen == found.second:
        first, second = second, first
    is_tie = found.chosen is None
    preference = Preference(
        prompt_id=item.prompt_id,
        chosen_ids=first.token_ids,
        rejected_ids=second.token_ids,
        chosen=first.text,
        rejected=second.text,
        rater=rater or "forgotten",
        rater_kind=RaterKind.HUMAN,
        is_tie=is_tie,
        weight=weight,
    )
    is_known = not is_tie and first.score is not None and second.score is not None
    return HumanPreference(preference, judged_at, (first.score or 0.0) > (second.score or 0.0) if is_known else None)


def new_since(preferences: Sequence[HumanPreference], last: RewardVersion | None) -> list[HumanPreference]:
    """Those that somebody has said since a refit; all where there was none."""
    until = 0.0 if last is None else last.until
    return [each for each in preferences if each.judged_at is not None and each.judged_at > until]


def foreseen(preferences: Sequence[HumanPreference]) -> dict[str, float] | None:
    """How often reward models were right on comparisons that they had not learned; None where that is not known."""
    known = [each.is_foreseen for each in preferences if each.is_foreseen is not None]
    return {"num": len(known), "accuracy": sum(known) / len(known)} if known else None


def reason_to_refit(
    preferences: Sequence[HumanPreference], last: RewardVersion | None, settings: Refit, *, since: float, now: float
) -> Trigger | None:
    """Why the reward model should learn again; None where there is too little that is new.

    last: the refit before; since: when that was, or when the run began, in seconds since 1970, like `now`.
    """
    new = new_since(preferences, last)
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
