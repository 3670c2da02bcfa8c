"""Distance: how far is the number in the completion from the answer's?"""

from __future__ import annotations

import re
import unicodedata

from pipeline.rewards.conclusion import conclusion, of_conclusions
from pipeline.rewards.normalise import normalise
from pipeline.rewards.notation import with_points

NUMERALS = {character: int(unicodedata.numeric(character, 2)) for character in "零〇一二三四五六七八九十百两兩"}
"""Chinese numerals; Unicode's tables have no number for 两, which is two."""
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = dict(zip(ONES, range(20), strict=True)) | dict(zip(TENS, range(20, 100, 10), strict=True)) | {"hundred": 100}
VALUES = WORDS | NUMERALS
FULL_DIFFERENCE = 5
"""From this difference on nothing is earned: each one that a count is off costs a fifth."""

# Of what `normalise` leaves: words between spaces, each Chinese character one of them.
_DIGITS = r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_UNDER_100 = rf"(?:(?:{'|'.join(TENS)})(?: (?:{'|'.join(ONES[1:10])}))?|{'|'.join(ONES)})"
_ENGLISH = rf"(?:(?:{_UNDER_100}|a) hundred(?: and)?(?: {_UNDER_100})?|{_UNDER_100})(?! (?:hundred|thousand|million)\b)"
_ANY = "[" + "".join(NUMERALS) + "千万萬亿億]"
_ONE = "[一二三四五六七八九两兩]"
# Words that hold a numeral and no count (一共, 一起, 第一, 唯一), and longer runs than those that are read.
_NO_COUNT = rf"(?!一 [共起些样樣直般定切致旦律边邊点點半緒番部])(?<![第统統唯同单單] )(?<!{_ANY} )"
_CHINESE = (
    rf"{_NO_COUNT}(?:(?:{_ONE} 百 )?{_ONE}? ?十(?: {_ONE})?|{_ONE} 百(?: [零〇] {_ONE})?|{_ONE}|[零〇])(?! {_ANY})"
)
_NUMBER = re.compile(rf"(?<!\S)(?:(?P<digits>{_DIGITS})|(?P<words>{_ENGLISH}|{_CHINESE}))(?!\S)")
_INTEGER = re.compile(r"-?\d+")


@of_conclusions
def distance_reward(completion: str, answer: str) -> float:
    """1 - min(|difference| / 5, 1) of the first numbers of completion and answer, in [0, 1]; 0 where it has none.

    A number stands as a word of its own, in digits of any script with a point or a comma (`3.5`, `3,5`, `1,000`), in
    English words or in Chinese numerals, both below a thousand; case, punctuation, units and counters (`3개`, `两只`)
    and what stands beside it do not count.

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
    found = _NUMBER.search(with_points(normalise(text)))
    if found is None:
        return None
    if found["digits"]:
        return float(found["digits"].replace(",", ""))
    total = part = 0
    for value in (VALUES[word] for word in found["words"].split() if word in VALUES):  # without "and" and "a"
        # 二十一 is 2 * 10 + 1; twenty one is 20 + 1, and so is a ten alone.
        if value == 100 or (value == 10 and "十" in found["words"]):
            total, part = total + (part or 1) * value, 0
        else:
            part += value
    return float(total + part)


def is_integer(answer: str) -> bool:
    """Whether an answer is a whole number in digits, and nothing else."""
    return _INTEGER.fullmatch(normalise(conclusion(answer))) is not None
