"""A pool of workers on a real Ray: results in order, a dead worker replaced, nothing lost in silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.data.ingest.pool import Pool

pytestmark = pytest.mark.usefixtures("local_ray")


class Squarer:
    """Kills its process at a number until the log has `deaths` lines, and refuses negative ones."""

    def __init__(self, log: Path, at: int, deaths: int) -> None:
        self._log, self._at, self._deaths = log, at, deaths

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


def squares(log: Path, numbers: list[int], *, at: int, deaths: int) -> list[int]:
    log.write_text("")
    actor: Any = ray.remote(Squarer).options(num_cpus=0.1)
    with Pool(lambda: actor.remote(log, at, deaths), 2) as pool:
        return list(pool.map(lambda worker, n: worker.square.remote(n), numbers, lambda n: f"at number {n}"))


def test_results_come_in_the_order_of_the_inputs_whoever_dies(tmp_path: Path) -> None:
    assert squares(tmp_path / "log", list(range(1, 9)), at=3, deaths=1) == [1, 4, 9, 16, 25, 36, 49, 64]
    assert (tmp_path / "log").read_text() == "."


@pytest.mark.parametrize(("at", "where"), [(3, "at number 3"), (0, "while they were built")])
def test_what_every_worker_dies_of_stops_the_pool_and_is_named(at: int, where: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"4 workers died, one after the other, {where}"):
        squares(tmp_path / "log", [1, 2, 3, 4], at=at, deaths=100)
    assert 4 <= len((tmp_path / "log").read_text()) <= 6  # building goes on beside the fourth


def test_what_a_worker_raises_arrives_as_it_is_and_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="negative"):
        squares(tmp_path / "log", [1, -1, 2], at=-5, deaths=0)


def test_neither_the_driver_nor_a_worker_waits_for_imports_that_few_jobs_need() -> None:
    heavy = "{'torch', 'transformers', 'ray.data', 'datasets'}"
    code = f"import sys, jobs.prepare, pipeline.data.ingest.worker; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
