"""What people said of two completions, as a reward model learns it; and when that is enough to learn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.feedback import Feedback, Refit
from pipeline.feedback.exchange.labels import comparisons
from pipeline.feedback.overview import standings
from pipeline.feedback.records import Judged
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersion, Trigger
from pipeline.records import Preference, RaterKind


@dataclass(frozen=True)
class HumanPreference:
    """A comparison that somebody made of completions of a policy.

    judged_at: in seconds since 1970. is_foreseen: whether the reward model of that time gave the chosen one the higher
    score; None of a tie, and where there was no score.
    """

    preference: Preference
    judged_at: float
    is_foreseen: bool | None


def human_preferences(store: FeedbackStore, settings: Feedback) -> Iterator[HumanPreference]:
    """The comparisons of a store: ties too, without repeats and items whose judgement is known.

    A ranking or ratings compare every two. Raters who are set aside are left out; so are texts that no policy wrote,
    which have no tokens.
    """
    judged = list(store.judged())
    aside = {rater for rater, known in standings(judged, settings).items() if known.reason is not None}
    for each in judged:
        item = each.item
        if item.gold is not None or not all(candidate.token_ids for candidate in item.candidates):
            continue
        heard = tuple(said for said in each.judgements if not said.is_repeat and said.rater not in aside)
        for found in comparisons(Judged(item, heard), Counter()):
            first, second = item.candidates[found.first], item.candidates[found.second]
            if found.chosen == found.second:
                first, second = second, first
            assert found.judgement is not None
            is_tie = found.chosen is None
            scores = None if is_tie or first.score is None or second.score is None else (first.score, second.score)
            yield HumanPreference(
                Preference(
                    prompt_id=item.prompt_id,
                    chosen_ids=first.token_ids,
                    rejected_ids=second.token_ids,
                    chosen=first.text,
                    rejected=second.text,
                    rater=found.judgement.rater or "forgotten",
                    rater_kind=RaterKind.HUMAN,
                    is_tie=is_tie,
                ),
                found.judgement.judged_at,
                None if scores is None else scores[0] > scores[1],
            )


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
    new = [each for each in preferences if last is None or each.judged_at > last.until]
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
