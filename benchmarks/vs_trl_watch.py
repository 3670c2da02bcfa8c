"""Watches a training from outside: wall and CPU time of its whole tree of processes, at the end of each step.

A training shows that a step is done by a line in a file. Both sides of `benchmarks.vs_trl` are watched in this one way,
pinned to one core, so that a program of one process and one of many processes spend the same thing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from actors.fleet.forks import descendants

POLL_S = 0.005
STOP_TIMEOUT_S = 10.0
DRIVER, RAY = "driver", "Ray"


@dataclass(frozen=True)
class Moment:
    """When a line was there (seconds since 1970), and the CPU-seconds so far of each kind of process."""

    time: float
    cpu_s: Mapping[str, float]


@dataclass(frozen=True)
class Interval:
    """Between two moments: one step. `start` and `end` in seconds since 1970."""

    start: float
    end: float
    cpu_s: Mapping[str, float]

    @property
    def wall_s(self) -> float:
        """Seconds by the clock."""
        return self.end - self.start


def intervals(moments: Sequence[Moment], *, warm_up: int) -> list[Interval]:
    """Steps between moments, without the first `warm_up` and the last one, after which nothing is prepared ahead.

    Step k ends at moment k; what happens between two moments, background work included, belongs to the later one.
    """
    if len(moments) < warm_up + 2:
        raise ValueError(f"{len(moments)} steps: {warm_up} to warm up, the last one left out, nothing to measure")
    return [
        Interval(
            before.time,
            after.time,
            {kind: spent - before.cpu_s.get(kind, 0.0) for kind, spent in after.cpu_s.items()},
        )
        for before, after in zip(moments[warm_up - 1 :], moments[warm_up:-1], strict=False)
    ]


@dataclass
class Tree:
    """A process and all that descend from it; what has ended keeps counting."""

    root: psutil.Process
    _seen: dict[int, psutil.Process] = field(default_factory=dict[int, psutil.Process])
    _cpu_s: dict[int, float] = field(default_factory=dict[int, float])
    _kinds: dict[int, str] = field(default_factory=dict[int, str])

    def moment(self) -> Moment:
        """CPU-seconds so far by kind of process: its Ray actor's class, `driver` for the root, or `Ray`."""
        now = time.time()
        for process in [self.root, *descendants(self.root)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                spent = process.cpu_times()
                self._seen[process.pid] = process
                self._cpu_s[process.pid] = spent.user + spent.system
                self._kinds[process.pid] = DRIVER if process == self.root else kind_of(process.cmdline())
        totals: dict[str, float] = {}
        for pid, cpu_s in self._cpu_s.items():
            totals[self._kinds[pid]] = totals.get(self._kinds[pid], 0.0) + cpu_s
        return Moment(now, totals)

    def stop(self) -> None:
        """Ends what is left of the tree, orphans too."""
        with suppress(psutil.NoSuchProcess):
            self._seen |= {child.pid: child for child in [self.root, *descendants(self.root)]}
        for process in self._seen.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(self._seen.values()), timeout=STOP_TIMEOUT_S)


def kind_of(command: Sequence[str]) -> str:
    """The class of a Ray actor, which titles its process `ray::PolicyWorker.update`; all else is `Ray`."""
    title = command[0] if command else ""
    name = title.removeprefix("ray::").split(".")[0].split(" ")[0] if title.startswith("ray::") else ""
    return name if name.endswith("Worker") else RAY


def watch(
    command: Sequence[str], *, lines: Path, log: Path, environment: Mapping[str, str], core: int | None
) -> list[Moment]:
    """Runs `command` to its end, its output in `log`, and returns the moment of each line that came to `lines`.

    Raises:
        SystemExit: it failed.
    """
    moments: list[Moment] = []
    with log.open("wb") as out, pinned(core):
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    tree = Tree(psutil.Process(child.pid))
    try:
        while child.poll() is None:
            while len(moments) < num_lines(lines):
                moments.append(tree.moment())
            time.sleep(POLL_S)
    finally:
        tree.stop()
        child.wait()
    if child.returncode:
        sys.exit(f"failed with status {child.returncode}; its output: {log}")
    return moments


def num_lines(path: Path) -> int:
    """Whole lines in a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@contextmanager
def pinned(core: int | None) -> Generator[None, None, None]:
    """Children that start meanwhile may use `core` alone, and so may theirs; None, or another system: no bounds."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
