"""How near a reward model comes to ratings of single completions that it never learned, by what they are about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.evaluation.intervals import wilson


@dataclass(frozen=True)
class ScoredRating:
    """A held-out rating of a completion by one criterion.

    score: of the criterion, raw. value: the rating, from 0 (the worst of the scale) to 1. overall: the raw overall
    score of the completion. length: its tokens.
    """

    criterion: str
    task: str
    modalities: tuple[str, ...]
    score: float
    value: float
    overall: float
    length: int

    @property
    def predicted(self) -> float:
        """The rating that the model foresees: sigmoid(score)."""
        # The same for either sign, without an overflow.
        return 0.5 * (1.0 + math.tanh(self.score / 2))


def ratings_json(ratings: Sequence[ScoredRating]) -> dict[str, Any]:
    """By criterion what is measured of its ratings.

    - `accuracy`: share of those that are not in the middle of the scale (`num_decided`) that are foreseen on the right
      half of it, and its 95 % interval by Wilson (1927).
    - `brier`: mean of (sigmoid(score) - value)^2 (Brier 1950, of labels).
    - `constant_brier`: the same, if the mean rating were foreseen each time: what is to be beaten.
    """
    criteria = sorted({each.criterion for each in ratings})
    return {name: _measured([each for each in ratings if each.criterion == name]) for name in criteria}


def _measured(ratings: Sequence[ScoredRating]) -> dict[str, Any]:
    decided = [each for each in ratings if each.value != 0.5]
    num_right = sum((each.score > 0) == (each.value > 0.5) for each in decided)
    mean = fmean(each.value for each in ratings)
    return {
        "num_ratings": len(ratings),
        "num_decided": len(decided),
        "accuracy": num_right / len(decided) if decided else None,
        "accuracy_interval": list(wilson(num_right / len(decided), len(decided))) if decided else None,
        "brier": fmean((each.predicted - each.value) ** 2 for each in ratings),
        "constant_brier": fmean((mean - each.value) ** 2 for each in ratings),
    }
