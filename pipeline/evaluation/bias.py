"""What a reward model may go by that it should not: the length of a completion, and the text without its media."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pipeline.evaluation.calibration import ScoredPair, measure
from pipeline.evaluation.intervals import paired
from pipeline.evaluation.ratings import ScoredRating


def length_bias(pairs: Sequence[ScoredPair], ratings: Sequence[ScoredRating]) -> dict[str, Any]:
    """Does the model like what is long? (Singhal et al. 2023, arXiv 2310.03716.)

    - `correlation`: Pearson's, of the overall score and the length in tokens, over the `num_completions` held-out ones
      (one that is judged several times counts as often); null where either is the same throughout.
    - `within_pairs`: Pearson's, of the difference of the scores and that of the lengths: so prompts that call for long
      answers have no part in it. Through the origin, as which one comes first means nothing.
    - `chosen_shorter`, `chosen_longer`: accuracy on the decided pairs whose chosen completion is the shorter, the
      longer one. A model that goes by length is right in the one and wrong in the other.
    """
    lengths = [(pair, *pair.lengths) for pair in pairs if pair.lengths is not None]
    points = [
        *(point for pair, one, other in lengths for point in ((pair.chosen, one), (pair.rejected, other))),
        *((each.overall, each.length) for each in ratings),
    ]
    differences = [(pair.chosen - pair.rejected, one - other) for pair, one, other in lengths]
    return {
        "num_completions": len(points),
        "correlation": _correlation(points, centred=True),
        "within_pairs": _correlation(differences, centred=False),
        "chosen_shorter": _accuracy([pair for pair, one, other in lengths if one < other]),
        "chosen_longer": _accuracy([pair for pair, one, other in lengths if one > other]),
    }


def blindness(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Does the model look and listen? By kind of media, the same pairs with media, and with all of a prompt's blanked.

    - `accuracy`, `blind_accuracy`: of the decided ones.
    - `gap`: by how much the first is higher, with its 95 % interval (Bonett and Price 2012; see `intervals.paired`). 0
      says that the model does no better for its media.
    - `change`: by how much the difference of a pair's scores changes on average; 0 says that it does not use them.
    """
    kinds = sorted({kind for pair in pairs if pair.blind is not None for kind in pair.modalities})
    return {kind: _blindness([pair for pair in pairs if kind in pair.modalities]) for kind in kinds}


def _blindness(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    both = [(pair, *pair.blind) for pair in pairs if pair.blind is not None]
    decided = [each for each in both if not each[0].is_tie]
    seeing = [float(pair.chosen > pair.rejected) for pair, _, _ in decided]
    blind = [float(one > other) for _, one, other in decided]
    gap = paired([first - second for first, second in zip(seeing, blind, strict=True)])
    return {
        "num_pairs": len(both),
        "num_decided": len(decided),
        "accuracy": fmean(seeing) if seeing else None,
        "blind_accuracy": fmean(blind) if blind else None,
        "gap": None if gap is None else {"value": gap.value, "low": gap.low, "high": gap.high},
        "change": fmean(abs((pair.chosen - pair.rejected) - (one - other)) for pair, one, other in both),
    }


def _accuracy(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    found = measure(pairs)
    return {name: found[name] for name in ("num_decided", "accuracy", "accuracy_interval")}


def _correlation(points: Sequence[tuple[float, float]], *, centred: bool) -> float | None:
    """Pearson's correlation coefficient, around the means or else around zero."""
    if not points:
        return None
    middle = [fmean(axis) if centred else 0.0 for axis in zip(*points, strict=True)]
    moved = [(one - middle[0], other - middle[1]) for one, other in points]
    squares = [sum(value**2 for value in axis) for axis in zip(*moved, strict=True)]
    if not all(squares):
        return None
    return sum(one * other for one, other in moved) / math.sqrt(squares[0] * squares[1])
