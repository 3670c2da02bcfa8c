"""The processes of a pool: who sits where, who comes and goes, and one to spare.

The spare is up and has imported what workers need, and holds no model: when one dies it takes over at once, from
whichever node it is on, and the next spare starts where that one was. On GPUs there is none: a process has there what
Ray gives it when it starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import count
from typing import Any

import ray

from actors.fleet.forks import copied
from actors.fleet.member import Member
from actors.fleet.placement import ExtraSeat, Seating
from actors.fleet.worker import Worker
from pipeline.config import Device, Recipe, Workers

LINGERS = 4
"""Times that a pool is resized (once a step) before a worker that leaves is gone: what it has put into the object store
goes with it, and steps that have begun still read that."""
SPARE_AFTER_S = 120.0
"""Age at which a pool gets its spare, if its run has lost nothing before: short runs do without."""
_LIVES = count()


class Staff:
    """Workers of one class in the seats that are held for them, and further ones in seats of their own."""

    def __init__(self, worker: type[Worker], role: str, seating: Seating, recipe: Recipe, settings: Workers):
        self.role = role
        self.recipe, self.settings = recipe, settings
        self._worker = worker
        self._device = seating.device
        self.members = [self._started(str(seat), seat, options) for seat, options in enumerate(seating.options[role])]
        self.leaving: list[Member] = []
        self._size = settings.num_workers
        """How many workers there are to be."""
        self._wanted: ExtraSeat | None = None
        """The seat that was asked for and is not there yet."""
        self._spare: Member | None = None
        # Beside a worker that needs its core more.
        self._vacant: Mapping[str, Any] = {**self.members[-1].options, "num_cpus": 0}
        """Where the next spare starts."""
        self._born = time.monotonic()

    def _started(self, name: str, seat: int, options: Mapping[str, Any], extra: ExtraSeat | None = None) -> Member:
        remote: Any = ray.remote(self._worker)
        name = f"{self.role}-{name}-{id(self):x}-{next(_LIVES)}"
        own = copied(self._device) if self._worker.imports_models else {}
        actor = remote.options(name=name, **own, **options).remote(self.recipe, self.settings)
        return Member(seat, actor, actor.start.remote(self._device), options, extra)

    def replace(self, member: Member) -> Member:
        """Puts another worker in the seat of one that died: the spare, where there is one, or one that starts."""
        ray.kill(member.actor)
        another = None if member.extra is not None else self._spare
        if another is None:
            another = self._started(str(member.seat), member.seat, member.options, member.extra)
        else:
            self._spare, self._vacant, another.seat = None, member.options, member.seat
        self.members[member.seat] = another
        return another

    def keep_spare(self, *, at_once: bool) -> None:
        """Starts a spare, if there is none and it is time for one."""
        is_time = at_once or time.monotonic() - self._born > SPARE_AFTER_S
        is_calm = all(member.is_ready for member in self.members)
        if self._spare is None and self._device is Device.CPU and is_time and is_calm:
            self._spare = self._started("spare", -1, self._vacant)
            self._spare.was_spare = True

    def end_spare(self) -> None:
        """Ends it: it was started with what holds no longer."""
        if self._spare is not None:
            ray.kill(self._spare.actor)
            self._spare = None

    def resize(self, size: int) -> None:
        """Says how many workers there are to be; ends those that have lingered."""
        self._size = size
        if self._wanted is not None and size <= len(self.members):
            self._wanted.release()
            self._wanted = None
        while size < len(self.members) and self.members[-1].extra is not None:
            self.members[-1].beats_left = LINGERS
            self.leaving.append(self.members.pop())
        for member in list(self.leaving):
            member.beats_left -= 1
            if member.beats_left < 0 and not member.doing:
                self.left(member)

    def left(self, member: Member) -> None:
        """Ends one that leaves, and gives its seat back."""
        self.leaving.remove(member)
        self._end(member)

    def arrived(self) -> Member | None:
        """Starts a worker in the seat that was asked for, once it has come."""
        if self._wanted is None or not self._wanted.is_there():
            return None
        seat = len(self.members)
        self.members.append(self._started(str(seat), seat, self._wanted.options, self._wanted))
        self._wanted = None
        return self.members[-1]

    def ask(self) -> None:
        """Asks for the next seat, where more are to be."""
        if self._wanted is None and self._size > len(self.members):
            self._wanted = ExtraSeat(self.settings, self._device)

    def _end(self, member: Member) -> None:
        ray.kill(member.actor)
        if member.extra is not None:
            member.extra.release()

    def shutdown(self) -> None:
        """Ends all of them, and takes requests back."""
        self.end_spare()
        for member in [*self.members, *self.leaving]:
            self._end(member)
        if self._wanted is not None:
            self._wanted.release()
