"""The ranks of one role that form one DeepSpeed group: seated, set up, asked and started again together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray.exceptions import RayError

from actors.engine.place import Place
from actors.fleet.answer import Answer
from actors.fleet.deadlines import Deadlines
from actors.fleet.failures import MISTAKES, Loss, WorldLost, cause_of, inputs_are_lost, is_death, unread
from actors.fleet.forks import copied
from actors.fleet.placement import Seating
from actors.fleet.worker import Meter, Spent, Worker
from pipeline.config import Recipe, Workers

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
W = TypeVar("W", bound=Worker)

_LIVES = count()


class World(Generic[W]):
    """`num_workers` actors of one class, all or none. They start at once; `setup` gives them a checkpoint.

    Calls take the method itself, `world.on_all(PolicyWorker.save, path)`, so that types and names are checked.
    """

    def __init__(self, worker: type[W], role: str, seating: Seating, recipe: Recipe, settings: Workers):
        self.role = role
        self.settings = settings
        self.path: Path | None = None
        self._worker = worker
        self._recipe = recipe
        self._seating = seating
        self._deadlines = Deadlines(recipe.cluster.deadlines)
        self._idle = Meter()
        self._start()

    def _start(self) -> None:
        remote: Any = ray.remote(self._worker)
        life = next(_LIVES)
        own = copied(self._seating.device) if self._worker.imports_models else {}
        self.actors: list[Any] = [
            remote.options(name=f"{self.role}-{rank}-{id(self):x}-{life}", **own, **options).remote(
                self._recipe, self.settings
            )
            for rank, options in enumerate(self._seating.options[self.role])
        ]
        self.warm: list[ray.ObjectRef[None]] = [actor.start.remote(self._seating.device) for actor in self.actors]
        """Done when the workers are up and have imported what they need."""

    def __len__(self) -> int:
        return len(self.actors)

    def setup(self, path: Path) -> Answer[None]:
        """Starts joining the world and loading from `path`; wait for the result before the first call."""
        if self.path == path and self._worker.keeps_weights:
            return Answer(self, [])
        self.path = path
        try:
            # The first call of a process comes after all that it imports.
            first_s = self._recipe.cluster.deadlines.first_s
            address, port = ray.get(self.actors[0].rendezvous.remote(), timeout=first_s)
        except RayError as error:
            raise self.failed(0, error) from error
        places = [
            Place(
                rank=rank,
                size=len(self.actors),
                address=address,
                port=port,
                device=self._seating.device,
                timeout_s=self._recipe.cluster.collective_timeout_s,
            )
            for rank in range(len(self.actors))
        ]
        return self.on_each(Worker.setup, places, path)

    def on_all(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> Answer[R]:
        """Calls `method` with the same arguments on every worker."""
        return self._ask(method.__name__, [()] * len(self.actors), *args, **kwargs)

    def on_each(
        self, method: Callable[Concatenate[W, T, P], R], shards: Sequence[T], *args: P.args, **kwargs: P.kwargs
    ) -> Answer[R]:
        """Calls `method` on worker k with shard k and the common arguments."""
        if len(shards) != len(self.actors):
            raise ValueError(f"{self.role}: {len(shards)} shards for {len(self.actors)} workers")
        return self._ask(method.__name__, [(shard,) for shard in shards], *args, **kwargs)

    def _ask(self, method: str, firsts: Sequence[tuple[Any, ...]], *args: Any, **kwargs: Any) -> Answer[Any]:
        return self._answer(
            method,
            [
                actor.perform.options(name=f"{self._worker.__name__}.{method}")
                .remote(method, *first, *args, **kwargs)
                .future()
                for actor, first in zip(self.actors, firsts, strict=True)
            ],
        )

    def _answer(self, method: str, calls: Sequence[Future[tuple[Any, Spent]]]) -> Answer[Any]:
        for call in calls:
            call.add_done_callback(lambda done: self._deadlines.learn(method, done))
        return Answer(self, calls, self._deadlines.of(method))

    def offer(
        self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[ray.ObjectRef[R], Answer[None]]:
        """Calls `method` on every worker. What the first one returns stays in the object store, for others to take.

        The answer comes when it lies there.
        """
        name = method.__name__
        options = {"num_returns": 2, "name": f"{self._worker.__name__}.{name}"}
        pairs = [actor.perform.options(**options).remote(name, *args, **kwargs) for actor in self.actors]
        return pairs[0][0], self._answer(name, [_spent_alone(spent) for _, spent in pairs])

    def failed(self, place: int, error: BaseException) -> BaseException:
        """A death or an error of one rank is the world's: the others wait for it until they are started again."""
        cause = cause_of(error)
        if inputs_are_lost(error):
            return unread(self.role, error)
        if is_death(error):
            return WorldLost(self.role, f"rank {place} died: {str(error).splitlines()[0]}")
        if isinstance(cause, MISTAKES):
            cause.add_note(f"raised by rank {place} of {self.role}")
            return cause
        return WorldLost(self.role, f"rank {place} raised {type(cause).__name__}: {cause}", Loss.RAISED)

    def hangs(self, places: Sequence[int], seconds: float) -> BaseException:
        """Ranks that do not answer are as good as dead."""
        return WorldLost(self.role, f"ranks {[*places]} have not answered for {seconds:.0f} s", Loss.HUNG)

    def work(self, spent: Sequence[Spent]) -> Spent:
        """Ranks work at the same time: what it took the busiest."""
        self._idle.add(sum(each.idle_s for each in spent) / len(spent))
        return max(spent, key=lambda each: each.busy_s)

    def waited_s(self) -> float:
        """Seconds that a rank has waited to be asked for something since this was asked last, on average."""
        return self._idle.since()

    def restart(self) -> Path:
        """Starts all ranks again, in their seats; returns the checkpoint that they had. Set them up with it."""
        if self.path is None:
            raise ValueError(f"{self.role}: has no checkpoint to start again from")
        path, self.path = self.path, None  # Else it would be taken for set up.
        self.shutdown()
        self._start()
        return path

    def use(self, recipe: Recipe, settings: Workers) -> None:
        """Takes another recipe for workers that are started again."""
        self._recipe, self.settings = recipe, settings

    def shutdown(self) -> None:
        """Ends the workers' processes."""
        for actor in self.actors:
            ray.kill(actor)


def _spent_alone(spent: ray.ObjectRef[Spent]) -> Future[tuple[None, Spent]]:
    """The call to which `spent` belongs, without what it returned."""
    alone: Future[tuple[None, Spent]] = Future()

    def passed_on(done: Future[Spent]) -> None:
        if (error := done.exception()) is not None:
            alone.set_exception(error)
        else:
            alone.set_result((None, done.result()))

    spent.future().add_done_callback(passed_on)
    return alone


def split(items: Sequence[T], num_shards: int) -> list[list[T]]:
    """Contiguous shards whose lengths differ by at most one; some are empty where items are few."""
    size, extra = divmod(len(items), num_shards)
    starts = [index * size + min(index, extra) for index in range(num_shards + 1)]
    return [list(items[start:end]) for start, end in pairwise(starts)]
