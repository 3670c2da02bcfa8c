"""How far a reward model's probabilities can be believed, on comparisons that it never learned.

A model says with probability sigmoid(|difference of the scores|) which completion of a pair the rater chose. Where it
is calibrated, it is right in 80 % of the pairs of which it says so with 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.intervals import wilson

TEXT_ONLY = "text"
NUM_BINS = 5
"""Of confidence, from 0.5 to 1: few, since the pairs are few."""


@dataclass(frozen=True)
class ScoredPair:
    """A held-out comparison: scores of both completions, and what its prompt is."""

    task: str
    modalities: tuple[str, ...]
    """Kinds of media in the prompt; empty for text alone."""
    chosen: float
    rejected: float
    is_tie: bool = False
    lengths: tuple[int, int] | None = None
    """Tokens of the chosen and of the rejected completion."""
    blind: tuple[float, float] | None = None
    """The two scores where the prompt's media are blanked."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the pair counts for: the kinds of media, or `text`."""
        return self.modalities or (TEXT_ONLY,)

    @property
    def confidence(self) -> float:
        """Probability of the choice that the model holds to be the likelier one, in [0.5, 1]."""
        return 1.0 / (1.0 + math.exp(-abs(self.chosen - self.rejected)))

    @property
    def outcome(self) -> float:
        """1 where the rater chose so too, 0 where the other one, 1/2 where one of the two did not choose."""
        if self.is_tie or self.chosen == self.rejected:
            return 0.5
        return float(self.chosen > self.rejected)

    @property
    def squared_error(self) -> float:
        """Of the probability of the rater's choice; of a tie, from one half."""
        if self.is_tie:
            return (self.confidence - 0.5) ** 2
        return (1.0 - (self.confidence if self.chosen > self.rejected else 1.0 - self.confidence)) ** 2


def calibration_json(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Accuracy and calibration, of all pairs and by task and modality (text alone is `text`).

    See `measure` for what is measured; a pair whose prompt has several kinds of media counts for each of them.
    """
    tasks = sorted({pair.task for pair in pairs})
    kinds = sorted({kind for pair in pairs for kind in pair.kinds})
    return {
        "overall": measure(pairs),
        "tasks": {task: measure([pair for pair in pairs if pair.task == task]) for task in tasks},
        "modalities": {kind: measure([pair for pair in pairs if kind in pair.kinds]) for kind in kinds},
    }


def measure(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Accuracy and calibration of N pairs, null where there are none.

    None of it depends on which completion of a pair comes first.

    - `accuracy`: share of the pairs without a tie (`num_decided`) whose chosen completion scores higher, and its 95 %
      interval by Wilson (1927).
    - `brier`: mean of (sigmoid(chosen - rejected) - y)^2 (Brier 1950), y = 1, of a tie 1/2; always 0.5 has 0.25.
    - `calibration_error`: the expected one (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599), the sum over bins
      of |mean outcome - mean confidence| times the share of pairs there.
    - `bins`: of confidence, those with pairs. A tie has an outcome of one half.
    """
    bins = [_bin(number, [pair for pair in pairs if _bin_of(pair) == number]) for number in range(NUM_BINS)]
    filled = [each for each in bins if each["num_pairs"]]
    decided = [pair for pair in pairs if not pair.is_tie]
    num_right = sum(pair.chosen > pair.rejected for pair in decided)
    gaps = [each["num_pairs"] * abs(each["outcome"] - each["confidence"]) for each in filled]
    return {
        "num_pairs": len(pairs),
        "num_decided": len(decided),
        "accuracy": num_right / len(decided) if decided else None,
        "accuracy_interval": list(wilson(num_right / len(decided), len(decided))) if decided else None,
        "brier": sum(pair.squared_error for pair in pairs) / len(pairs) if pairs else None,
        "calibration_error": sum(gaps) / len(pairs) if pairs else None,
        "bins": filled,
    }


def _bin_of(pair: ScoredPair) -> int:
    return min(int((pair.confidence - 0.5) * 2 * NUM_BINS), NUM_BINS - 1)


def _bin(number: int, pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    edges = [0.5 + 0.5 * edge / NUM_BINS for edge in (number, number + 1)]
    found: dict[str, Any] = {"from": edges[0], "to": edges[1], "num_pairs": len(pairs)}
    if pairs:
        found["confidence"] = sum(pair.confidence for pair in pairs) / len(pairs)
        found["outcome"] = sum(pair.outcome for pair in pairs) / len(pairs)
    return found
