"""The process that compares formulas for `mathematics.py`; a script that imports nothing of ours, to start quickly.

A line in, `[completion, answer, deadline_s]` as JSON; a line out, `[true or false, error or null]`. Completion and
answer are lists of the ways in which they can be read; where the completion is null, the question is whether the answer
is mathematics. At the deadline the kernel ends the process, whatever it is at.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import Any

from math_verify import parse, verify

MEMORY_BYTES = 2 * 2**30
MAX_CHARACTERS = 10_000
"""So much of a completion's end is read: its parser takes quadratic time."""

_HAS_LATEX = re.compile(r"\$|\\boxed|\\\[|\\\(")
_FUNCTION = r"(?:sin|cos|tan|log|sqrt|exp|inf|mod|gcd|lcm|max|min|ln|lg|pi)\b"
# Three letters, or two before a number or another word.
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!{_FUNCTION})(?:[A-Za-z]{{3,}}|[A-Za-z]{{2}}\s+-?[\dA-Za-z])")


def main() -> None:
    """Answers questions until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its action: the process ends
    for line in sys.stdin:
        completion, answer, deadline_s = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            found = [bool(_parse_formulas(answer)) if completion is None else compare(completion, answer), None]
        except MemoryError:
            found = [False, "memory"]
        except Exception as error:
            found = [False, f"{type(error).__name__}: {error}"]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found), flush=True)


def compare(completion: list[str], answer: list[str]) -> bool:
    """Whether the last result of a completion, in one of its readings, equals the answer in one of its own."""
    if not (wanted := _parse_formulas(answer)):
        raise ValueError("neither a formula nor a number")
    ends = [text[-MAX_CHARACTERS:] for text in completion]
    said = [each for text in ends for each in (_parse_formula(text) if _is_formula(text) else _parse(text))]
    return bool(said) and verify(wanted, said, timeout_seconds=None)


def _parse_formulas(texts: list[str]) -> list[Any]:
    return [each for text in texts for each in _parse_formula(text)]


def _is_formula(text: str) -> bool:
    """Whether a text is nothing but a formula without its dollar signs: one line, no LaTeX environment, no words."""
    return "\n" not in text.strip() and not _HAS_LATEX.search(text) and not _WORD.search(text)


def _parse_formula(text: str) -> list[Any]:
    """What a text is as a formula; where it is prose, the last result in it."""
    if _is_formula(text) and (found := _parse(f"${text.strip()}$")):
        return found
    return _parse(text)


def _parse(text: str) -> list[Any]:
    """Sympy's expressions alone: math-verify adds the text itself, by which nonsense would equal nonsense."""
    return [each for each in parse(text, parsing_timeout=0) if not isinstance(each, str)]


if __name__ == "__main__":
    main()
