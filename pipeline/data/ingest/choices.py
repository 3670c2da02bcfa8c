"""Multiple choice: what there is to choose from goes below the question, and an answer by number becomes a letter.

ScienceQA has a list and a number, MMMU a list in Python's spelling and a letter, ARC `{text, label}`, MedQA
`{letter: text}`, VLMEvalKit a column a letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from itertools import takewhile
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from pipeline.data.ingest.turns import is_missing, spelled, text_of, wrong_type
from pipeline.data.schema import Reason, RowError

_MARKS = ".):、"
"""What stands between a letter and its choice, full-width ones folded: `A. cat`, `(A) cat`, `A: cat`, `A、猫`."""
_TAGGED = re.compile(r"\A\s*<answer>(.*)</answer>\s*\Z", re.DOTALL)
"""Video-R1's answers are what its models are to say."""
_WANTED = "a list of two texts or more (a text is put below the question by prepare.map.input=choices)"


def folded(text: str) -> str:
    """A text in one compatibility form, in which full-width letters and marks are those of ASCII."""
    return unicodedata.normalize("NFKC", text)


def lettered(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns that hold a choice each, by the choice's letter: `A`, `B`, ..., or `option_a`, or `choice_a`.

    Raises:
        RowError: one holds nothing while a later one does.
    """
    for prefix, letters in (("", ascii_uppercase), ("option_", ascii_lowercase), ("choice_", ascii_lowercase)):
        columns = list(takewhile(row.__contains__, [prefix + letter for letter in letters]))
        held = [column for column in columns if not is_missing(row[column]) and row[column] != ""]
        if len(held) < 2:
            continue
        if held != columns[: len(held)]:
            gap = next(column for column, one in zip(columns, held, strict=False) if column != one)
            raise RowError(
                Reason.WRONG_TYPE,
                f"the choices {', '.join(held)} are there, and {gap} holds nothing; a choice that is the word None or "
                "NA is no value in a CSV: write the table as JSON Lines or Parquet",
            )
        return {column.removeprefix(prefix).upper(): column for column in held}
    return {}


def choices_of(value: Any, field: str) -> dict[str, str]:
    """What there is to choose from, by its letter; nothing where the list is empty, as of MMMU's open questions.

    Raises:
        RowError: it is neither a list of texts, nor texts by their letters.
    """
    match spelled(value) if isinstance(value, str) else value:
        case {"text": [*texts], "label": [*labels]} if len(texts) == len(labels):
            pairs = list(zip(labels, texts, strict=True))
        case [*items]:
            while items and is_missing(items[-1]):
                items.pop()
            if not items:
                return {}
            pairs = list(zip(ascii_uppercase, items, strict=False)) if len(items) <= len(ascii_uppercase) else []
            if all(isinstance(item, dict) and {"text", "label"} <= item.keys() for item in items):
                pairs = [(item["label"], item["text"]) for item in items]
        case {"A": _, "B": _} as by_letter:
            pairs = [(letter, text) for letter, text in by_letter.items() if not is_missing(text)]
        case _:
            pairs = []
    if len(pairs) < 2:
        raise wrong_type(field, value, _WANTED)
    found = {text_of(letter, field): text_of(text, field) for letter, text in pairs}
    marks = {letter: re.compile(rf"\(?{re.escape(letter)}[{_MARKS}\uff09\uff0e\uff1a]\s*") for letter in found}
    if all(marks[letter].match(text) for letter, text in found.items()):  # Video-MME's say their letters themselves
        return {letter: marks[letter].sub("", text, count=1) for letter, text in found.items()}
    return found


def below(question: str, choices: Mapping[str, str]) -> str:
    """What goes below a question: the choices, a line each, unless it lists them itself."""
    listed = (rf"\b{re.escape(letter)}\s*[{_MARKS}]\s*{re.escape(folded(text))}" for letter, text in choices.items())
    if all(re.search(each, folded(question)) for each in listed):
        return ""
    return "".join(f"\n{letter}. {text}" for letter, text in choices.items())


def answer_of(value: Any, choices: Mapping[str, str]) -> str:
    """The answer, as the letter of a choice where it says a letter or a number, else as the choice's own text.

    Numbers count from 0, as ScienceQA's do.

    Raises:
        RowError: it is none of the choices, or it may be two of them.
    """
    texts, answer = list(choices.values()), _TAGGED.sub(r"\1", text_of(value, "answer")).strip()
    by_number = int(answer) if answer.isdecimal() and len(answer) < 4 and int(answer) < len(texts) else None
    by_text = texts.index(answer) if answer in texts else None
    said = (
        rf"\(?(?i:{re.escape(letter)})([{_MARKS}]?|([{_MARKS}]\s*|\s+){re.escape(folded(text))})"
        for letter, text in choices.items()
    )
    letters = [place for place, pattern in enumerate(said) if re.fullmatch(pattern, folded(answer))]
    by_letter = letters[0] if letters else None
    readings = (by_number, by_letter, by_text)
    if not isinstance(value, str):  # a number is no text of a choice
        readings = (by_number if by_letter is None else by_letter,)
    places = {place for place in readings if place is not None}
    if len(places) != 1:
        fault = "may be two of the choices" if places else "is no letter, number (from 0) or text of the choices"
        raise RowError(
            Reason.WRONG_TYPE,
            f"answer {answer!r} {fault} {texts}; write a letter (A is the first), or leave their column out on "
            "purpose (prepare.ignore)",
        )
    return answer if readings == (None, None, by_text) else list(choices)[places.pop()]
