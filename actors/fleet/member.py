"""What a pool's workers are, and what they are given to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.fleet.placement import ExtraSeat
from actors.fleet.worker import Spent


@dataclass(frozen=True)
class State:
    """What workers take before a task: a call that gives them the state."""

    method: str
    argument: Any


@dataclass(eq=False)
class Task:
    """A call, what it costs beside others, and the worker's seat that is best for it, where one is."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: State | None
    seat: int | None
    cost: float
    result: Future[tuple[Any, Spent]] = field(default_factory=Future[tuple[Any, Spent]])
    num_deaths: int = 0
    started: float = 0.0
    """When it was given to its worker, or when that one had done all before it."""


@dataclass(eq=False)
class Member:
    """A worker in its seat."""

    seat: int
    actor: Any
    warm: ray.ObjectRef[None]
    options: Mapping[str, Any]
    """Of its actor: where its process runs."""
    extra: ExtraSeat | None = None
    """The seat's own resources, where they are not held with those of the stage."""
    was_spare: bool = False
    loaded: Future[tuple[None, Spent]] = field(default_factory=Future[tuple[None, Spent]])
    """Done when it has its checkpoint."""
    asked: float = math.inf
    """When it was asked to load it."""
    is_ready: bool = False
    hangs: bool = False
    """Whether it was killed because it took too long."""
    state: State | None = None
    doing: list[Task] = field(default_factory=list[Task])
    """In the order in which they were given to it."""
    beats_left: int = 0
    """Of one that leaves: how often the pool is still to be resized before it goes."""

    @property
    def load(self) -> float:
        """What all that it is at costs."""
        return sum(task.cost for task in self.doing)
