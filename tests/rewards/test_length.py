"""The length penalty by hand."""

import pytest

from pipeline.rewards.length import length_reward


@pytest.mark.parametrize(
    ("length", "target", "expected"),
    [
        (0, 10, 0.0),
        (10, 10, 0.0),
        (15, 10, -0.5),  # (15 - 10) / 10
        (20, 10, -1.0),
        (500, 10, -1.0),
        (0, 0, 0.0),
        (3, 0, -1.0),  # (3 - 1) / 1, bounded
    ],
)
def test_what_is_said_beyond_the_target_costs(length: int, target: int, expected: float) -> None:
    assert length_reward(length=length, target=target) == expected
