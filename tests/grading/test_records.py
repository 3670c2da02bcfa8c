"""Rewards out of what was returned: every kind of nonsense has its reason, and none is a zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.grading import Failure, Graded, failed, graded, ungraded
from pipeline.grading.records import plain


@pytest.mark.parametrize(
    ("returned", "failures"),
    [
        ([1.0, "2", None], [None, Failure.WRONG_TYPE, None]),
        ([math.nan, math.inf, 10**400], [Failure.NOT_FINITE] * 3),
        ([1.0, 2.0], [Failure.WRONG_LENGTH] * 3),
        ([[1.0], {"a": 1.0}, object()], [Failure.WRONG_TYPE, Failure.WRONG_PARTS, Failure.WRONG_TYPE]),
        ("abc", [Failure.WRONG_TYPE] * 3),
        (None, [Failure.WRONG_TYPE] * 3),
        (1.0, [Failure.WRONG_TYPE] * 3),
        ((each for each in (1.0, 2.0, 3.0)), [Failure.WRONG_TYPE] * 3),
        ({"a": 1}, [Failure.WRONG_TYPE] * 3),
    ],
)
def test_what_is_no_reward_has_its_reason_and_is_no_number(returned: Any, failures: list[Failure | None]) -> None:
    found = graded(plain(returned), 3, {})
    assert list(found.failures) == failures
    for value, failure in zip(found.values, failures, strict=True):
        assert failure is None or math.isnan(value)
    assert set(found.details) == set(failures) - {None}


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5, True], (1, 0.5, True), np.array([1.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, 1.0]), [np.float32(1), 0.5, 1]],
)
def test_numbers_of_all_libraries_are_taken(returned: Any) -> None:
    found = graded(plain(returned), 3, {})
    assert found.values.tolist() == [1.0, 0.5, 1.0] and found.failures == (None, None, None)


def test_none_does_not_apply_which_is_no_failure() -> None:
    found = graded([None, 2.0], 2, {})
    assert math.isnan(found.values[0]) and found.values[1] == 2.0 and found.failures == (None, None)


@pytest.mark.parametrize(
    "returned",
    [
        [{"clear": 1.0, "kind": 3.0}, {"clear": None, "kind": 1.0}, None],
        {"clear": [1.0, None, None], "kind": [3.0, 1.0, None]},
    ],
)
def test_named_parts_are_summed_with_their_weights_over_those_that_apply(returned: Any) -> None:
    found = graded(returned, 3, {"clear": 2.0, "kind": 0.5})
    np.testing.assert_array_equal(found.values, np.array([3.5, 0.5, np.nan], np.float32))
    np.testing.assert_array_equal(found.named["clear"], np.array([1.0, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(found.named["kind"], np.array([3.0, 1.0, np.nan], np.float32))
    assert found.failures == (None, None, None)


def test_parts_other_than_the_recipes_fail() -> None:
    found = graded([{"clear": 1.0}, {"clear": 1.0, "kind": "x"}, 1.0], 3, {"clear": 1.0, "kind": 1.0})
    assert found.failures == (Failure.WRONG_PARTS, Failure.WRONG_TYPE, Failure.WRONG_TYPE)
    assert graded({"clear": [1.0]}, 3, {"clear": 1.0}).failures == (Failure.WRONG_LENGTH,) * 3


def test_batches_are_joined_in_their_order() -> None:
    one, other = graded([1.0], 1, {}).counted(calls=1), failed(2, Failure.TIMEOUT, "late").counted(calls=2)
    joined = Graded.joined([one, other, ungraded(1)])
    np.testing.assert_array_equal(joined.values, np.array([1.0, np.nan, np.nan, np.nan], np.float32))
    assert joined.failures == (None, Failure.TIMEOUT, Failure.TIMEOUT, None)
    assert joined.details == {Failure.TIMEOUT: "late"} and joined.counts == {"calls": 3}
