from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.decisions.fairness import check_counterfactual, check_inputs, fairness_table
from pipeline.evaluation.intervals import wilson

GROUPS = ["a"] * 4 + ["b"] * 6
REWARDS = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
ERRORS = np.array([False] * 3 + [True] + [False] * 3 + [True] * 3)


def test_each_group_has_its_reward_and_error_with_wilsons_interval() -> None:
    first, second = fairness_table(GROUPS, rewards=REWARDS, errors=ERRORS).rows
    assert (first.group, first.num, first.reward.value, first.error.value) == ("a", 4, 0.75, 0.25)
    assert (second.group, second.num, second.error.value) == ("b", 6, 0.5)
    assert second.reward.value == pytest.approx(1 / 3)
    assert (first.reward.low, first.reward.high) == pytest.approx(wilson(0.75, 4))


def test_the_gap_is_newcombes() -> None:
    table = fairness_table(GROUPS, rewards=REWARDS, errors=ERRORS)
    gap = table.reward_gap
    (low_a, high_a), (low_b, high_b) = wilson(0.75, 4), wilson(1 / 3, 6)
    difference = 0.75 - 1 / 3
    assert (gap.best, gap.worst, gap.value) == ("a", "b", pytest.approx(difference))
    assert gap.low == pytest.approx(difference - ((0.75 - low_a) ** 2 + (high_b - 1 / 3) ** 2) ** 0.5)
    assert gap.high == pytest.approx(difference + ((high_a - 0.75) ** 2 + (1 / 3 - low_b) ** 2) ** 0.5)
    assert gap.low < 0 < gap.high
    # Newcombe (1998), example (a) of his table II: 56/70 against 48/80.
    groups, rewards = ["x"] * 70 + ["y"] * 80, np.array([1.0] * 56 + [0.0] * 14 + [1.0] * 48 + [0.0] * 32)
    published = fairness_table(groups, rewards=rewards, errors=rewards == 0).reward_gap
    assert (published.low, published.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_the_group_with_the_fewest_errors_is_the_best() -> None:
    gap = fairness_table(GROUPS, rewards=REWARDS, errors=ERRORS).error_gap
    assert (gap.best, gap.worst, gap.value) == ("a", "b", 0.25)


def test_a_table_needs_rewards_from_0_to_1() -> None:
    with pytest.raises(ConfigError, match=r"row 1: reward=5; .*scale them"):
        fairness_table(["a", "a"], rewards=np.array([1.0, 5.0]), errors=np.array([True, False]))
    with pytest.raises(ConfigError, match="groups: 1 for 2 rewards"):
        fairness_table(["a"], rewards=np.array([1.0, 0.0]), errors=np.array([True, False]))


def test_a_protected_column_among_the_inputs_is_an_error() -> None:
    check_inputs(("sex",), ("age", "finding"))
    with pytest.raises(ConfigError, match=r"protected=\['sex'\]: the model is given 'sex' .*take it out of the inputs"):
        check_inputs(("sex",), ("age", "sex"))


ROWS = [{"id": str(number), "age": number, "sex": "f" if number % 3 else "m"} for number in range(12)]


def by_age(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    return np.array([int(row["age"] > 5) for row in rows])


def by_sex_in_a_corner(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Of one row alone does the protected column decide."""
    return np.array([int(row["age"] > 5 or (row["age"] == 4 and row["sex"] == "m")) for row in rows])


def test_a_decision_that_depends_on_a_protected_column_is_found_and_named() -> None:
    assert check_counterfactual(by_age, ROWS, ("sex",)) == {"sex": 2}
    with pytest.raises(ConfigError, match=r"1 of 12 .* on 'sex'\. First: 4, action 0 with 'f' and 1 with 'm'"):
        check_counterfactual(by_sex_in_a_corner, ROWS, ("sex",), names=[str(row["id"]) for row in ROWS])
    with pytest.raises(ConfigError, match="depend on 'age'"):
        check_counterfactual(by_age, ROWS, ("age",))
    with pytest.raises(ConfigError, match="no row has a column 'race'"):
        check_counterfactual(by_age, ROWS, ("race",))
