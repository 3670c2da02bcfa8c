"""Boxes and points by hand."""
# ruff: noqa: RUF001  Punctuation of other keyboards is what is tested.

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.boxes import boxes_of, has_box, hit_reward, iou, iou_reward, points_of

ANSWER = "[0, 0, 10, 10]"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("[0, 0, 10, 5]", 0.5),  # half of it
        ("[5, 0, 15, 10]", 50 / 150),  # 50 shared, 100 + 100 - 50 together
        ("[5, 5, 15, 15]", 25 / 175),
        ("[-10, -10, 20, 20]", 100 / 900),  # all of it, and eight times as much beside
        ("[10, 0, 20, 10]", 0.0),  # they touch
        ("[20, 20, 30, 30]", 0.0),  # apart on both sides: two negative lengths are no area
        ("[10, 10, 0, 0]", 0.0),  # corners the wrong way round
        ("[0, 0, 10, 10] and [20, 20, 30, 30]", 0.5),  # one too many
        ("[0, 0, 10, 10] and [0, 0, 10, 10]", 0.5),  # said twice, it counts once
        ("no box", 0.0),
        ("", 0.0),
    ],
)
def test_intersection_over_union(completion: str, expected: float) -> None:
    assert iou_reward(completion, ANSWER) == pytest.approx(expected)


def test_of_several_boxes_each_is_paired_once_and_the_best_pairs_count() -> None:
    answer = "[[0, 0, 10, 10], [0, 0, 10, 8]]"
    # In the order given the pairs are .8 and .8; crossed they are 1 and 1.
    assert iou_reward("[0, 0, 10, 8] [0, 0, 10, 10]", answer) == pytest.approx(1.0)
    assert iou_reward("[0, 0, 10, 8]", answer) == pytest.approx(0.5)  # one of two
    assert iou((0, 0, 10, 10), (0, 0, 10, 8)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("(5, 5)", 1.0),
        ("[5, 5]", 1.0),
        ("(10, 0)", 1.0),  # the border
        ("(10.5, 5)", 0.0),
        ("(5, -1)", 0.0),
        ('<point x="5" y="5" alt="cat">cat</point>', 1.0),
        ('<point x="5" y="11">', 0.0),
        ('{"point_2d": [2, 3], "label": "cat"}', 1.0),
        ("click(x=3, y=4)", 1.0),
        ("[0, 0, 4, 4]", 1.0),  # a box's centre
        ("[8, 8, 16, 16]", 0.0),  # its centre is (12, 12)
        ("(5, 5) or (50, 50)", 0.5),
        ("(5, 5) (6, 6)", 0.5),  # the box is hit once
        ("in the middle", 0.0),
    ],
)
def test_a_point_hits_or_misses(completion: str, expected: float) -> None:
    assert hit_reward(completion, ANSWER) == pytest.approx(expected)


def test_of_several_boxes_each_wants_a_point() -> None:
    answer = "[[0, 0, 10, 10], [5, 0, 30, 10]]"
    # (7, 5) lies in both, (2, 5) in the first alone: taken greedily, the first would be gone.
    assert hit_reward("(7, 5), (2, 5)", answer) == 1.0
    assert hit_reward("(7, 5)", answer) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3, 4.5]",
        "The box is [1,2,3,4.5].",
        '```json\n[{"bbox_2d": [1, 2, 3, 4.5], "label": "cat"}]\n```',
        "<|box_start|>(1,2),(3,4.5)<|box_end|>",
        "<box>(1, 2) (3, 4.5)</box>",
        "(1, 2, 3, 4.5)",
        "[1，2，3，4.5]",
        "［１，２，３，４．５］",
        "【1、2、3、4.5】",
        "[١, ٢, ٣, ٤٫٥]",
        '["1", "2", "3", "4.5"]',
        "1, 2, 3, 4.5",
        '{"x1": 1, "y1": 2, "x2": 3, "y2": 4.5}',
        "xmin=1, ymin=2, xmax=3, ymax=4.5",
    ],
)
def test_boxes_are_read_in_these_forms(text: str) -> None:
    assert boxes_of(text) == [(1.0, 2.0, 3.0, 4.5)]
    assert points_of(text) == [(2.0, 3.25)]


def test_two_corners_without_tags_are_a_box_to_one_rule_and_two_points_to_the_other() -> None:
    assert boxes_of("(1,2),(3,4)") == [(1.0, 2.0, 3.0, 4.0)]
    assert points_of("(1,2),(3,4)") == [(1.0, 2.0), (3.0, 4.0)]
    for text in ("（1，2），（3，4）", "[[1, 2], [3, 4]]"):
        assert boxes_of(text) == [(1.0, 2.0, 3.0, 4.0)] and has_box(text)
        assert points_of(text) == [(1.0, 2.0), (3.0, 4.0)]
    assert boxes_of("[[1, 2], [3, 4], [5, 6]]") == []  # three points are no box


def test_numbers_within_prose_are_no_box() -> None:
    assert boxes_of("1, 2, 3, 4 and 5") == boxes_of("[1, 2, 3, 4, 5]") == []


@pytest.mark.parametrize("answer", ["a cat", "(1, 2)", "[3, 3, 3, 9]", "[0, 0, 1, 1] [5, 5, 4, 4]"])
def test_an_answer_without_boxes_is_an_error(answer: str) -> None:
    for rule in (iou_reward, hit_reward):
        with pytest.raises(ValueError, match="no box in the answer"):
            rule("[0, 0, 1, 1]", answer)


def test_a_thousand_boxes_are_wrong_and_take_no_time() -> None:
    assert iou_reward("[0, 0, 10, 10] " * 1000, ANSWER) == pytest.approx(1 / 1000)
    assert hit_reward("[0, 0, 10, 10] " * 1000, ANSWER) == pytest.approx(1 / 1000)
    for text in (" " * 100_000, "[" * 100_000, "x1" * 100_000, '"x1": 1, ' * 10_000):
        assert iou_reward(text, ANSWER) == hit_reward(text, ANSWER) == 0.0


_BOX = st.tuples(*[st.integers(-20, 20)] * 4)


@settings(max_examples=50, deadline=None)
@given(said=st.lists(_BOX, max_size=4), wanted=st.lists(_BOX, min_size=1, max_size=3))
def test_any_boxes_earn_between_zero_and_one_and_the_answer_itself_one(
    said: list[tuple[int, ...]], wanted: list[tuple[int, ...]]
) -> None:
    answer = str([[x, y, x + 1 + abs(a), y + 1 + abs(b)] for x, y, a, b in wanted])
    assert 0.0 <= iou_reward(str([list(box) for box in said]), answer) <= 1.0
    assert iou_reward(answer, answer) == pytest.approx(1.0)
