"""Is everybody served alike? Reward and error by group, and whether decisions depend on columns that they must not.

Two checks guard a protected column: that it is not among a model's inputs (`check_inputs`), and that no decision
changes where it is another's (`check_counterfactual`), with everything else the same. Neither sees proxies: what
another column, a text or a voice gives away of it. That shows in the table by group alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.evaluation.intervals import Estimate, proportion

Row = Mapping[str, Any]
"""The columns of a row, before they become a model's inputs."""


@dataclass(frozen=True)
class GroupResult:
    """A group's mean reward and share of wrong decisions, with 95 % intervals (Wilson's)."""

    group: str
    num: int
    reward: Estimate
    error: Estimate


@dataclass(frozen=True)
class Gap:
    """By how much the best group is ahead of the worst, with Newcombe's (1998, method 10) 95 % interval. With more than
    two groups these were picked for being so, and the interval is somewhat too narrow."""

    best: str
    worst: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FairnessTable:
    """Groups in the order of their names, and how far apart they are."""

    rows: tuple[GroupResult, ...]
    reward_gap: Gap
    error_gap: Gap
    """The best group is the one with the fewest errors; the value is how many more the worst has."""


def fairness_table(groups: Sequence[str], *, rewards: NDArray[np.floating], errors: NDArray[np.bool_]) -> FairnessTable:
    """Rewards in [0, 1] and errors, [N] each, by the group of each decision.

    Raises:
        ConfigError: lengths differ, there is no decision, or a reward is not in [0, 1].
    """
    if not len(groups) == len(rewards) == len(errors) or not len(groups):
        raise ConfigError(f"groups: {len(groups)} for {len(rewards)} rewards and {len(errors)} errors; give one each")
    outside = np.flatnonzero(~((rewards >= 0) & (rewards <= 1)))
    if len(outside):
        row = int(outside[0])
        raise ConfigError(f"row {row}: reward={rewards[row]:g}; a table by group needs rewards from 0 to 1: scale them")
    names = np.asarray(groups)
    rows = tuple(_result(name, rewards[names == name], errors[names == name]) for name in sorted(set(groups)))
    return FairnessTable(
        rows=rows,
        reward_gap=_gap([(row.group, row.reward) for row in rows]),
        error_gap=_gap([(row.group, row.error) for row in rows], lower_is_better=True),
    )


def check_inputs(protected: Sequence[str], inputs: Iterable[str]) -> None:
    """Makes sure that no protected column is among the columns that a model is given.

    Raises:
        ConfigError: one is.
    """
    given = set(inputs)
    for column in protected:
        if column in given:
            raise ConfigError(
                f"protected={list(protected)}: the model is given {column!r} ({', '.join(sorted(given))}); take it out "
                "of the inputs, or out of protected"
            )


def check_counterfactual(
    decide: Callable[[Sequence[Row]], NDArray[np.int64]],
    rows: Sequence[Row],
    protected: Sequence[str],
    *,
    names: Sequence[str] | None = None,
) -> dict[str, int]:
    """Makes sure that no decision changes where a protected column has another of the values that occur in it.

    decide: what a model makes of rows, actions int64 [N], from their columns to its inputs and on; the same each time.
    names: what an error calls the rows.

    Returns how many other values each protected column was given.

    Raises:
        ConfigError: a decision changes, or no row has the column.
    """
    before = decide(rows)
    tried: dict[str, int] = {}
    for column in protected:
        values = {_key(row[column]): row[column] for row in rows if column in row}
        if not values:
            raise ConfigError(f"protected={list(protected)}: no row has a column {column!r}; name one that there is")
        for value in values.values():
            after = decide([{**row, column: value} for row in rows])
            changed = np.flatnonzero(after != before)
            if len(changed):
                row = int(changed[0])
                was, name = rows[row].get(column), names[row] if names else f"row {row}"
                raise ConfigError(
                    f"protected={list(protected)}: {len(changed)} of {len(rows)} decisions depend on {column!r}. "
                    f"First: {name}, action {before[row]} with {was!r} and {after[row]} with {value!r}; take it out of "
                    "the model's inputs and train again"
                )
        tried[column] = len(values)
    return tried


def _key(value: Any) -> str:
    return repr(value)


def _result(name: str, rewards: NDArray[np.floating], errors: NDArray[np.bool_]) -> GroupResult:
    reward, error = proportion(rewards.astype(float).tolist()), proportion(errors.astype(float).tolist())
    assert reward is not None and error is not None
    return GroupResult(name, len(rewards), reward, error)


def _gap(groups: Sequence[tuple[str, Estimate]], *, lower_is_better: bool = False) -> Gap:
    """Newcombe's interval of a difference of proportions, from Wilson's of each."""
    high_name, high = max(groups, key=lambda each: each[1].value)
    low_name, low = min(groups, key=lambda each: each[1].value)
    difference = high.value - low.value
    return Gap(
        best=low_name if lower_is_better else high_name,
        worst=high_name if lower_is_better else low_name,
        value=difference,
        low=difference - math.hypot(high.value - high.low, low.high - low.value),
        high=difference + math.hypot(high.high - high.value, low.value - low.low),
    )
