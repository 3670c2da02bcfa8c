"""Rewards from outside the loop: a user's own function, a server, a chat model that judges.

    rows of the table + completions -> function | server | judge -> one number a completion, or why there is none

What a user's function is given is `RewardPrompt` and `RewardCompletion`. Nothing here imports torch before a local
judge does, so that the process of a function starts in a second.
"""

from pipeline.grading.records import (
    Failure,
    Graded,
    Question,
    RewardCompletion,
    RewardPrompt,
    failed,
    graded,
    ungraded,
)

__all__ = [
    "Failure",
    "Graded",
    "Question",
    "RewardCompletion",
    "RewardPrompt",
    "failed",
    "graded",
    "ungraded",
]
