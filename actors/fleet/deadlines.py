"""How long a call may take before its worker counts as hanging: learned from the calls before."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from pipeline.config import Deadlines as Settings


class Deadlines:
    """For each method the longest that it took so far, times a factor; for the first call what the recipe says."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._longest: dict[str, float] = {}

    def of(self, method: str) -> float:
        """Seconds that a call may take."""
        longest = self._longest.get(method)
        if longest is None:
            return self._settings.first_s
        return max(self._settings.least_s, self._settings.factor * longest)

    def learn(self, method: str, call: Future[Any]) -> None:
        """Takes note of a call that has ended."""
        if call.exception() is None:
            self._longest[method] = max(self._longest.get(method, 0.0), call.result()[1].busy_s)
