"""One form of a text for all comparisons: what a reader would call the same is the same.

Folded: Unicode's compatibility forms (NFKC: full-width letters, ligatures, x² as x2), case, runs of blanks, decimal
digits of any script, what nobody sees (zero-width characters, joiners, bidirectional marks, tatweel), hyphens and minus
signs of any kind, and punctuation, which is a blank. Turkish i with and without a dot are one letter: without knowing
the language, case cannot be folded otherwise.

Cut: usual units from their numbers (`5kg`, `7°C`), and Korean endings and counters from what they are written to
(`3마리`).

Kept, as part of a word: what stands between two digits (`3.5`, `1,000`, `12:30`, `1/2`, `2026-11-26`), a minus sign and
a decimal point before a number (`-5`, `.5`), `%`, `&`, `@`, `#`, `^`, currency signs and other symbols, an apostrophe
between letters (`don't`), and every combining mark: Devanagari vowels and Arabic vowel marks belong to their words.
`=`, `<`, `>`, `|` and pictures such as emoji are words of their own.

Scripts that put no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese and their neighbours) have each
character, with its marks, for a word. Korean has blanks.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex

SPACELESS = (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue",
    "Tai_Tham", "Tai_Viet",
)  # fmt: skip
"""Unicode's names of the scripts without blanks between words."""

_REMEMBERED = 512  # Texts may be long.
"""Texts whose forms are kept: an answer is compared with all completions of its group, which resemble each other."""
_LETTERS = "".join(rf"\p{{{script}}}" for script in SPACELESS) + "ー"
_PLAIN = re.compile(r"[a-z0-9 ]*")
_DIGIT = regex.compile(r"[\p{Nd}--0-9]", regex.V1)
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Variation_Selector}ـ]")
# Hyphens, en dash and minus sign; apostrophes; Arabic's decimal point, thousands separator and percent sign.
_SIGNS = str.maketrans("\u2010\u2011\u2012\u2013\u2212\u2019\u02bc\u066b\u066c\u066a", "-----''.,%")
_DOTLESS_I, _DOTTED_I = {0x131: "i"}, regex.compile("i\u0307+")
_PUNCTUATION = regex.compile(
    rf"""
    (?: (?<=\d) [.,:/*^-] (?=\d)                                             # between digits
      | (?<! [[\p{{L}}\p{{M}}\p{{N}}--[{_LETTERS}]])\]}}%.-] ) - (?=\.?\d)       # a minus sign
      | (?<! [\p{{L}}\p{{M}}\p{{N}}[\p{{P}}--\-]] ) \. (?=\d)                # a decimal point that begins a number
      | (?<= [\p{{L}}--[{_LETTERS}]]\p{{M}}* ) ' (?=[\p{{L}}--[{_LETTERS}]])  # an apostrophe
    ) (*SKIP) (*FAIL)
    | [[\p{{P}}\p{{Sk}}\p{{Cc}}]--[%‰&@\#^]]
    """,
    regex.V1 | regex.VERBOSE,
)
_OWN_WORD = regex.compile(rf"[{_LETTERS}]\p{{M}}*|[=<>|~≈[\p{{So}}--°]]", regex.V1)
_SPACELESS_OR_HANGUL = rf"{_LETTERS}\p{{Hangul}}"
_NO_NEIGHBOUR = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_SPACELESS_OR_HANGUL}]]"
_UNIT = (
    r"[kcdmnμ]?m|[kmμ]?g|[cdm]?l|[mnμ]?s|h|min|[ap]m|[kmg]?hz|[kmg]?wh?|[kmg]?v|[kmg]?pa|[kmgt]i?b|k?cal|"
    r"in|ft|mi|lbs?|oz|px|fps|mph"
)
_BEFORE_UNIT = regex.compile(
    rf"(?<!\d|{_NO_NEIGHBOUR})(\d++)(?:(?<!\b\d{{4}}(?=s))({_UNIT})|\ ?(°)\ ?([cfk]?))(?!{_NO_NEIGHBOUR})", regex.V1
)
_BEFORE_HANGUL = regex.compile(r"(?<=[[\p{L}\p{N}%‰]--\p{Hangul}])(?=\p{Hangul})", regex.V1)
_BEFORE_PERCENT = regex.compile(r"(?<=\d) (?=[%‰])")
_SPACELESS_WORD = regex.compile(rf"[{_LETTERS}]\p{{M}}*", regex.V1)


@lru_cache(_REMEMBERED)
def fold(text: str) -> str:
    """The text in NFKC and without case, digits as 0-9, runs of whitespace as one space and none at the ends."""
    if text.isascii():
        text = text.lower()
    else:
        text = _DOTTED_I.sub("i", plain(text).casefold().translate(_DOTLESS_I))
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def plain(text: str) -> str:
    """The text in NFKC, digits as 0-9, one sign for each minus and apostrophe, nothing that nobody sees; case stays."""
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_SIGNS)
    # Digits of a Unicode that is newer than Python's stay as they are.
    return _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)


@lru_cache(_REMEMBERED)
def normalise(text: str) -> str:
    """The words of a text, one space between them. A text that is nothing but punctuation stays as it is."""
    folded = _BEFORE_UNIT.sub(r"\1 \2\3\4", fold(text))
    if not folded.isascii():
        folded = _BEFORE_HANGUL.sub(" ", folded)
    if _PLAIN.fullmatch(folded):
        return folded
    words = _OWN_WORD.sub(r" \g<0> ", _PUNCTUATION.sub(" ", folded))
    return _BEFORE_PERCENT.sub("", " ".join(words.split())) or folded


def units(text: str) -> list[str]:
    """What error rates count: words, and in scripts that have no blanks characters, marks too (code points)."""
    words = normalise(text).split()
    if text.isascii():
        return words
    found: list[str] = []
    for word in words:
        found.extend(word if _SPACELESS_WORD.fullmatch(word) else (word,))
    return found
