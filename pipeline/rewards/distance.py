"""Distance: how far is the number in the completion from the answer's?"""

from __future__ import annotations

import re

from pipeline.rewards.normalise import normalise

NUMERALS = "零一二三四五六七八九十"
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
FULL_DIFFERENCE = 5
"""From this difference on nothing is earned: each one that a count is off costs a fifth."""

_DIGITS = r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_ONE_NUMERAL = rf"(?<![{NUMERALS}] )[{NUMERALS}](?! [{NUMERALS}百千万])"
# Of what `normalise` leaves: words between spaces, each Chinese character one of them.
_NUMBER = re.compile(rf"(?<!\S)({_DIGITS}|{'|'.join(WORDS)}|{_ONE_NUMERAL})(?!\S)")
_INTEGER = re.compile(r"-?\d+")


def distance_reward(completion: str, answer: str) -> float:
    """1 - min(|difference| / 5, 1) of the first numbers of completion and answer, in [0, 1]; 0 where it has none.

    A number stands as a word of its own, in digits of any script, as one of the English words zero to twenty, or as one
    of the Chinese numerals 零 to 十; case, punctuation and what stands beside it do not count.

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
    found = _NUMBER.search(normalise(text))
    if found is None:
        return None
    word = found[1]
    for names in (WORDS, NUMERALS):
        if word in names:
            return float(names.index(word))
    return float(word.replace(",", ""))


def is_integer(answer: str) -> bool:
    """Whether an answer is a whole number in digits, and nothing else."""
    return _INTEGER.fullmatch(normalise(answer)) is not None
