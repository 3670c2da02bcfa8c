"""Contains: does the completion hold the answer, whatever it says beside it?"""

from __future__ import annotations

from pipeline.rewards.exact_match import normalise


def contains(completion: str, answer: str) -> float:
    """1.0 where the answer's words stand in the completion in one piece, after `normalise`, else 0.0.

    Words are split at whitespace: `seventeen` does not contain `seven`. An empty answer is contained in anything.
    """
    return float(f" {normalise(answer)} " in f" {normalise(completion)} " or not normalise(answer))
