"""Workers of one role that know nothing of each other, and come and go while work is done.

    submit -> queue of tasks, in order -> a worker that is free -> result at the task's place
                    ^                          |
                    +------ it died -----------+--> another one is started, set up, given the state, and joins

A task is the same call whoever does it, so that deaths, arrivals and the number of workers change no result. State that
workers hold beside their checkpoint (weights of a newer version) is published; a task is done under the state in which
it was submitted. One thread owns all that changes; others talk to it through its inbox.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from actors.engine.place import Place
from actors.fleet.answer import Answer
from actors.fleet.deadlines import Deadlines
from actors.fleet.failures import KillsWorkers, Loss, Lost, StateLost, cause_of, inputs_are_lost, is_death, unread
from actors.fleet.member import Member, State, Task
from actors.fleet.placement import Seating
from actors.fleet.recoveries import Recoveries, Recovery
from actors.fleet.staff import Staff
from actors.fleet.worker import Meter, Spent, Worker
from pipeline.config import Recipe, Workers

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
W = TypeVar("W", bound=Worker)

IN_FLIGHT = 2
"""Tasks that a worker has at a time: one to do, and one that lies ready."""
MAX_DEATHS = 4
"""Workers of which the same task may be the last, before it is taken for the cause."""
_LOOK_S = 1.0


class Pool(Generic[W]):
    """Workers of one class, each with a whole copy of what the role needs. They start at once.

    Those that a stage cannot do without sit in seats that are held with all others. Further ones get seats of their
    own, one after the other, when the cluster has them: an autoscaler sees what is asked for, and what is given back.

    Calls take the method itself, as those of a `World` do.
    """

    def __init__(
        self, worker: type[W], role: str, seating: Seating, recipe: Recipe, settings: Workers, recoveries: Recoveries
    ):
        self.role = role
        self.path: Path | None = None
        self._worker = worker
        self._device = seating.device
        self.recoveries = recoveries
        self._deadlines = Deadlines(recipe.cluster.deadlines)
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._staff = Staff(worker, role, seating, recipe, settings)
        self._members = self._staff.members
        self.warm = [member.warm for member in self._members]
        """Done when the workers are up and have imported what they need."""
        self._queue: deque[Task] = deque()
        self._busy, self._idle = Meter(), Meter()
        self._failure: BaseException | None = None
        """What nobody can bring back: it is the end of all tasks until another checkpoint is set up."""
        self.state: State | None = None
        """What workers take before a task that is submitted now."""
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"pool-{role}")
        self._thread.start()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def num_waiting(self) -> int:
        """Tasks that no worker has been given yet."""
        return len(self._queue)

    @property
    def settings(self) -> Workers:
        """Of the role."""
        return self._staff.settings

    @property
    def actors(self) -> list[Any]:
        """The workers of now."""
        return [member.actor for member in self._members]

    def setup(self, path: Path) -> Answer[None]:
        """Has all workers load from `path`; wait for the result before the first call. Published state is gone."""
        if self.path == path and self._worker.keeps_weights:
            return Answer(self, [])
        self.path, self.state = path, None
        loaded: list[Future[tuple[None, Spent]]] = [Future() for _ in self._members]
        self._inbox.put(partial(self._set_up_all, loaded))
        return Answer(self, loaded)

    def publish(self, method: Callable[Concatenate[W, T, ...], Any], argument: T | ray.ObjectRef[T]) -> None:
        """From now on workers do tasks after `method(argument)`, which gives them a state; earlier tasks, before it."""
        self.state = State(method.__name__, argument)

    @contextmanager
    def under(self, state: State | None) -> Generator[None, None, None]:
        """Tasks that are submitted in here are done under a state that was published earlier."""
        now, self.state = self.state, state
        try:
            yield
        finally:
            self.state = now

    def resize(self, size: int) -> None:
        """Says how many workers there are to be from now on; they come and go as they can. Call it once a step."""
        self._inbox.put(partial(self._resize, size))

    def submit(
        self,
        method: Callable[Concatenate[W, T, P], R],
        shares: Sequence[T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Answer[R]:
        """Has `method` done on each share, with the common arguments, by whoever has least to do."""
        return self.submit_by_cost(method, [1.0] * len(shares), shares, *args, **kwargs)

    def submit_by_cost(
        self,
        method: Callable[Concatenate[W, T, P], R],
        costs: Sequence[float],
        shares: Sequence[T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Answer[R]:
        """The same, where some shares cost more than others: the dearest are begun first."""
        return self._submit(method.__name__, [None] * len(shares), costs, shares, *args, **kwargs)

    def submit_to(
        self,
        method: Callable[Concatenate[W, T, P], R],
        seats: Sequence[int],
        shares: Sequence[T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Answer[R]:
        """The same, each share by the worker in its seat while that one lives: see `seat_of`."""
        return self._submit(method.__name__, seats, [1.0] * len(seats), shares, *args, **kwargs)

    def _submit(
        self,
        method: str,
        seats: Sequence[int | None],
        costs: Sequence[float],
        shares: Sequence[Any],
        *args: Any,
        **kwargs: Any,
    ) -> Answer[Any]:
        tasks = [
            Task(method, (share, *args), kwargs, self.state, seat, cost)
            for seat, share, cost in zip(seats, shares, costs, strict=True)
        ]
        self._inbox.put(partial(self._take, tasks))
        return Answer(self, [task.result for task in tasks])

    def on_all(self, method: Callable[Concatenate[W, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """What each worker that is at hand says to the same question; those that die or hang over it say nothing."""
        ready = [member for member in self._members if member.is_ready]
        asked = [(member, self._call(member, method.__name__, *args, **kwargs)) for member in ready]
        found: list[R] = []
        for member, call in asked:
            heard = time.monotonic()
            while not wait([call], _LOOK_S).done:
                if member.doing:  # What it is at comes first, and has a deadline of its own.
                    heard = time.monotonic()
                elif time.monotonic() - heard > self._deadlines.of(method.__name__):
                    self._kill(member)
            self._deadlines.learn(method.__name__, call)
            error = call.exception()
            if error is None:
                found.append(call.result()[0])
            elif not is_death(error):
                raise cause_of(error) from error
        return found

    def _call(self, member: Member, method: str, *args: Any, **kwargs: Any) -> Future[tuple[Any, Spent]]:
        """Called so that Ray's timeline shows worker and method."""
        return (
            member.actor.perform.options(name=f"{self._worker.__name__}.{method}")
            .remote(method, *args, **kwargs)
            .future()
        )

    def _kill(self, member: Member) -> None:
        """Ends a worker that hangs. What it was asked then fails as with one that died, at once or when it is asked."""
        member.hangs = True
        ray.kill(member.actor)

    def seat_of(self, key: str) -> int:
        """The seat whose worker does what belongs to `key`: a change of the number of seats moves few (rendezvous
        hashing, Thaler and Ravishankar 1998)."""
        return max(range(len(self._members)), key=lambda seat: hashlib.blake2b(f"{seat}/{key}".encode()).digest())

    def failed(self, place: int, error: BaseException) -> BaseException:
        """What an error of a task is to those who submitted it."""
        if isinstance(error, Lost):
            return error
        return unread(self.role, error) if inputs_are_lost(error) else cause_of(error)

    def hangs(self, places: Sequence[int], seconds: float) -> BaseException:
        """The pool looks after its deadlines itself."""
        return Lost(self.role, f"tasks {[*places]} have not ended for {seconds:.0f} s", Loss.HUNG)

    def work(self, spent: Sequence[Spent]) -> Spent:
        """What it took each worker, on average."""
        num = len(self._members)
        return Spent(sum(each.busy_s for each in spent) / num, sum(each.idle_s for each in spent) / num)

    def busy_s(self) -> float:
        """Seconds that a worker has been at tasks since this was asked last, on average."""
        return self._busy.since() / len(self._members)

    def waited_s(self) -> float:
        """Seconds that a worker has waited for tasks since this was asked last, on average."""
        return self._idle.since() / len(self._members)

    def use(self, recipe: Recipe, settings: Workers) -> None:
        """Takes another recipe for workers that are started again."""
        self._staff.recipe, self._staff.settings = recipe, settings
        self._inbox.put(self._staff.end_spare)

    def shutdown(self) -> None:
        """Ends the workers' processes."""
        self._inbox.put(None)
        self._thread.join()
        self._staff.shutdown()

    # From here on in the pool's own thread.

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            try:
                if time.monotonic() - looked > _LOOK_S:
                    self._kill_who_hangs()
                    self._seat_who_is_wanted()
                    looked = time.monotonic()
                message = self._inbox.get(timeout=_LOOK_S)
                if message is None:
                    return
                message()
                self._give_out()
            except Empty:
                continue
            except BaseException as error:  # For those who wait: nobody looks at this thread.
                self._fail_all(error)

    def _resize(self, size: int) -> None:
        self._staff.resize(size)
        self._seat_who_is_wanted()

    def _seat_who_is_wanted(self) -> None:
        """Does so and keeps a spare, if Ray's control plane answers; work goes on meanwhile, and it is tried again."""
        try:
            arrived = self._staff.arrived()
            if arrived is not None and self.path is not None:
                self._set_up(arrived)
            self._staff.ask()
            self._staff.keep_spare(at_once=bool(self.recoveries.all))
        except Exception as error:
            logger.warning("%s: no further worker could be started just now: %s", self.role, error)

    def _take(self, tasks: Sequence[Task]) -> None:
        self._queue += sorted(tasks, key=lambda task: -task.cost)
        if self._failure is not None:
            raise self._failure

    def _set_up_all(self, loaded: Sequence[Future[tuple[None, Spent]]]) -> None:
        self._failure = None
        # Whoever has come since this was asked for is waited for by nobody; whoever has left, no longer.
        for member, future in zip_longest(self._members, loaded):
            if member is None:
                future.set_result((None, Spent(0.0, 0.0)))
            else:
                member.loaded = future or Future()
                self._set_up(member)

    def _set_up(self, member: Member, recovery: Recovery | None = None) -> None:
        member.is_ready, member.state, member.asked = False, None, time.monotonic()
        place = Place(0, 1, "", 0, self._device, self._staff.recipe.cluster.collective_timeout_s)
        call = self._call(member, Worker.setup.__name__, place, self.path)
        call.add_done_callback(lambda call: self._inbox.put(partial(self._is_set_up, member, recovery, call)))

    def _is_set_up(self, member: Member, recovery: Recovery | None, call: Future[tuple[None, Spent]]) -> None:
        error = call.exception()
        if error is not None and is_death(error):
            # That a spare was dead already is no loss of its own.
            self._replace(member, error, recovery if member.was_spare else None)
        elif error is not None:
            raise error
        else:
            member.is_ready = True
            if recovery is not None:
                recovery.done()
            if not member.loaded.done():
                member.loaded.set_result(call.result())

    def _give_out(self) -> None:
        """Gives waiting tasks to workers with room for them, in order."""
        ready = {member.seat: member for member in self._members if member.is_ready}
        waiting: deque[Task] = deque()
        while self._queue:
            task = self._queue.popleft()
            own = ready.get(task.seat) if task.seat is not None else None
            choice = [own] if own is not None else list(ready.values())
            choice = [each for each in choice if len(each.doing) < IN_FLIGHT]
            member = min(choice, key=lambda each: each.load, default=None)
            if member is None:
                waiting.append(task)
            else:
                self._give(task, member)
        self._queue = waiting

    def _give(self, task: Task, member: Member) -> None:
        if task.state is not None and member.state is not task.state:
            member.state = task.state
            taken = self._call(member, task.state.method, task.state.argument)
            taken.add_done_callback(lambda call: self._inbox.put(partial(self._has_state, member, call)))
        task.started = time.monotonic()
        member.doing.append(task)
        call = self._call(member, task.method, *task.args, **task.kwargs)
        call.add_done_callback(lambda call: self._inbox.put(partial(self._is_done, member, task, call)))

    def _has_state(self, member: Member, call: Future[Any]) -> None:
        error = call.exception()
        if error is None or member not in [*self._members, *self._staff.leaving] or is_death(error):
            return
        # Whoever waits is told: no task may be done without its state.
        raise StateLost(self.role, str(cause_of(error))) if inputs_are_lost(error) else cause_of(error)

    def _is_done(self, member: Member, task: Task, call: Future[tuple[Any, Spent]]) -> None:
        if task not in member.doing:
            return  # Its worker died, and the task was given to another.
        error = call.exception()
        if error is not None and is_death(error):
            self._replace(member, error)
            return
        member.doing.remove(task)
        if member.doing:
            member.doing[0].started = time.monotonic()
        if error is not None:
            task.result.set_exception(error)
        else:
            self._deadlines.learn(task.method, call)
            _, spent = call.result()
            self._busy.add(spent.busy_s)
            self._idle.add(spent.idle_s)
            task.result.set_result(call.result())

    def _replace(self, member: Member, error: BaseException, recovery: Recovery | None = None) -> None:
        """Another worker takes the seat of one that died; what that one was at is done again."""
        if member in self._staff.leaving:
            self._queue.extendleft(reversed(member.doing))
            self._staff.left(member)
            return
        if member not in self._members:
            return
        if member.doing:
            member.doing[0].num_deaths += 1  # It was at this one; the others lay ready.
        killer = next((task for task in member.doing if task.num_deaths >= MAX_DEATHS), None)
        if killer is not None:
            member.doing.remove(killer)
            message = f"{self.role}: {MAX_DEATHS} workers died of {killer.method}"
            killer.result.set_exception(KillsWorkers(message, killer.args[0]))
        self._queue.extendleft(reversed(member.doing))
        if recovery is None:
            how = "hung, and was ended" if member.hangs else "died"
            cause = f"worker {member.seat} {how}: {str(error).splitlines()[0]}"
            recovery = self.recoveries.begin(self.role, cause, Loss.HUNG if member.hangs else Loss.DIED)
        another = self._staff.replace(member)
        another.loaded = member.loaded  # Who waits for the one waits for the other.
        self._set_up(another, recovery)

    def _kill_who_hangs(self) -> None:
        now = time.monotonic()
        for member in [*self._members, *self._staff.leaving]:
            loads_s, first_s = now - member.asked, self._staff.recipe.cluster.deadlines.first_s
            is_late = not member.is_ready and loads_s > first_s
            if member.doing:
                is_late = now - member.doing[0].started > self._deadlines.of(member.doing[0].method)
            if is_late:
                self._kill(member)

    def _fail_all(self, error: BaseException) -> None:
        """Ends all that anybody waits for; and what comes later too, unless the error can be made good."""
        self._failure = None if isinstance(error, Lost) else error
        for member in self._members:
            if not member.loaded.done():
                member.loaded.set_exception(error)
        tasks = [*self._queue, *(task for member in self._members for task in member.doing)]
        self._queue.clear()
        for member in self._members:
            member.doing.clear()
        for task in tasks:
            if not task.result.done():
                task.result.set_exception(error)
