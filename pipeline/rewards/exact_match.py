"""Exact match: did the completion say just the answer?"""

from __future__ import annotations

from pipeline.rewards.conclusion import of_conclusions
from pipeline.rewards.normalise import normalise


@of_conclusions
def exact_match(completion: str, answer: str) -> float:
    """1.0 where completion and answer are the same after `normalise`, else 0.0."""
    return float(normalise(completion) == normalise(answer))
