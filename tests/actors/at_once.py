"""Workers that answer at once, without a process: what the tests of the loop ask instead of worlds and pools."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from actors.fleet.answer import Answer
from actors.fleet.worker import Spent


class AtOnce:
    """Whom an answer is waited for that is there."""

    def answer(self, results: Sequence[Any]) -> Answer[Any]:
        """Results of calls that took a second each."""
        calls: list[Future[Any]] = [Future() for _ in results]
        for call, result in zip(calls, results, strict=True):
            call.set_result((result, Spent(1.0, 0.0)))
        return Answer(self, calls)

    def failed(self, place: int, error: BaseException) -> BaseException:
        return error

    def hangs(self, places: Sequence[int], seconds: float) -> BaseException:
        raise AssertionError("what is there does not hang")

    def work(self, spent: Sequence[Spent]) -> Spent:
        return spent[0]
