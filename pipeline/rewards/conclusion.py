"""What a text comes to: the part of it that rewards compare, in completions and in reference answers alike.

Models that are taught to think write `<think>...</think><answer>...</answer>`, and data sets of such completions have
references in these tags, too. What was thought is no answer: a wrong one with the right number in its thinking is
wrong, and options that were weighed there are not taken. Rewards on form (`length`) see the whole text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

_THINKING = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN_ANSWER = re.compile(r"<answer>", re.IGNORECASE)
# GSM8K's last line. A heading of Markdown looks the same and is never the last.
_LAST_LINE = re.compile(r"(?:\A|\n)[ \t]*####[ \t]*([^\s#][^\n]*)\s*\Z")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def conclusion(text: str) -> str:
    """The part of a text that is compared; all of it where it has none of these marks.

    - What follows the last `</think>`, or nothing where a `<think>` has no end: thinking that was cut off has said
      nothing yet. (`<thinking>` and `<reasoning>` are the same.) Where the prompt has opened the thinking and the
      completion never ends it, nothing tells it from an answer, and it is compared as it stands.
    - Of that, the last `<answer>...</answer>`. Where nothing follows the thinking, one that was written in it counts.
      An `<answer>` without an end goes to the end of the text, as generation may stop at `</answer>` and drop it.
    - Of that, what follows `####` in the last line.
    """
    if "<" in text:
        text = _tagged(text)
    if "####" in text and (last := _LAST_LINE.search(text)):
        return last[1]
    return text


def of_conclusions(compare: Callable[Concatenate[str, str, _P], _T]) -> Callable[Concatenate[str, str, _P], _T]:
    """Makes a comparison of a completion and an answer one of their conclusions."""

    @functools.wraps(compare)
    def compared(completion: str, answer: str, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return compare(conclusion(completion), conclusion(answer), *args, **kwargs)

    return compared


def _tagged(text: str) -> str:
    marks = list(_THINKING.finditer(text))
    ends = [mark.end() for mark in marks if mark[1]]
    is_open = bool(marks) and not marks[-1][1]
    after = "" if is_open else text[ends[-1] :] if ends else text
    if answers := _ANSWER.findall(after if after.strip() else text):
        return answers[-1]
    return _OPEN_ANSWER.split(after)[-1]
