"""Stop strings: texts that end a completion, whatever tokens spell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Decode = Callable[[Sequence[int]], str]
"""Token ids to the text that a completion has of them."""

CONTEXT_TOKENS = 1
"""Tokens decoded before those that a stop string could lie in: some tokenizers drop a space at the start of a text."""


class StopStrings:
    """Watches completions as they grow, and decodes of each no more than a stop string could reach back.

    A stop string of b bytes that the last token completes lies within the last b tokens that have a text, since each
    of those is worth at least a byte. Half a character decodes to U+FFFD and matches nothing until its rest is there.
    """

    def __init__(self, stop: Sequence[str], decode: Decode | None, num_completions: int):
        if decode is None:
            raise ValueError(f"stop={list(stop)!r} needs `decode`: stop strings are found in the text of a completion")
        self._stop = tuple(stop)
        self._decode = decode
        self._reach = max(len(text.encode()) for text in stop) + CONTEXT_TOKENS
        self._tails: list[list[int]] = [[] for _ in range(num_completions)]
        self._has_text: dict[int, bool] = {}

    def reached(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """Which completions `rows` [N] contain a stop string now that they have `token_ids` [N] too: bool [N]."""
        found = [self._grow(row, token) for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True)]
        return torch.tensor(found, dtype=torch.bool, device=rows.device)

    def _grow(self, row: int, token: int) -> bool:
        if token not in self._has_text:
            # Twice, because a lone space may be dropped as the start of a text.
            self._has_text[token] = bool(self._decode([token, token]))
        if not self._has_text[token]:
            return False  # Special tokens, which the text leaves out: they neither complete nor interrupt.
        tail = self._tails[row]
        tail.append(token)
        del tail[: -self._reach]
        text = self._decode(tail)
        return any(stop in text for stop in self._stop)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings in it; all of it where there is none."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
