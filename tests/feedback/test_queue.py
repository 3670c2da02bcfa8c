"""Items, raters and judgements in a real SQLite file and a real PostgreSQL server."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from pipeline.feedback.judging import BadJudgement
from pipeline.feedback.queue import (
    MOST_LEFT,
    REPEAT_AFTER_S,
    Conflict,
    Event,
    NotYours,
    Presentation,
    Progress,
    Queue,
)
from pipeline.feedback.raters import Person
from pipeline.feedback.records import EventKind, Judged, Judgement, JudgementKind, RaterRole, Task
from tests.feedback.office import MakeItem, Office


def choose(queue: Queue, rater: Person, shown: Presentation | None, place: int | None = 0, key: str = "") -> None:
    """Chooses a completion by its place in the item."""
    assert shown is not None
    chosen = None if place is None else shown.order.index(place)
    queue.judge(
        rater,
        key=key or f"of {shown.id}",
        presentation=shown.id,
        kind=JudgementKind.PAIR,
        content={"chosen": chosen},
        latency_s=1.5,
    )


def standing(office: Office) -> list[Judgement]:
    return [judgement for judged in office.store.judged() for judgement in judged.judgements]


def test_a_judgement_names_the_completion_by_its_place_in_the_item_whatever_the_order_on_the_page(
    office: Office, make_item: MakeItem
) -> None:
    assert office.store.offer([make_item(str(number)) for number in range(8)]) == 8
    queue, rater = office.queue, office.rater()
    orders: Counter[tuple[int, ...]] = Counter()
    for _ in range(8):
        shown = queue.next(rater)
        assert shown is not None
        orders[shown.order] += 1
        choose(queue, rater, shown, 1)
    assert queue.next(rater) is None
    assert set(orders) == {(0, 1), (1, 0)}
    found = standing(office)
    assert [judgement.content for judgement in found] == [{"chosen": 1}] * 8
    assert {judgement.order for judgement in found} == set(orders)
    assert {(judgement.rater, judgement.latency_s) for judgement in found} == {(rater.name, 1.5)}
    assert queue.progress(rater).num_judged == 8


def test_items_come_back_as_they_were_put_in_and_the_same_item_is_taken_once(
    office: Office, make_item: MakeItem
) -> None:
    item = make_item("é中", num=3, task=Task.RANKING, uncertainty=0.25)
    assert (office.store.offer([item]), office.store.offer([item]), office.store.offer([])) == (1, 0, 0)
    shown = office.queue.next(office.rater())
    assert shown is not None and shown.item == item
    assert office.store.num_items() == {"num": 1, "done": 0, "waiting": 1, "gold": 0}


def test_an_item_is_kept_for_who_was_shown_it_until_the_lease_ends(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    queue, first, second = office.queue, office.rater(), office.rater()
    shown = queue.next(first)
    assert shown is not None and queue.next(first) == shown
    assert queue.next(second) is None
    office.clock.now += office.settings.lease_s + 1
    again = queue.next(second)
    assert again is not None and again.item == shown.item
    # Whoever was slower is heard as well.
    choose(queue, second, again)
    choose(queue, first, shown, 1)
    assert len(standing(office)) == 2


def test_what_is_least_certain_comes_first(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item(str(value), uncertainty=value) for value in (0.1, 0.9, 0.5)])
    queue, rater, seen = office.queue, office.rater(), list[float]()
    while (shown := queue.next(rater)) is not None:
        seen.append(shown.item.uncertainty)
        choose(queue, rater, shown)
    assert seen == [0.9, 0.5, 0.1]


def test_what_raters_disagree_about_is_asked_of_another_one_before_what_is_uncertain(
    office: Office, make_item: MakeItem
) -> None:
    office.store.offer([make_item(name, num_raters=2, uncertainty=0.1) for name in ("agreed", "disputed", "withdrawn")])
    queue, raters = office.use(max_raters=5), [office.rater() for _ in range(3)]
    for number, rater in enumerate(raters[:2]):
        while (shown := queue.next(rater)) is not None:
            choose(queue, rater, shown, 0 if shown.item.prompt_id == "prompt-agreed" else number)
    # The second one thinks better of what was asked last: of the one that is left nobody disagrees.
    again = queue.undo(raters[1], key="undo")
    assert again is not None
    others = {"prompt-disputed", "prompt-withdrawn"}
    office.store.offer([make_item("unsure", uncertainty=0.9), make_item("sure", uncertainty=0.05)])
    seen: list[str] = []
    while (shown := queue.next(raters[2])) is not None:
        seen.append(shown.item.prompt_id)
        choose(queue, raters[2], shown)
        office.clock.now += office.settings.lease_s + 1
    disputed = (others - {again.item.prompt_id}).pop()
    assert seen == [disputed, "prompt-unsure", again.item.prompt_id, "prompt-sure"]


def test_how_many_items_wait_does_not_matter_to_who_asks_for_the_next_one(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item(str(number), uncertainty=number / 300) for number in range(MOST_LEFT + 5)])
    queue, rater = office.queue, office.rater()
    assert queue.progress(rater) == Progress(0, MOST_LEFT)
    asked: list[tuple[str, Any]] = []
    engine = office.store.database._engine  # pyright: ignore[reportPrivateUsage]

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "ORDER BY items.priority DESC" in statement:
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    queue.next(rater)
    queue.progress(rater)
    event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 2
    with office.store.database.read() as connection:
        explain = "EXPLAIN QUERY PLAN " if office.store.database.is_sqlite else "EXPLAIN "
        if not office.store.database.is_sqlite:  # It sorts where it must, and else only where that costs less.
            connection.exec_driver_sql("SET enable_sort = off; SET enable_seqscan = off; SET enable_bitmapscan = off")
        for statement, parameters in asked:
            plan = str(connection.exec_driver_sql(explain + statement, parameters).all())
            assert "ix_items_queue" in plan and "Sort" not in plan and "TEMP B-TREE" not in plan, plan
    for number in range(6):
        assert queue.progress(rater) == Progress(number, min(MOST_LEFT, MOST_LEFT + 5 - number))
        choose(queue, rater, queue.next(rater))


def test_where_two_disagree_a_third_is_asked_and_nobody_judges_an_item_twice(
    office: Office, make_item: MakeItem
) -> None:
    office.store.offer([make_item("disputed", num_raters=2), make_item("agreed", num_raters=2)])
    queue, raters = office.queue, [office.rater() for _ in range(4)]
    num_asked = [0, 0, 0, 0]
    for number, rater in enumerate(raters):
        while (shown := queue.next(rater)) is not None:
            num_asked[number] += 1
            choose(queue, rater, shown, number % 2 if shown.item.prompt_id == "prompt-disputed" else 0)
    assert num_asked == [2, 2, 1, 0]
    assert office.store.num_items()["done"] == 2


def test_the_same_key_is_the_same_judgement_and_another_one_under_it_is_refused(
    office: Office, make_item: MakeItem
) -> None:
    office.store.offer([make_item("a"), make_item("b")])
    queue, rater = office.queue, office.rater()
    shown = queue.next(rater)
    choose(queue, rater, shown, 0, key="k")
    choose(queue, rater, shown, 0, key="k")
    assert len(standing(office)) == 1
    with pytest.raises(Conflict, match="key='k'"):
        choose(queue, rater, shown, 1, key="k")
    with pytest.raises(Conflict, match="undo"):
        choose(queue, rater, shown, 1, key="another")
    choose(queue, rater, queue.next(rater), 0, key="k2")
    assert len(standing(office)) == 2


def test_an_answer_is_undone_by_a_withdrawal_and_the_item_waits_again(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    queue, rater = office.queue, office.rater()
    assert queue.undo(rater, key="nothing yet") is None
    shown = queue.next(rater)
    choose(queue, rater, shown, 0, key="first")
    again = queue.undo(rater, key="u")
    assert again == shown and queue.undo(rater, key="u") == shown
    assert standing(office) == [] and office.store.num_items()["waiting"] == 1
    choose(queue, rater, again, 1, key="second")
    assert [judgement.content for judgement in standing(office)] == [{"chosen": 1}]


def test_skipping_leaves_the_item_to_another_rater(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    queue, first, second = office.queue, office.rater(), office.rater()
    shown = queue.next(first)
    assert shown is not None
    queue.judge(first, key="s", presentation=shown.id, kind=JudgementKind.SKIP, content={"reason": ""}, latency_s=None)
    assert queue.next(first) is None
    choose(queue, second, queue.next(second))
    assert office.store.num_items()["done"] == 1


def test_known_items_are_shown_now_and_then_and_old_ones_again(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item("gold", gold={"chosen": 1}), make_item("x")])
    queue, rater = office.use(gold_share=1.0), office.rater()
    shown = queue.next(rater)
    assert shown is not None and shown.item.gold == {"chosen": 1}
    choose(queue, rater, shown)
    second = queue.next(rater)
    assert second is not None and second.item.gold is None
    choose(queue, rater, second)
    queue = office.use(gold_share=0.0, repeat_share=1.0)
    assert queue.next(rater) is None
    office.clock.now += REPEAT_AFTER_S + 1
    repeats: list[Presentation] = []
    while (again := queue.next(rater)) is not None:
        choose(queue, rater, again, 1)
        repeats.append(again)
    assert {each.item.prompt_id for each in repeats} == {"prompt-gold", "prompt-x"}
    assert all(each.is_repeat for each in repeats)
    assert Counter((each.is_gold, each.is_repeat) for each in standing(office)) == Counter(
        [(True, False), (False, False), (True, True), (False, True)]
    )


def test_a_rater_speaks_only_of_what_he_was_shown(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item()])
    queue, first, second = office.queue, office.rater(), office.rater()
    shown = queue.next(first)
    with pytest.raises(NotYours):
        choose(queue, second, shown)
    assert shown is not None
    with pytest.raises(NotYours):
        queue.record(second, [Event("e", shown.id, EventKind.COPIED, 0)])
    assert standing(office) == []


@pytest.mark.parametrize(
    ("task", "kind", "content", "message"),
    [
        (Task.PAIR, JudgementKind.PAIR, {"chosen": 2}, "place=2"),
        (Task.PAIR, JudgementKind.PAIR, {"chosen": True}, "place=True"),
        (Task.PAIR, JudgementKind.PAIR, {"chosen": 0, "more": 1}, "content="),
        (Task.PAIR, JudgementKind.RATING, {"ratings": []}, "this item is a pair"),
        (Task.RANKING, JudgementKind.RANKING, {"ranks": [1]}, "ranks="),
        (Task.RANKING, JudgementKind.RANKING, {"ranks": [0, 1]}, "from 1 to 2"),
        (Task.RATING, JudgementKind.RATING, {"ratings": [{"helpful": 6}, {"helpful": 1}]}, "from 1 to 5"),
        (Task.RATING, JudgementKind.RATING, {"ratings": [{"pretty": 1}, {"helpful": 1}]}, "at least one of helpful"),
        (Task.PAIR, JudgementKind.CORRECTION, {"place": 0, "text": " "}, "says nothing"),
        (Task.PAIR, JudgementKind.CORRECTION, {"place": 0, "text": "\x00"}, "zero character"),
        (Task.PAIR, JudgementKind.REWARD, {"place": 0, "value": 1.0}, "experts"),
        (Task.PAIR, JudgementKind.WITHDRAWAL, {}, "undoing"),
    ],
)
def test_what_an_item_does_not_ask_for_is_refused_with_the_cure(
    office: Office, make_item: MakeItem, task: Task, kind: JudgementKind, content: dict[str, object], message: str
) -> None:
    office.store.offer([make_item(task=task)])
    queue, rater = office.queue, office.rater()
    shown = queue.next(rater)
    assert shown is not None
    with pytest.raises(BadJudgement, match=message):
        queue.judge(rater, key="k", presentation=shown.id, kind=kind, content=content, latency_s=1.0)
    assert standing(office) == []


def test_what_is_said_beside_an_answer_is_kept_in_places_of_the_item(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item(num=3, task=Task.RANKING)])
    queue, rater = office.queue, office.rater(RaterRole.EXPERT)
    shown = queue.next(rater)
    assert shown is not None

    def say(kind: JudgementKind, **content: object) -> None:
        queue.judge(rater, key=kind.value, presentation=shown.id, kind=kind, content=content, latency_s=2.0)

    say(JudgementKind.CORRECTION, place=0, text="'; DROP TABLE judgements; -- <script>")
    say(JudgementKind.HARMFUL, place=1)
    say(JudgementKind.REWARD, place=2, value=-1)
    say(JudgementKind.RANKING, ranks=[1, 2, 2])
    said = {judgement.kind: judgement.content for judgement in standing(office)}
    assert said[JudgementKind.CORRECTION] == {
        "place": shown.order[0],
        "text": "'; DROP TABLE judgements; -- <script>",
    }
    assert said[JudgementKind.HARMFUL] == {"place": shown.order[1]}
    assert said[JudgementKind.REWARD] == {"place": shown.order[2], "value": -1.0}
    ranks = said[JudgementKind.RANKING]["ranks"]
    assert [ranks[place] for place in shown.order] == [1, 2, 2]


def test_raters_who_come_at_once_are_shown_different_items(office: Office, make_item: MakeItem) -> None:
    office.store.offer([make_item(str(number)) for number in range(12)])
    raters = [office.rater() for _ in range(12)]
    queue = office.queue
    with ThreadPoolExecutor(6) as threads:
        shown = list(threads.map(queue.next, raters))
    assert len({each.item.id for each in shown if each is not None}) == 12


def test_what_was_judged_elsewhere_is_brought_in_once_and_asked_of_nobody(office: Office, make_item: MakeItem) -> None:
    items = [make_item("a"), make_item("b")]
    said = [
        Judged(item, (Judgement(f"key-{item.prompt_id}", item.id, "ada", JudgementKind.PAIR, {"chosen": 1}, 5.0),))
        for item in items
    ]
    assert (office.store.bring(said), office.store.bring(said)) == (2, 0)
    assert {each.item.id: each for each in office.store.judged()} == {each.item.id: each for each in said}
    assert office.queue.next(office.rater()) is None
    assert ("ada", True) in [(row.name, row.is_revoked) for row in office.store.raters()]
