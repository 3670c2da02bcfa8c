"""What was asked of the workers of a role, until all of it is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from actors.fleet.worker import Spent

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Asked(Protocol):
    """Whom an answer is waited for: it knows what a failure means, and what to do with who does not answer."""

    def failed(self, place: int, error: BaseException) -> BaseException:
        """What a failure of the call at `place` is to those who asked."""
        ...

    def hangs(self, places: Sequence[int], seconds: float) -> BaseException:
        """What it is to those who asked that the calls at `places` do not end."""
        ...

    def work(self, spent: Sequence[Spent]) -> Spent:
        """What the calls took the role, of what each of them took."""
        ...


@dataclass(frozen=True)
class Answer(Generic[R_co]):
    """Calls to the workers of a role: one result a call, in the order of the calls."""

    asked: Asked
    calls: Sequence[Future[tuple[R_co, Spent]]]
    deadline_s: float | None = None

    def result(self) -> list[R_co]:
        """The results; waits until they are there.

        Raises:
            Lost: what the calls need has to be brought back first.
        """
        return gather({"": self})[0][""]


def gather(answers: Mapping[str, Answer[Any]]) -> tuple[dict[str, list[Any]], dict[str, Spent]]:
    """Results of several roles that work at the same time, and what it took them; waits until all are there.

    The first failure is raised at once, whoever else is still at work.
    """
    started = time.monotonic()
    pending = {call: (name, place) for name, each in answers.items() for place, call in enumerate(each.calls)}
    ended: SimpleQueue[Future[tuple[Any, Spent]]] = SimpleQueue()
    for call in pending:
        call.add_done_callback(ended.put)
    while pending:
        spent = time.monotonic() - started
        limits = {name: answers[name].deadline_s for name, _ in pending.values()}
        late = {name for name, limit in limits.items() if limit is not None and spent >= limit}
        for name in late:
            places = [place for asked, place in pending.values() if asked == name]
            raise answers[name].asked.hangs(places, spent)
        left = [limit - spent for limit in limits.values() if limit is not None]
        try:
            call = ended.get(timeout=min(left, default=None))
        except Empty:
            continue
        name, place = pending.pop(call)
        if (error := call.exception()) is not None:
            raise answers[name].asked.failed(place, error) from error
    found = {name: [call.result() for call in each.calls] for name, each in answers.items()}
    return (
        {name: [value for value, _ in results] for name, results in found.items()},
        {name: answers[name].asked.work([spent for _, spent in results]) for name, results in found.items() if results},
    )
