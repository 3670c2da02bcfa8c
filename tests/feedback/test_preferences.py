"""What people said of completions, on its way to the reward model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import load_recipe
from pipeline.feedback.preferences import human_opinions, new_since
from pipeline.feedback.queue import Event
from pipeline.feedback.records import EventKind, Item, Judged, Judgement, JudgementKind, Task
from pipeline.records import Preference, Ranking, RaterKind, Rating
from tests.feedback.office import PLAIN, MakeItem, Office


def test_what_the_reward_model_learns_leaves_out_repeats_known_items_and_raters_who_are_set_aside(
    office: Office, make_item: MakeItem
) -> None:
    recipe = load_recipe(None, ["feedback.min_gold_judgements=1"])
    pair, gold = make_item("pair", num_raters=3), make_item("gold", gold={"chosen": 0})

    def of(item: Item, rater: str, chosen: int | None, **more: Any) -> Judgement:
        kind = JudgementKind.PAIR
        return Judgement(f"{rater}-{item.prompt_id}{more}", item.id, rater, kind, {"chosen": chosen}, 5.0, **more)

    bad = [of(gold, "bad", 1), of(pair, "bad", 0)]
    good = [of(gold, "good", 0), of(pair, "good", 1), of(pair, "good", 0, is_repeat=True)]
    even = [of(pair, "even", None)]
    said = [*bad, *good, *even]
    office.store.bring([Judged(item, tuple(e for e in said if e.item_id == item.id)) for item in (pair, gold)])
    preferences = [each.opinion for each in human_opinions(office.store, recipe.feedback, [])]
    found = sorted((each for each in preferences if isinstance(each, Preference)), key=lambda each: each.rater)
    assert [(each.rater, each.chosen, each.rejected, each.is_tie) for each in found] == [
        ("even", "pair0", "pair1", True),
        ("good", "pair1", "pair0", False),
    ]
    assert (found[1].chosen_ids, found[1].rejected_ids) == ((1, 7), (0, 7))


def test_a_ranking_is_learned_as_a_list_with_its_ties(office: Office, make_item: MakeItem) -> None:
    item = make_item("r", num=3, task=Task.RANKING)
    said = Judgement("key-ranking", item.id, "ada", JudgementKind.RANKING, {"ranks": [2, 1, 2]}, 5.0)
    office.store.bring([Judged(item, (said,))])
    (found,) = human_opinions(office.store, PLAIN, [])
    assert found.opinion == Ranking(
        "prompt-r",
        tuple(each.token_ids for each in item.candidates),
        ("r0", "r1", "r2"),
        (2, 1, 2),
        "ada",
        RaterKind.HUMAN,
    )


def test_ratings_are_learned_by_criterion_where_the_reward_model_has_them_and_else_compare_every_two(
    office: Office, make_item: MakeItem
) -> None:
    item = make_item("r", num=2, task=Task.RATING)
    stars = [{"helpful": 1, "safe": 5}, {"helpful": 4}]
    said = Judgement("key-rating", item.id, "ada", JudgementKind.RATING, {"ratings": stars}, 5.0)
    office.store.bring([Judged(item, (said,))])
    by_criterion = [each.opinion for each in human_opinions(office.store, PLAIN, ["helpful", "safe", "fluent"])]
    assert [(each.text, each.ratings) for each in by_criterion if isinstance(each, Rating)] == [
        ("r0", {"helpful": 0.0, "safe": 1.0}),
        ("r1", {"helpful": 0.75}),
    ]
    (compared,) = (each.opinion for each in human_opinions(office.store, PLAIN, ["helpful"]))
    # Means of 3 and of 4 stars.
    assert isinstance(compared, Preference) and (compared.chosen, compared.rejected) == ("r1", "r0")


@pytest.mark.parametrize(
    ("ranks", "foreseen"), [([1, 2, 3], 2 / 3), ([3, 2, 1], 1 / 3), ([1, 1, 1], None), ([2, 1, 2], 0.0)]
)
def test_what_a_reward_model_foresaw_of_a_ranking_is_the_share_of_its_choices(
    office: Office, make_item: MakeItem, ranks: list[int], foreseen: float | None
) -> None:
    item = make_item("r", num=3, task=Task.RANKING)
    # It holds the first one to be the best, and the second one the worst.
    scored = tuple(replace(each, score=score) for each, score in zip(item.candidates, (3.0, 1.0, 2.0), strict=True))
    item = replace(item, candidates=scored)
    said = Judgement("key-ranking", item.id, "ada", JudgementKind.RANKING, {"ranks": ranks}, 5.0)
    office.store.bring([Judged(item, (said,))])
    (found,) = human_opinions(office.store, PLAIN, [])
    assert found.foreseen == (foreseen if foreseen is None else pytest.approx(foreseen))


def test_what_somebody_copied_is_learned_too_with_less_weight_and_does_not_count_as_said(
    office: Office, make_item: MakeItem
) -> None:
    office.store.offer([make_item("copied")])
    rater, queue = office.rater(), office.queue
    shown = queue.next(rater)
    assert shown is not None
    acts = [Event("one", shown.id, EventKind.COPIED, 1), Event("two", shown.id, EventKind.DWELT, value=3.5)]
    queue.record(rater, acts)
    (found,) = human_opinions(office.store, PLAIN, [])
    texts = [shown.item.candidates[place].text for place in shown.order]
    assert isinstance(found.opinion, Preference)
    assert (found.opinion.chosen, found.opinion.rejected) == (texts[1], texts[0])
    assert found.opinion.weight == pytest.approx(PLAIN.weak_weight) and found.judged_at is None
    assert new_since([found], None) == []
    assert list(human_opinions(office.store, PLAIN.model_copy(update={"weak_weight": 0}), [])) == []
