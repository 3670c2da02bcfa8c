"""What all roles' workers have in common: they are started by role and settings, set up, and asked."""

from __future__ import annotations

import gc
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray

from actors.engine.place import Place
from pipeline.config import Device, Recipe, Workers


@dataclass(frozen=True)
class Spent:
    """Seconds of a call, measured in the worker: at work, and without work before it."""

    busy_s: float
    idle_s: float


class Meter:
    """Seconds that add up in one thread, and are asked for in another."""

    def __init__(self) -> None:
        self._total = self._told = 0.0

    def add(self, seconds: float) -> None:
        """Takes more in."""
        self._total += seconds

    def since(self) -> float:
        """What has come since this was asked last."""
        told, self._told = self._told, self._total
        return self._told - told


class Worker:
    """Base of all roles' plain classes. `recipe` is whole; `settings` are this role's own."""

    imports_models: ClassVar[bool] = True
    """Whether a start is mostly imports of torch and transformers, which a copy has already."""
    keeps_weights: ClassVar[bool] = True
    """Whether a worker holds its checkpoint's weights as they are, so that a later stage need not load them again."""

    def __init__(self, recipe: Recipe, settings: Workers):
        self.recipe = recipe
        self.settings = settings
        self._done_at = time.monotonic()
        if torch := sys.modules.get("torch"):  # Roles that compute nothing with it do not bring it: it takes seconds.
            torch.set_num_threads(settings.threads_per_worker)

    def perform(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, Spent]:
        """Calls a method by its name; also returns what that took."""
        started = time.monotonic()
        found = getattr(self, method)(*args, **kwargs)
        ended = time.monotonic()
        spent, self._done_at = Spent(ended - started, started - self._done_at), ended
        return found, spent

    def start(self, device: Device) -> None:
        """Warms up."""
        # A sixth of an import goes to the garbage collector, which finds nothing: modules stay, and are so many that
        # later collections had better pass them over too.
        gc.disable()
        self.warm_up(device)
        gc.freeze()
        gc.enable()

    def warm_up(self, device: Device) -> None:
        """Imports what `setup` needs, so that it is there by then."""
        from pipeline.models.imports import import_modeling  # pools of workers that compute nothing do without

        import_modeling()

    def rendezvous(self) -> tuple[str, int]:
        """Address of this worker's node and a port that is free there."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def setup(self, place: Place, path: Path) -> None:
        """Loads what the role needs from a checkpoint; a sharded role joins its world first."""
        raise NotImplementedError
