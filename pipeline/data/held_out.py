"""Which comparisons are never learned: decided by the prompt, so that all of one prompt fall on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush


def place_of(prompt_id: str) -> float:
    """Where a prompt lies in [0, 1): its SHA-256 as a number. It is the same in every run, table and version."""
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:6]) / 2**48


@dataclass(frozen=True)
class HeldOut:
    """The rows of a preference table that are held out: those whose prompt lies below `below`.

    A prompt's side depends on its id alone, so more rows, other sources and another order move none across, as long as
    the bound on their number does not bite. Sources are held out of in proportion to their rows.
    """

    below: float
    rows: tuple[int, ...]

    @classmethod
    def of(cls, prompt_ids: Iterable[str], *, fraction: float, most: int) -> HeldOut:
        """Holds out about `fraction` of the prompts, with at most `most` rows.

        It is at least the lowest prompt, with however many rows that has: something must standardise the scores. One
        pass over the ids; memory is bounded by `most` (and the rows of the lowest prompt).

        prompt_ids: of each row, in the order of the rows.
        """
        below, kept = fraction, list[tuple[float, int]]()
        lowest, its_rows = 1.0, list[int]()
        for row, prompt_id in enumerate(prompt_ids):
            place = place_of(prompt_id)
            if place <= lowest:
                its_rows = its_rows if place == lowest else []
                lowest = place
                its_rows.append(row)
            if place < below:
                heappush(kept, (-place, row))
            if len(kept) > most:
                below = -kept[0][0]  # The highest prompt goes, with all its rows, and whoever may follow there.
                while kept and -kept[0][0] >= below:
                    heappop(kept)
        if not kept:
            return cls(below=lowest + 2**-48, rows=tuple(its_rows))
        return cls(below=below, rows=tuple(sorted(row for _, row in kept)))

    def __contains__(self, prompt_id: object) -> bool:
        """Whether the comparisons of this prompt are held out."""
        return place_of(str(prompt_id)) < self.below


NOTHING_HELD_OUT = HeldOut(below=0.0, rows=())
