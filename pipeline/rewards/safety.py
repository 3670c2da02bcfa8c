"""Safety: a list of what a completion must not say. A negative part: 0 where all is well, -1 where something is said.

A list is a crude judge. It finds what it names and nothing else, not what is meant; see `classifier` for a finer one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.grading.records import RewardCompletion, RewardPrompt
from pipeline.rewards.normalise import normalise

Terms = frozenset[tuple[str, ...]]
"""Each term as its words, after `normalise`."""


def safety(prompts: Sequence[RewardPrompt], completions: Sequence[RewardCompletion], *, terms: str) -> list[float]:
    """`safety_reward` as a recipe asks for it; `terms` is the path of the list."""
    return safety_reward([completion.text for completion in completions], terms=read_terms(terms))


def safety_reward(texts: Sequence[str], *, terms: Terms) -> list[float]:
    """-1.0 where a text holds one of the terms, else 0.0.

    A term counts in one piece and by whole words after `normalise`: `Scunthorpe` holds none of its parts. In scripts
    without blanks between words, characters are words.
    """
    lengths = sorted({len(term) for term in terms})
    return [-1.0 if _holds(normalise(text).split(), terms, lengths) else 0.0 for text in texts]


def terms_of(lines: Iterable[str]) -> Terms:
    """Terms from lines: one a line; blank lines and those that begin with `#` are none.

    Raises:
        ValueError: there is no term.
    """
    found = [tuple(normalise(line).split()) for line in lines if not line.lstrip().startswith("#")]
    if not (terms := frozenset(term for term in found if term)):
        raise ValueError("a list of terms without a term: write one a line; lines that begin with # are remarks")
    return terms


@functools.lru_cache(maxsize=8)
def read_terms(path: str) -> Terms:
    """The terms of a UTF-8 text file, read once a process.

    Raises:
        ValueError: the file cannot be read or has no term.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list of terms {path!r} cannot be read: {error}") from error
    try:
        return terms_of(lines)
    except ValueError as error:
        raise ValueError(f"{path!r} is {error}") from error


def _holds(words: list[str], terms: Terms, lengths: list[int]) -> bool:
    return any(tuple(words[at : at + size]) in terms for size in lengths for at in range(len(words) - size + 1))
