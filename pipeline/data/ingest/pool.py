"""Workers that share out what there is to do; results come in the order of the inputs.

They are started once a job: they read, and they write. On a cluster they are plain Ray actors, on whichever nodes: Ray
Data would start helpers of its own and workers an operator, and pass what is said of rows as blocks. Where there is no
cluster they are processes of this machine, for which no Ray need start (`benchmarks/RESULTS.md` has what each costs).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

Input = TypeVar("Input")

_MOST_TRIES = 4
"""As many workers may die of one input, or while they are built."""
_END_S = 30.0


class Gone(Exception):
    """A worker died, or is out of reach."""


class Workers(Protocol):
    """Where the workers of a pool live. Each has one call at a time."""

    def start(self) -> Any:
        """A new worker, at once: it need not be up yet."""
        ...

    def ask(self, worker: Any, method: str, *args: Any) -> Any:
        """Begins a call."""
        ...

    def first(self, calls: list[Any]) -> Any:
        """Waits until one of the calls has ended."""
        ...

    def result(self, call: Any) -> Any:
        """What a call that has ended returned.

        Raises:
            Gone: its worker died. Else what the worker raised.
        """
        ...

    def end(self, worker: Any) -> None:
        """Ends a worker; perhaps it is only out of reach, and would write beside its successor."""
        ...

    def settle(self, calls: list[Any]) -> None:
        """Waits until none of the workers that were ended at these calls can write any more."""
        ...


class Actors:
    """Ray actors; `make` starts one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.start = make

    def ask(self, worker: Any, method: str, *args: Any) -> Any:
        return getattr(worker, method).remote(*args)

    def first(self, calls: list[Any]) -> Any:
        return ray.wait(calls, num_returns=1)[0][0]

    def result(self, call: Any) -> Any:
        try:
            return ray.get(call)
        except RayTaskError:  # raised by what the worker ran
            raise
        except RayError as error:
            raise Gone(str(error)) from error

    def end(self, worker: Any) -> None:
        ray.kill(worker)

    def settle(self, calls: list[Any]) -> None:
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_END_S)


class Pool(AbstractContextManager["Pool"]):
    """Workers that have a method `build`, called once. One that dies is replaced, and its input is given to another.

    Args:
        workers: where they live.
        num_workers: how many there are; those for which a cluster has no room yet join later.
    """

    def __init__(self, workers: Workers, num_workers: int) -> None:
        self._workers = workers
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}
        self._deaths: Counter[int | None] = Counter()
        for _ in range(num_workers):
            self._start()

    def map(self, method: str, inputs: Sequence[Input], name: Callable[[Input], str]) -> Iterator[Any]:
        """What a worker's `method` returns for each input, in order.

        name: where in the data an input is, for messages.

        Raises:
            RuntimeError: `_MOST_TRIES` workers died of one input; nothing is left out in silence.
        """
        waiting, found = deque(range(len(inputs))), dict[int, Any]()
        self._deaths.clear()
        for wanted in range(len(inputs)):
            while wanted not in found:
                while self._idle and waiting:
                    worker, number = self._idle.pop(), waiting.popleft()
                    self._running[self._workers.ask(worker, method, inputs[number])] = worker, number
                done = self._workers.first(list(self._running))
                worker, number = self._running.pop(done)
                try:
                    result = self._workers.result(done)
                except Gone as error:
                    where = "while they were built" if number is None else name(inputs[number])
                    self._replace(worker, number, where, error)
                    if number is not None:
                        waiting.appendleft(number)
                else:
                    self._idle.append(worker)
                    if number is not None:
                        found[number] = result
            yield found.pop(wanted)

    def _start(self) -> None:
        worker = self._workers.start()
        self._running[self._workers.ask(worker, "build")] = worker, None

    def _replace(self, worker: Any, number: int | None, where: str, error: Gone) -> None:
        self._workers.end(worker)
        self._deaths[number] += 1
        if self._deaths[number] == _MOST_TRIES:
            raise RuntimeError(
                f"{_MOST_TRIES} workers died, one after the other, {where} ({error}); if memory ran out, take "
                "prepare.num_workers down"
            ) from error
        self._start()

    def __exit__(self, *_: object) -> None:
        """Ends the workers, and waits until none can write any more."""
        for worker in (*self._idle, *(worker for worker, _ in self._running.values())):
            self._workers.end(worker)
        self._workers.settle(list(self._running))
