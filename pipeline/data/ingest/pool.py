"""Workers that share out what there is to do, anywhere on a cluster; results come in the order of the inputs.

They are plain Ray actors, started once a job: they read, and they write. Ray Data would start helpers of its own and
workers an operator, and pass what is said of rows as blocks (`benchmarks/RESULTS.md` has what that costs).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

Input = TypeVar("Input")

_MOST_TRIES = 4
"""As many workers may die of one input, or while they are built."""
_END_S = 30.0


class Pool(AbstractContextManager["Pool"]):
    """Actors, each with one call at a time. One that dies is replaced, and its input is given to another.

    Args:
        make: starts an actor, which has a method `build`, called once.
        num_workers: how many there are; those for which the cluster has no room yet join later.
    """

    def __init__(self, make: Callable[[], Any], num_workers: int) -> None:
        self._make = make
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}
        self._deaths: Counter[int | None] = Counter()
        for _ in range(num_workers):
            self._start()

    def map(
        self, ask: Callable[[Any, Input], Any], inputs: Sequence[Input], name: Callable[[Input], str]
    ) -> Iterator[Any]:
        """What the remote call `ask(worker, input)` returns for each input, in order.

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
                    self._running[ask(worker, inputs[number])] = worker, number
                (done,), _ = ray.wait(list(self._running), num_returns=1)
                worker, number = self._running.pop(done)
                try:
                    result = ray.get(done)
                except RayTaskError:  # raised by what the worker ran
                    raise
                except RayError as error:
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
        worker = self._make()
        self._running[worker.build.remote()] = worker, None

    def _replace(self, worker: Any, number: int | None, where: str, error: RayError) -> None:
        ray.kill(worker)  # perhaps it is only out of reach, and would write beside its successor
        self._deaths[number] += 1
        if self._deaths[number] == _MOST_TRIES:
            raise RuntimeError(
                f"{_MOST_TRIES} workers died, one after the other, {where}; see Ray's log for what killed them. If "
                "memory ran out, take prepare.num_workers down"
            ) from error
        self._start()

    def __exit__(self, *_: object) -> None:
        """Ends the workers, and waits until none can write any more."""
        for worker in (*self._idle, *(worker for worker, _ in self._running.values())):
            ray.kill(worker)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=_END_S)
