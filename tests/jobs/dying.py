"""A worker that is killed at one row, as where memory runs out. It imports no torch, so that workers start soon."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.config import Recipe
from pipeline.records import Prompt


class DyingProcessor:
    """Stands where a model's processor does, takes words for tokens, and kills its process at a row.

    Args:
        log: gets a line at each death.
        deaths: after so many the row is processed like others.
    """

    def __init__(self, log: Path, row: str, deaths: int) -> None:
        self._log, self._row, self._deaths = log, row, deaths
        self.processor = SimpleNamespace(tokenizer=_words)

    def template(self, prompt: Prompt) -> str:
        return " ".join(message.content for message in prompt.messages)

    def check_learned(self, text: str | None, field: str) -> None:
        """Takes all that is learned."""

    def process(self, id: str, text: str, *_: Sequence[Any]) -> Any:
        if id == self._row and deaths_in(self._log) < self._deaths:
            with self._log.open("a") as log:
                log.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return _words(text)


def dying(log: Path, row: str, deaths: int, recipe: Recipe, checkpoint: Path) -> DyingProcessor:
    """For `processor_alone`, once the first three are bound."""
    return DyingProcessor(log, row, deaths)


def deaths_in(log: Path) -> int:
    """How many processes died."""
    return len(log.read_text().splitlines()) if log.exists() else 0


def _words(text: str, **_: object) -> Any:
    return SimpleNamespace(input_ids=text.split())
