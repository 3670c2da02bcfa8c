"""What was lost and brought back in a run: counted, told, and bounded."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from actors.fleet.failures import TooManyRecoveries

HOUR_S = 3600.0


@dataclass
class Recovery:
    """One loss: whose, why, and once it is made good, the seconds that took and the steps that were done again."""

    role: str
    cause: str
    started: float
    seconds: float | None = None
    steps: int = 0

    def done(self, *, steps: int = 0) -> None:
        """What was lost is back; so many steps are done again."""
        self.seconds, self.steps = time.monotonic() - self.started, steps
        print(f"back: {self.role}, after {self.seconds:.1f} s and {steps} steps", flush=True)


class Recoveries:
    """The losses of a run so far. Threads of several pools may report."""

    def __init__(self, *, max_an_hour: int):
        self._max_an_hour = max_an_hour
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        self.all: list[Recovery] = []

    def begin(self, role: str, cause: str) -> Recovery:
        """Counts a loss that is about to be made good.

        Raises:
            TooManyRecoveries: there were too many within an hour.
        """
        with self._lock:
            now = time.monotonic()
            self._recent.append(now)
            while self._recent[0] < now - HOUR_S:
                self._recent.popleft()
            recovery = Recovery(role, cause, now)
            self.all.append(recovery)
            print(f"lost: {role}: {cause}", flush=True)
            if len(self._recent) > self._max_an_hour:
                often = Counter(f"{each.role}: {each.cause}" for each in self.all).most_common(3)
                told = "; ".join(f"{count} x {what}" for what, count in often)
                raise TooManyRecoveries(
                    f"{len(self._recent)} losses within an hour, more than cluster.max_recoveries_an_hour="
                    f"{self._max_an_hour}: {told}"
                )
            return recovery

    def counts(self) -> dict[str, float]:
        """Losses so far by role, as metrics."""
        return {
            f"counts/recoveries:{role}": float(count) for role, count in Counter(each.role for each in self.all).items()
        }
