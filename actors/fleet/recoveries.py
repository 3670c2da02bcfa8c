"""What was lost and brought back in a run: counted, told, kept in a file, and bounded."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.fleet.failures import Loss, TooManyRecoveries

HOUR_S = 3600.0
LOSSES_FILE = "losses.jsonl"


@dataclass
class Recovery:
    """One loss: whose, why, and once it is made good, the seconds that took and the steps that were done again."""

    role: str
    cause: str
    kind: Loss
    stage: str
    step: int | None
    """Of the loop, at which it was met."""
    at: float
    """Seconds since the epoch."""
    seconds: float | None = None
    steps: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    _started: float = field(default_factory=time.monotonic)
    _keep: Callable[[Recovery], None] = lambda _: None

    def done(self, *, steps: int = 0) -> None:
        """What was lost is back; so many steps are done again."""
        self.seconds, self.steps = time.monotonic() - self._started, steps
        print(f"back: {self.role}, after {self.seconds:.1f} s and {steps} steps", flush=True)
        self._keep(self)


class Recoveries:
    """The losses of a run so far. Threads of several pools may report."""

    def __init__(self, *, max_an_hour: int, directory: Path | None = None):
        """directory: of the run, where losses are kept."""
        self._max_an_hour = max_an_hour
        self._file = directory / LOSSES_FILE if directory else None
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        self._counted = 0
        self._back: list[Recovery] = []
        """Made good since `seconds` was asked last."""
        self._stage = ""
        self.step: int | None = None
        """That a loop is at."""
        self.all: list[Recovery] = []

    def enter(self, stage: str, *, goes_on: bool = False) -> None:
        """From now on losses are those of a stage; what an earlier try of it has lost stays told where that goes on."""
        self._stage, self.step = stage, None
        if self._file is not None and self._file.is_file() and not goes_on:
            lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
            self._file.write_text("".join(line for line in lines if json.loads(line)["stage"] != stage), "utf-8")

    def begin(self, role: str, cause: str, kind: Loss = Loss.DIED) -> Recovery:
        """Counts a loss that is about to be made good.

        Raises:
            TooManyRecoveries: there were too many within an hour.
        """
        recovery = self.note(role, cause, kind)
        with self._lock:
            now = time.monotonic()
            self._recent.append(now)
            while self._recent[0] < now - HOUR_S:
                self._recent.popleft()
            if len(self._recent) > self._max_an_hour:
                often = Counter(f"{each.role}: {each.cause}" for each in self.all).most_common(3)
                told = "; ".join(f"{count} x {what}" for what, count in often)
                raise TooManyRecoveries(
                    f"{len(self._recent)} losses within an hour, more than cluster.max_recoveries_an_hour="
                    f"{self._max_an_hour}: {told}"
                )
        return recovery

    def note(self, role: str, cause: str, kind: Loss) -> Recovery:
        """Counts a loss with which the run goes on as it is."""
        recovery = Recovery(role, cause, kind, self._stage, self.step, time.time(), _keep=self._keep)
        with self._lock:
            self.all.append(recovery)
        at = "" if self.step is None else f" at step {self.step}"
        print(f"lost: {role}{at}: {cause}", flush=True)
        self._keep(recovery)
        return recovery

    def counts(self) -> dict[str, float]:
        """Losses since this was asked last, by role and by cause, as metrics."""
        with self._lock:
            new, self._counted = self.all[self._counted :], len(self.all)
        by_role, by_cause = Counter(each.role for each in new), Counter(each.kind for each in new)
        return {
            **{f"counts/recoveries:{role}": float(count) for role, count in by_role.items()},
            **{f"counts/recoveries_by_cause:{kind}": float(count) for kind, count in by_cause.items()},
        }

    def seconds(self) -> dict[str, float]:
        """Seconds that it took to bring back what came back since this was asked last, by role, as metrics."""
        with self._lock:
            back, self._back = self._back, []
        spent: defaultdict[str, float] = defaultdict(float)
        for each in back:
            spent[each.role] += each.seconds or 0.0
        return {f"recovery/{role}_s": seconds for role, seconds in spent.items()}

    def _keep(self, recovery: Recovery) -> None:
        if recovery.seconds is not None:
            with self._lock:
                self._back.append(recovery)
        if self._file is None:
            return
        told = {name: value for name, value in vars(recovery).items() if not name.startswith("_")}
        with self._lock, suppress(OSError):  # A full disk may be what was lost.
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


def read_losses(directory: Path) -> list[dict[str, Any]]:
    """All losses of a run in their order, with the fields of `Recovery`; `seconds` is None where nothing came back."""
    file = directory / LOSSES_FILE
    if not file.is_file():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [*{line["id"]: line for line in lines}.values()]
