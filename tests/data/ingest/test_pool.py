"""A pool of workers, on a real Ray and without: results in order, a dead worker replaced, nothing lost in silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.data.ingest.pool import Actors, Pool
from pipeline.data.ingest.processes import Processes


class Squarer:
    """Kills its process at a number until the log has `deaths` lines, and refuses negative ones."""

    def __init__(self, log: Path, at: int, deaths: int) -> None:
        self._log, self._at, self._deaths = log, at, deaths

    @classmethod
    def unsendable(cls) -> Squarer:
        """One that raises what no other process understands."""
        found = cls(Path(), -1, 0)
        found.square = found.complain
        return found

    def complain(self, number: int) -> int:
        raise ValueError("a lock came along", threading.Lock())

    def build(self) -> None:
        self._die_at(0)

    def square(self, number: int) -> int:
        if number < 0:
            raise ArithmeticError("negative")
        time.sleep(0.5 * (number == 1))  # the first is done after others
        self._die_at(number)
        return number * number

    def _die_at(self, number: int) -> None:
        if number == self._at and len(self._log.read_text()) < self._deaths:
            with self._log.open("a") as log:
                log.write(".")
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=["actors", "processes"])
def squares(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[int]]:
    """Squares numbers by two workers of a kind; the log tells of each that died."""

    def of(numbers: list[int], *, at: int, deaths: int) -> list[int]:
        log = tmp_path / "log"
        log.write_text("")
        workers = Processes(partial(Squarer, log, at, deaths))
        if request.param == "actors":
            request.getfixturevalue("local_ray")
            actor: Any = ray.remote(Squarer).options(num_cpus=0.1)
            workers = Actors(partial(actor.remote, log, at, deaths))
        with Pool(workers, 2) as pool:
            return list(pool.map("square", numbers, lambda number: f"at number {number}"))

    return of


def test_results_come_in_the_order_of_the_inputs_whoever_dies(
    squares: Callable[..., list[int]], tmp_path: Path
) -> None:
    assert squares(list(range(1, 9)), at=3, deaths=1) == [1, 4, 9, 16, 25, 36, 49, 64]
    assert (tmp_path / "log").read_text() == "."


@pytest.mark.parametrize(("at", "where"), [(3, "at number 3"), (0, "while they were built")])
def test_what_every_worker_dies_of_stops_the_pool_and_is_named(
    at: int, where: str, squares: Callable[..., list[int]], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=f"4 workers died, one after the other, {where}"):
        squares([1, 2, 3, 4], at=at, deaths=100)
    assert 4 <= len((tmp_path / "log").read_text()) <= 6  # building goes on beside the fourth


def test_what_a_worker_raises_arrives_as_it_is_and_is_not_tried_again(squares: Callable[..., list[int]]) -> None:
    with pytest.raises(ArithmeticError, match="negative"):
        squares([1, -1, 2], at=-5, deaths=0)


def test_an_error_that_cannot_travel_arrives_as_its_words() -> None:
    with Pool(Processes(Squarer.unsendable), 1) as pool, pytest.raises(RuntimeError, match="a lock came along"):
        next(pool.map("square", [1], str))


def test_neither_the_driver_nor_a_worker_waits_for_imports_that_few_jobs_need() -> None:
    heavy = "{'torch', 'transformers', 'ray.data', 'datasets'}"
    code = f"import sys, jobs.prepare, pipeline.data.ingest.worker; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
