"""What was lost and brought back in a run: counted, told, and bounded."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from actors.fleet.failures import TooManyRecoveries

HOUR_S = 3600.0


@dataclass(frozen=True)
class Recovery:
    """One loss: whose, why, and the seconds until it was made good; None where others went on meanwhile."""

    role: str
    cause: str
    seconds: float | None = None


class Recoveries:
    """The losses of a run so far. Threads of several pools may report."""

    def __init__(self, *, max_an_hour: int):
        self._max_an_hour = max_an_hour
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()
        self.all: list[Recovery] = []

    def begin(self, role: str, cause: str) -> None:
        """Counts a loss that is about to be made good.

        Raises:
            TooManyRecoveries: there were too many within an hour.
        """
        with self._lock:
            now = time.monotonic()
            self._recent.append(now)
            while self._recent[0] < now - HOUR_S:
                self._recent.popleft()
            self.all.append(Recovery(role, cause))
            print(f"lost: {role}: {cause}", flush=True)
            if len(self._recent) > self._max_an_hour:
                often = Counter(f"{each.role}: {each.cause}" for each in self.all).most_common(3)
                told = "; ".join(f"{count} x {what}" for what, count in often)
                raise TooManyRecoveries(
                    f"{len(self._recent)} losses within an hour, more than cluster.max_recoveries_an_hour="
                    f"{self._max_an_hour}: {told}"
                )

    def counts(self) -> dict[str, float]:
        """Losses so far by role, as metrics."""
        return {
            f"counts/recoveries:{role}": float(count) for role, count in Counter(each.role for each in self.all).items()
        }
