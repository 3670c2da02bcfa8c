"""Clicks made comparisons: which is taken to be better, how much that weighs, and where a click says nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from pipeline.feedback.queue import Event
from pipeline.feedback.records import (
    Act,
    Candidate,
    EventKind,
    Item,
    Judged,
    Judgement,
    JudgementKind,
    MediumRef,
    Task,
    Viewing,
)
from pipeline.feedback.weak_labels import WeakComparison, weak_comparisons
from pipeline.records import MediaKind, Message
from tests.feedback.office import MakeItem, Office
from tests.feedback.test_queue import choose

CHOSEN, COPIED, REGENERATED, THUMB = EventKind.CHOSEN, EventKind.COPIED, EventKind.REGENERATED, EventKind.THUMB
DWELT, OPENED, PLAYED = EventKind.DWELT, EventKind.OPENED, EventKind.PLAYED


def viewing(*acts: Act, num: int = 3, order: tuple[int, ...] = (), **more: bool) -> Viewing:
    candidates = tuple(Candidate(str(place)) for place in range(num))
    item = Item(Task.RANKING, "p", "demo", (Message("user", "Which?"),), (), candidates)
    return Viewing(item, "ada", order or tuple(range(num)), acts, **more)


def told(*viewings: Viewing, weight: float = 0.2) -> set[tuple[int, int, int | None]]:
    return {(each.first, each.second, each.chosen) for _, each in weak_comparisons(viewings, weight=weight)}


def test_what_was_chosen_among_k_is_better_than_each_of_the_others() -> None:
    shown = viewing(Act(CHOSEN, 1))
    assert told(shown) == {(0, 1, 1), (1, 2, 1)}
    ((item, first), _) = weak_comparisons([shown], weight=0.2)
    # A single click has the mean weight, wherever it fell.
    assert (item, first) == (shown.item, WeakComparison(0, 1, 1, rater="ada", weight=0.2))


def test_what_was_regenerated_or_got_a_thumb_down_is_worse_and_the_last_thumb_counts() -> None:
    assert told(viewing(Act(REGENERATED, 2))) == {(0, 2, 0), (1, 2, 1)}
    assert told(viewing(Act(THUMB, 0, value=-1), num=2)) == {(0, 1, 1)}
    assert told(viewing(Act(THUMB, 0, value=-1), Act(THUMB, 0, value=1), num=2)) == {(0, 1, 0)}
    assert told(viewing(Act(COPIED, 0), Act(THUMB, 0, value=-1), num=2)) == {(0, 1, 1)}
    assert told(viewing(Act(THUMB, 0, value=-1), Act(THUMB, 0, value=0), num=2)) == set()


def test_clicks_that_are_alike_and_acts_about_the_whole_say_nothing() -> None:
    assert told(viewing(Act(COPIED, 0), Act(COPIED, 1), num=2)) == set()
    assert told(viewing(Act(EventKind.SHOWN), Act(REGENERATED), Act(DWELT, value=9.0), num=2)) == set()


def test_what_was_not_looked_at_is_not_worse() -> None:
    assert told(viewing(Act(OPENED, 0), Act(DWELT, 1, value=3.0), Act(COPIED, 1))) == {(0, 1, 1)}


def test_who_has_left_at_once_or_has_not_listened_is_not_heard() -> None:
    click = Act(COPIED, 0)
    assert told(viewing(click, Act(DWELT, value=0.4))) == set()
    assert told(viewing(click, Act(DWELT, value=0.4), Act(DWELT, value=0.7))) != set()
    silent = viewing(click)
    sound = replace(silent, item=replace(silent.item, media=(MediumRef(MediaKind.AUDIO, "a"),)))
    picture = replace(silent, item=replace(silent.item, media=(MediumRef(MediaKind.IMAGE, "a"),)))
    assert told(sound) == set() and told(picture) != set()
    assert told(replace(sound, acts=(Act(PLAYED, value=2.0), click))) != set()


def test_who_has_answered_or_is_set_aside_gives_none_and_a_weight_of_zero_switches_them_off() -> None:
    shown = viewing(Act(COPIED, 0))
    assert told(replace(shown, has_answered=True)) == set() == told(shown, weight=0)
    assert weak_comparisons([shown], weight=0.2, aside={"ada"}) == []
    with pytest.raises(ValueError, match=r"weight is 1\.5"):
        weak_comparisons([shown], weight=1.5)


def test_a_click_where_few_look_weighs_more_and_never_more_than_a_judgement() -> None:
    # 25 clicks on the first place and 5 on the second; with 5 more at each the second is a third as likely: 30 to 10.
    first, second = viewing(Act(COPIED, 0), num=2), viewing(Act(COPIED, 0), num=2, order=(1, 0))
    shown = [first] * 25 + [second] * 5
    weights = [each.weight for _, each in weak_comparisons(shown, weight=0.2)]
    # Inverses are 1 and 3, their mean over the 30 clicks is 4/3.
    assert weights == pytest.approx([0.15] * 25 + [0.45] * 5)
    assert np.mean(weights) == pytest.approx(0.2)
    strong = [each.weight for _, each in weak_comparisons(shown, weight=0.8)]
    assert strong == pytest.approx([0.6] * 25 + [1.0] * 5)


def test_the_weights_do_not_depend_on_the_order_in_which_completions_lie_in_the_item() -> None:
    results = set[tuple[float, ...]]()
    for names in permutations(range(3)):
        shown = [viewing(Act(COPIED, names[at]), order=names) for at in (0, 0, 0, 1, 2)]
        results.add(tuple(round(each.weight, 9) for _, each in weak_comparisons(shown, weight=0.2)))
    assert len(results) == 1


def test_the_store_gives_what_was_done_with_the_item_the_rater_and_whether_he_has_answered(
    office: Office, make_item: MakeItem
) -> None:
    office.store.offer([make_item("a", uncertainty=0.9), make_item("b"), make_item("known", gold={"chosen": 0})])
    queue, rater = office.queue, office.rater()
    assert list(office.store.viewings()) == []
    answered = queue.next(rater)
    assert answered is not None
    queue.record(rater, [Event("one", answered.id, COPIED, 1), Event("two", answered.id, DWELT, value=3.5)])
    choose(queue, rater, answered)
    waiting = queue.next(rater)
    assert waiting is not None
    queue.record(rater, [Event("three", waiting.id, THUMB, 0, -1.0)])
    found = {each.item.prompt_id: each for each in office.store.viewings(run="run")}
    assert found == {
        "prompt-a": Viewing(
            answered.item,
            rater.name,
            answered.order,
            (Act(COPIED, answered.order[1], 1), Act(DWELT, value=3.5)),
            has_answered=True,
        ),
        "prompt-b": Viewing(waiting.item, rater.name, waiting.order, (Act(THUMB, waiting.order[0], 0, -1.0),)),
    }
    assert list(office.store.viewings(run="another")) == []
    queue.judge(
        rater, key="skip", presentation=waiting.id, kind=JudgementKind.SKIP, content={"reason": ""}, latency_s=None
    )
    assert [each.has_answered for each in office.store.viewings()].count(True) == 1
    queue.undo(rater, key="undo-skip")
    queue.undo(rater, key="undo-answer")
    assert not any(each.has_answered for each in office.store.viewings())
    # What he said elsewhere is an answer too.
    said = Judgement("elsewhere", waiting.item.id, rater.name, JudgementKind.PAIR, {"chosen": 0}, 5.0)
    office.store.bring([Judged(waiting.item, (said,))])
    assert {each.item.prompt_id for each in office.store.viewings() if each.has_answered} == {"prompt-b"}
    assert [each.chosen for _, each in weak_comparisons(office.store.viewings(), weight=0.2)] == [answered.order[1]]


def test_nothing_is_left_of_who_was_forgotten(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    rater = office.rater()
    shown = office.queue.next(rater)
    assert shown is not None
    office.queue.record(rater, [Event("one", shown.id, COPIED, 1)])
    office.register.forget(rater.name)
    assert list(office.store.viewings()) == []
