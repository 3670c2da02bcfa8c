"""A penalty for saying more than was asked."""

from __future__ import annotations


def length_reward(*, length: int, target: int) -> float:
    """-clip((length - target) / target, 0, 1), in [-1, 0]: 0 up to the target, -1 from twice the target on.

    Nothing is asked of short completions: whether they are right is for the other rewards to say.

    Args:
        length: of the completion, in any unit (the rule `length` counts characters).
        target: longest length without penalty, in the same unit; less than 1 counts as 1.
    """
    target = max(target, 1)
    return -min(max((length - target) / target, 0.0), 1.0)
