"""The workers of one role: start them, join them into one DeepSpeed world, call them, collect what they return."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

import ray
import torch

from actors.engine.engine import World
from actors.fleet.placement import Seating
from pipeline.config import Device, Recipe, Workers

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
W = TypeVar("W", bound="Worker")


class Worker:
    """Base of all roles' plain classes. `recipe` is whole; `settings` are this role's own."""

    keeps_weights: ClassVar[bool] = True
    """Whether a worker holds its checkpoint's weights as they are, so that a later stage need not load them again."""

    def __init__(self, recipe: Recipe, settings: Workers):
        self.recipe = recipe
        self.settings = settings
        torch.set_num_threads(settings.threads_per_worker)

    def warm_up(self, device: Device) -> None:
        """Imports what `setup` needs, so that it is there by then."""
        importlib.import_module("transformers.modeling_utils")

    def rendezvous(self) -> tuple[str, int]:
        """Address of this worker's node and a port that is free there."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def setup(self, world: World, path: Path) -> None:
        """Loads what the role needs from a checkpoint; a sharded role joins its world first."""
        raise NotImplementedError


class WorkerGroup(Generic[W]):
    """`num_workers` actors of one class that form a world. They start at once; `setup` gives them a checkpoint.

    Calls take the method itself, `group.on_all(PolicyWorker.save, path)`, so that types and names are checked.
    """

    def __init__(self, worker: type[W], role: str, seating: Seating, recipe: Recipe, settings: Workers):
        self.role = role
        self.settings = settings
        self.path: Path | None = None
        self._worker = worker
        self._recipe = recipe
        self._device = seating.device
        remote: Any = ray.remote(worker)
        self.actors: list[Any] = [
            remote.options(name=f"{role}-{rank}-{id(self):x}", **options).remote(recipe, settings)
            for rank, options in enumerate(seating.options[role])
        ]
        self.warm: list[ray.ObjectRef[None]] = [actor.warm_up.remote(seating.device) for actor in self.actors]
        """Done when the workers are up and have imported what they need."""

    def __len__(self) -> int:
        return len(self.actors)

    def setup(self, path: Path) -> list[ray.ObjectRef[None]]:
        """Starts joining the world and loading from `path`; wait for the result before the first call."""
        if self.path == path and self._worker.keeps_weights:
            return []
        self.path = path
        address, port = ray.get(self.actors[0].rendezvous.remote())
        return [
            actor.setup.remote(
                World(
                    rank=rank,
                    size=len(self.actors),
                    address=address,
                    port=port,
                    device=self._device,
                    timeout_s=self._recipe.cluster.collective_timeout_s,
                ),
                path,
            )
            for rank, actor in enumerate(self.actors)
        ]

    def on_all(
        self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> list[ray.ObjectRef[R]]:
        """Calls `method` with the same arguments on every worker."""
        return [getattr(actor, method.__name__).remote(*args, **kwargs) for actor in self.actors]

    def on_each(
        self, method: Callable[Concatenate[W, T, P], R], shards: Sequence[T], *args: P.args, **kwargs: P.kwargs
    ) -> list[ray.ObjectRef[R]]:
        """Calls `method` on worker k with shard k and the common arguments."""
        if len(shards) != len(self.actors):
            raise ValueError(f"{self.role}: {len(shards)} shards for {len(self.actors)} workers")
        return [
            getattr(actor, method.__name__).remote(shard, *args, **kwargs)
            for actor, shard in zip(self.actors, shards, strict=True)
        ]

    def shutdown(self) -> None:
        """Ends the workers' processes."""
        for actor in self.actors:
            ray.kill(actor)


def split(items: Sequence[T], num_shards: int) -> list[list[T]]:
    """Contiguous shards whose lengths differ by at most one; some are empty where items are few."""
    size, extra = divmod(len(items), num_shards)
    starts = [index * size + min(index, extra) for index in range(num_shards + 1)]
    return [list(items[start:end]) for start, end in pairwise(starts)]
