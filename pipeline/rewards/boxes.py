"""Boxes and points: how well does the completion show where something is?

A box is x1, y1, x2, y2 (left, top, right, bottom), a point x, y, in the units of the answer, whichever these are: the
prompt says whether they are pixels or thousandths of the picture. They are read from JSON (`[1, 2, 3, 4]`,
`{"bbox_2d": [1, 2, 3, 4]}`, lists of these, `[[1, 2], [3, 4]]`, `{"x1": 1, "y1": 2, "x2": 3, "y2": 4}`), from brackets
in prose, from `(1,2),(3,4)` as some models write boxes, from four numbers that are the whole text, and from
`<point x="1" y="2">`. Numbers may be in quotes, digits and punctuation of any keyboard: `[1、2、3、4]`.
"""
# ruff: noqa: RUF001  Punctuation of other keyboards is what is read.

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.rewards.conclusion import of_conclusions
from pipeline.rewards.normalise import plain

Box = tuple[float, float, float, float]
Point = tuple[float, float]

MAX_SHAPES = 100
"""So many shapes of a text are looked at. What is beyond them counts as wrong all the same."""

_BRACKETS = str.maketrans("、【】〔〕", ",[][]")
_N = r"""\s*["']?(-?(?:\d+(?:\.\d+)?|\.\d+))["']?\s*"""
_FOUR = rf"[\[(<]{_N},{_N},{_N},{_N}[\])>]"
_CORNERS = rf"\({_N},{_N}\)\s*,?\s*\({_N},{_N}\)"
_LISTED = rf"\[\s*\[{_N},{_N}\]\s*,\s*\[{_N},{_N}\]\s*\]"
_NAMED = r",\s*".join(rf"""["']?(?:{name})["']?\s*[:=]{_N}""" for name in ("x1|xmin", "y1|ymin", "x2|xmax", "y2|ymax"))
_BARE = rf"\A{_N},{_N},{_N},{_N}\Z"
_BOX = re.compile(rf"{_FOUR}|{_CORNERS}|{_LISTED}|{_NAMED}|{_BARE}")
# Without their tags, two corners may as well be two points.
_BOX_NO_POINTS = re.compile(rf"{_FOUR}|{_NAMED}|{_BARE}|(?:<\|box_start\|>|<box>)\s*{_CORNERS}")
_POINT = re.compile(rf"""[\[(]{_N},{_N}[\])]|\bx\d*\s*=\s*["']?{_N}["']?\s*,?\s*y\d*\s*=\s*["']?{_N}""")


@of_conclusions
def iou_reward(completion: str, answer: str) -> float:
    """Intersection over union with the answer's box, in [0, 1]; of several boxes, the mean over the best pairs.

    Each box of the completion is paired with one of the answer at most (the pairs of the largest sum); the sum is
    divided by the number of boxes of the longer side, so that a box too many costs as much as one too few. A box
    without an area (x2 <= x1) overlaps nothing.

    Raises:
        ValueError: the answer holds no box with an area.
    """
    wanted, said = boxes_of(answer), boxes_of(completion)
    if not has_box(answer):
        raise ValueError(
            f"no box in the answer {answer!r}: iou compares boxes x1, y1, x2, y2, such as [10, 20, 30, 40]"
        )
    overlaps = np.array([[iou(one, other) for other in wanted] for one in said[:MAX_SHAPES]])
    return _paired(overlaps) / max(len(said), len(wanted))


@of_conclusions
def hit_reward(completion: str, answer: str) -> float:
    """1.0 where the completion's point lies in the answer's box, else 0.0; of several, the share of the longer side.

    A point on the border lies in the box. A box in the completion stands for its centre. Each point hits one box at
    most, and each box is hit once.

    Raises:
        ValueError: the answer holds no box with an area.
    """
    wanted, said = boxes_of(answer), points_of(completion)
    if not has_box(answer):
        raise ValueError(f"no box in the answer {answer!r}: hit asks for points in boxes, such as [10, 20, 30, 40]")
    hits = np.array(
        [[float(left <= x <= right and top <= y <= bottom) for left, top, right, bottom in wanted] for x, y in said]
    )
    return _paired(hits[:MAX_SHAPES]) / max(len(said), len(wanted))


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where one has no area."""
    if not (_has_area(one) and _has_area(other)):
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(one) + _area(other) - shared)


def boxes_of(text: str, pattern: re.Pattern[str] = _BOX) -> list[Box]:
    """The boxes of a text, in their order."""
    found: list[Box] = []
    for match in pattern.finditer(_typed(text)):
        left, top, right, bottom = (float(group) for group in match.groups() if group)
        found.append((left, top, right, bottom))
    return found


def points_of(text: str) -> list[Point]:
    """The points of a text, in their order: the centres of boxes where it has boxes (four numbers, or tagged)."""
    if boxes := boxes_of(text, _BOX_NO_POINTS):
        return [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]
    found: list[Point] = []
    for match in _POINT.finditer(_typed(text)):
        x, y = (float(group) for group in match.groups() if group)
        found.append((x, y))
    return found


def has_box(answer: str) -> bool:
    """Whether there is something to compare with: boxes, all with an area."""
    boxes = boxes_of(answer)
    return bool(boxes) and all(_has_area(box) for box in boxes)


def _typed(text: str) -> str:
    """The text as an English keyboard types it."""
    return plain(text).translate(_BRACKETS)


def _has_area(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _paired(values: np.ndarray) -> float:
    """The largest sum over pairs of a row and a column, each in one pair at most."""
    if not values.size:
        return 0.0
    if values.size == 1:
        return float(values[0, 0])
    from scipy.optimize import linear_sum_assignment  # 0.5 s of imports, for those who have several boxes

    return float(values[linear_sum_assignment(values, maximize=True)].sum())
