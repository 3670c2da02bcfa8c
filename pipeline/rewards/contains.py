"""Contains: does the completion hold the answer, whatever it says beside it?"""

from __future__ import annotations

from pipeline.rewards.conclusion import of_conclusions
from pipeline.rewards.normalise import normalise


@of_conclusions
def contains(completion: str, answer: str) -> float:
    """1.0 where the answer's words stand in the completion in one piece, after `normalise`, else 0.0.

    Words count whole: `seventeen` does not contain `seven`, nor `-7` or `7.5` a `7`. In scripts without blanks between
    words, characters do. An empty answer is contained in anything.
    """
    wanted = normalise(answer)
    return float(not wanted or f" {wanted} " in f" {normalise(completion)} ")
