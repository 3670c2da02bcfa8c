"""How numbers and formulas are written, brought to one form that a parser reads."""
# ruff: noqa: RUF001  Punctuation of other keyboards is what is read.

from __future__ import annotations

import re
import unicodedata

import regex

from pipeline.rewards.normalise import plain

# 3,5 and 1.234,5, but neither 1,234 nor 1,2,3.
_COMMA = r"(?<![\d.,])(?![1-9]\d{0,2},\d{3}(?!\d))(?:\d{1,3}(?:\.\d{3})+|\d+),\d+(?![\d,]|\.\d)"
_DOTS = r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.,]\d)"
_POINTLESS = re.compile(rf"{_COMMA}|{_DOTS}")

_STOPS = str.maketrans({"，": ", ", "、": ", ", "。": ". ", "：": ": "})
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+|[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_FRACTION = re.compile(r"(\d*)([¼-¾⅐-⅞])")
_LETTER = r"[[\p{L}\p{M}]--[\p{Latin}\p{Greek}]]"
_GLUED = regex.compile(rf"(?<={_LETTER}|\p{{L}}:)(?=[-+(]?\.?\d)|(?<=[\d)])(?={_LETTER})", regex.V1)
# Braces that group and brackets of LaTeX's environments, then brackets within which a comma separates; closing ones.
_BRACKET = re.compile(r"((?:\\[a-zA-Z]+|[\^_}])\{|\\[(\[])|(\\?\{|[(\[])|\\?[\])}]")


def with_points(text: str) -> str:
    """The text with its numbers as English writes them: `3,5` as 3.5, `1.234,5` as 1234.5, `1.000.000` as 1000000.

    A comma before three digits stays what it is in English (`1,000`), and so does a single point (`1.000` is one).
    Commas of a list stay, too (`1,2,3`).
    """
    return _POINTLESS.sub(lambda number: number[0].replace(".", "").replace(",", "."), text)


def formula(text: str) -> str:
    """The text with its digits, signs, powers and fractions as LaTeX has them: `x²` as `x^{2}`, `1½` as `(1+1/2)`.

    Numbers are cut from letters that stand right before or behind, in scripts other than Latin and Greek: `答案是7`.
    """
    if not text.isascii():
        text = _FRACTION.sub(_sum, _POWER.sub(_power, text.translate(_STOPS)))
        text = plain(text)
    return _GLUED.sub(" ", text)


def readings(text: str) -> tuple[str, ...]:
    """The ways in which a formula can be read: as it is, and with commas for points (`3,5` is a list or a number).

    Between brackets a comma separates: `(3,5)` and `{3,5}` have one reading.
    """
    text = text.replace("{,}", ",")
    pieces, position, separates = list[str](), 0, list[bool]()
    for bracket in _BRACKET.finditer(text):
        piece = text[position : bracket.start()]
        pieces += [piece if any(separates) else with_points(piece), bracket[0]]
        position = bracket.end()
        if bracket[0].lstrip("\\")[0] in ")]}":
            separates = separates[:-1]
        if bracket[1] or bracket[2]:
            separates.append(bool(bracket[2]))
    other = "".join(pieces) + with_points(text[position:])
    return (text,) if other == text else (text, other)


def _power(signs: re.Match[str]) -> str:
    sign = "^" if "<super>" in unicodedata.decomposition(signs[0][0]) else "_"
    return f"{sign}{{{plain(signs[0])}}}"


def _sum(number: re.Match[str]) -> str:
    """`½` as (1/2), `1½` as (1+1/2)."""
    fraction = unicodedata.normalize("NFKC", number[2]).replace("⁄", "/")
    return f"({number[1]}+{fraction})" if number[1] else f"({fraction})"
