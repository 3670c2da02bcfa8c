"""Distance: how far is the number in the completion from the answer's?"""

from __future__ import annotations

import re

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
FULL_DIFFERENCE = 5
"""From this difference on nothing is earned: each one that a count is off costs a fifth."""

_NUMBER = re.compile(rf"(?<![\w.])(-?\d+(?:\.\d+)?|{'|'.join(WORDS)})(?!\w)")
_INTEGER = re.compile(r"\s*-?\d+\s*")


def distance_reward(completion: str, answer: str) -> float:
    """1 - min(|difference| / 5, 1) of the first numbers of completion and answer, in [0, 1]; 0 where it has none.

    A number stands as a word of its own, in digits or as one of the English words zero to twenty; case and what stands
    beside it do not count.

    Raises:
        ValueError: the answer has no number.
    """
    target, said = first_number(answer), first_number(completion)
    if target is None:
        raise ValueError(f"no number in the answer {answer!r}: distance compares numbers")
    if said is None:
        return 0.0
    difference = abs(said - target)
    # So written, the difference of two numbers too large for floats (NaN) earns nothing either.
    return 1.0 - difference / FULL_DIFFERENCE if difference < FULL_DIFFERENCE else 0.0


def first_number(text: str) -> float | None:
    """The first number in a text, or None."""
    found = _NUMBER.search(text.casefold())
    if found is None:
        return None
    word = found[1]
    return float(WORDS.index(word)) if word in WORDS else float(word)


def is_integer(answer: str) -> bool:
    """Whether an answer is a whole number in digits, and nothing else."""
    return _INTEGER.fullmatch(answer) is not None
