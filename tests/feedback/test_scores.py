"""What people said of single completions, as numbers: against sums done by hand, in both databases."""

from __future__ import annotations

from typing import Any

from pipeline.feedback.queue import Event, Queue
from pipeline.feedback.raters import Person
from pipeline.feedback.records import Candidate, EventKind, JudgementKind, RaterRole, Task
from pipeline.feedback.scores import late_scores
from tests.feedback.office import MakeItem, Office

FIRST, SECOND = ("prompt-a", (0, 7)), ("prompt-a", (1, 7))


def say(queue: Queue, rater: Person, kind: JudgementKind, key: str = "", **content: Any) -> None:
    """Of what the rater is shown just now; places are those of the item."""
    shown = queue.next(rater)
    assert shown is not None
    if "place" in content:
        content["place"] = shown.order.index(content["place"])
    if "ratings" in content:
        content["ratings"] = [content["ratings"][place] for place in shown.order]
    key = key or f"{kind.value}-{content.get('place')}-{shown.id}"
    queue.judge(rater, key=key, presentation=shown.id, kind=kind, content=content, latency_s=1.0)


def thumb(queue: Queue, rater: Person, place: int, value: float, key: str) -> None:
    shown = queue.next(rater)
    assert shown is not None
    queue.record(rater, [Event(key, shown.id, EventKind.THUMB, shown.order.index(place), value)])


def test_a_rewards_is_clipped_a_rating_is_its_mean_around_three_and_a_thumb_is_a_whole_one(
    office: Office, make_item: MakeItem
) -> None:
    queue = office.queue
    office.store.offer([make_item("a", task=Task.RATING, num_raters=3)])
    expert, rater, silent = office.rater(RaterRole.EXPERT), office.rater(), office.rater()
    assert late_scores(office.store, 0) == {}
    say(queue, expert, JudgementKind.REWARD, place=0, value=7)
    say(queue, expert, JudgementKind.REWARD, place=1, value=-0.5)
    assert late_scores(office.store, 0) == {FIRST: 1.0, SECOND: -0.5}
    # Means 4.5 and 1, so 0.75 and -1.
    say(queue, rater, JudgementKind.RATING, ratings=[{"helpful": 5, "safe": 4}, {"helpful": 1}])
    assert late_scores(office.store, 0) == {FIRST: (1.0 + 0.75) / 2, SECOND: (-0.5 - 1.0) / 2}
    thumb(queue, silent, 1, -1.0, "down")
    thumb(queue, silent, 1, 1.0, "up")
    assert late_scores(office.store, 0) == {FIRST: 0.875, SECOND: (-0.5 - 1.0 + 1.0) / 3}
    thumb(queue, silent, 1, 0.0, "taken back")
    assert late_scores(office.store, 0) == {FIRST: 0.875, SECOND: (-0.5 - 1.0) / 2}


def test_of_one_rater_the_last_reward_counts_before_ratings_and_these_before_thumbs(
    office: Office, make_item: MakeItem
) -> None:
    queue, expert = office.queue, office.rater(RaterRole.EXPERT)
    office.store.offer([make_item("a", task=Task.RATING)])
    say(queue, expert, JudgementKind.REWARD, "one", place=0, value=0.1)
    say(queue, expert, JudgementKind.REWARD, "two", place=0, value=0.2)
    thumb(queue, expert, 0, -1.0, "down")
    thumb(queue, expert, 1, -1.0, "down too")
    say(queue, expert, JudgementKind.RATING, ratings=[{"helpful": 5}, {"helpful": 4}])
    assert late_scores(office.store, 0) == {FIRST: 0.2, SECOND: 0.5}
    # Once it is taken back, the thumb is all that is left of the second one.
    queue.undo(expert, key="undo")
    assert late_scores(office.store, 0) == {FIRST: 0.2, SECOND: -1.0}


def test_only_late_completions_of_the_run_with_tokens_count_and_raters_who_are_not_set_aside(
    office: Office, make_item: MakeItem
) -> None:
    queue, expert = office.queue, office.rater(RaterRole.EXPERT)
    others = (Candidate("b0"), Candidate("b1", (5,)))
    old, late = make_item("a", step=4), make_item("b", step=6, candidates=others, uncertainty=1.0)
    office.store.offer([old, late, make_item("c", step=None)])
    for _ in range(3):
        for place in (0, 1):
            say(queue, expert, JudgementKind.REWARD, place=place, value=0.5)
        say(queue, expert, JudgementKind.PAIR, chosen=0)
    found = late_scores(office.store, 5)
    assert found == {("prompt-b", (5,)): 0.5}
    assert late_scores(office.store, 4, run="run") == {**found, FIRST: 0.5, SECOND: 0.5}
    assert late_scores(office.store, 0, run="another") == {} == late_scores(office.store, 0, aside={expert.name})


def test_the_same_completion_in_two_items_and_of_raters_who_were_forgotten_has_the_mean_over_raters(
    office: Office, make_item: MakeItem
) -> None:
    queue, first, second = office.queue, office.rater(RaterRole.EXPERT), office.rater(RaterRole.EXPERT)
    office.store.offer([make_item("a", step=4), make_item("a", step=5)])
    say(queue, first, JudgementKind.REWARD, place=0, value=1.0)
    say(queue, second, JudgementKind.REWARD, place=0, value=0.0)
    for rater in (first, second):
        office.register.forget(rater.name)
    assert late_scores(office.store, 0) == {FIRST: 0.5}
