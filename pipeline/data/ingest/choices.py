"""Multiple choice: what there is to choose from goes below the question, and an answer by number becomes a letter.

ScienceQA has a list and a number, MMMU a list in Python's spelling and a letter, ARC `{text, label}`, MedQA
`{letter: text}`, VLMEvalKit a column a letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from pipeline.data.ingest.turns import spelled, text_of, wrong_type
from pipeline.data.schema import Reason, RowError

_WANTED = "a list of two texts or more (a text is put below the question by prepare.map.input=choices)"


def lettered(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns that hold a choice each, by the choice's letter: `A`, `B`, ..., or `option_a`, or `choice_a`."""
    for prefix, letters in (("", ascii_uppercase), ("option_", ascii_lowercase), ("choice_", ascii_lowercase)):
        present = "".join(takewhile(lambda letter, prefix=prefix: row.get(prefix + letter) not in (None, ""), letters))
        if len(present) > 1:
            return {letter.upper(): prefix + letter for letter in present}
    return {}


def choices_of(value: Any, field: str) -> dict[str, str]:
    """What there is to choose from, by its letter; nothing where the list is empty, as of MMMU's open questions.

    Raises:
        RowError: it is neither a list of texts, nor texts by their letters.
    """
    match spelled(value) if isinstance(value, str) else value:
        case {"text": [*texts], "label": [*labels]} if len(texts) == len(labels):
            pairs = list(zip(labels, texts, strict=True))
        case [{"text": _, "label": _}, *_] as items:
            pairs = [(item.get("label"), item.get("text")) for item in items]
        case [*texts]:
            pairs = list(zip(ascii_uppercase, texts, strict=False)) if len(texts) <= len(ascii_uppercase) else []
            if not texts:
                return {}
        case {"A": _, "B": _} as by_letter:
            pairs = [(letter, text) for letter, text in by_letter.items() if text is not None]
        case _:
            pairs = []
    if len(pairs) < 2:
        raise wrong_type(field, value, _WANTED)
    return {text_of(letter, field): text_of(text, field) for letter, text in pairs}


def below(question: str, choices: Mapping[str, str]) -> str:
    """What goes below a question: the choices, a line each, unless it lists them itself."""
    listed = (rf"\b{re.escape(letter)}\s*[.):]\s*{re.escape(text)}" for letter, text in choices.items())
    if all(re.search(each, question) for each in listed):
        return ""
    return "".join(f"\n{letter}. {text}" for letter, text in choices.items())


def answer_of(value: Any, choices: Mapping[str, str]) -> str:
    """The answer, as the letter of a choice where it says a letter or a number, else as the choice's own text.

    Numbers count from 0, as ScienceQA's do.

    Raises:
        RowError: it is none of the choices, or it may be two of them.
    """
    texts, answer = list(choices.values()), text_of(value, "answer").strip()
    by_number = int(answer) if answer.isdecimal() and len(answer) < 4 and int(answer) < len(texts) else None
    by_text = texts.index(answer) if answer in texts else None
    by_letter = next(
        (
            place
            for place, (letter, text) in enumerate(choices.items())
            for end in ("", f" {text}")
            if answer in (f"{letter}{end}", f"{letter}.{end}", f"({letter}){end}", f"{letter}){end}", f"{letter}:{end}")
        ),
        None,
    )
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
