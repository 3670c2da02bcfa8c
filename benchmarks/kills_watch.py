"""Where workers are killed: every call of a role's workers is counted, and at one that was drawn its worker dies.

    World: start, ask, offer ---------------+
    Pool: set up, give, take a state -------+--> (phase, role, method), counted --> due? --> SIGKILL, SIGSTOP, node gone
    the driver: evaluates, checks parity ---+

`benchmarks.kills` draws what is due. Not seen are calls that bring nothing back to the loop: a world's rendezvous, and
what encoders say of their caches.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from actors.fleet.member import Member, Task
from actors.fleet.pool import Pool
from actors.fleet.staff import Staff
from actors.fleet.world import World
from actors.loop import parity
from actors.loop.validation import Validator
from jobs.command import connect

SPOT, STEADY = "spot", "steady"
"""The resources of nodes on which pools lie, and of that on which worlds do."""


class Phase(StrEnum):
    """What a call is for."""

    ENCODE = "encode"
    GENERATE = "generate"
    SCORE = "score"
    UPDATE = "update"
    SYNC = "sync"
    SAVE = "save"
    LOAD = "load"
    EVALUATE = "evaluate"
    CHECK = "check"
    """What is looked at before the first step: parity, and which parameters learn."""


PHASES: Mapping[str, Phase] = {
    "encode": Phase.ENCODE,
    "generate": Phase.GENERATE,
    "scores_and_uncertainties": Phase.SCORE,
    "logprobs": Phase.SCORE,
    "values": Phase.SCORE,
    "update": Phase.UPDATE,
    "weights": Phase.SYNC,
    "update_weights": Phase.SYNC,
    "checkpoint_bytes": Phase.SAVE,
    "save": Phase.SAVE,
    "export": Phase.SAVE,
    "setup": Phase.LOAD,
    "damages": Phase.LOAD,
    "resume": Phase.LOAD,
    "parameter_table": Phase.CHECK,
}
"""What methods are for, where the driver does not say: it says when it evaluates, and when it checks parity."""


class Call(NamedTuple):
    """What a role is asked for, and what for."""

    phase: Phase
    role: str
    method: str


class How(StrEnum):
    """What happens to a worker."""

    KILL = "kill"
    HANG = "hang"
    NODE = "node"


@dataclass(frozen=True)
class Kill:
    """What happens to the worker at `place` when its role is asked for `call` the `occurrence`-th time."""

    call: Call
    place: int
    occurrence: int
    delay_s: float
    how: How = How.KILL
    follows: bool = False
    """Whether it is of the recovery from the one before it, and so of the same run."""


class Nodes:
    """A cluster on this machine: a head for the worlds, and two nodes for a worker of each pool."""

    def __init__(self) -> None:
        # Not at exit, for which Ray sets signal handlers: nodes are added in a thread that kills.
        head = {"num_cpus": 8, "include_dashboard": False, "resources": {STEADY: 100}}
        self._cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
        for _ in range(2):
            self._add()
        connect(address=self._cluster.address)

    def _add(self) -> None:
        self._cluster.add_node(num_cpus=2, resources={SPOT: 1})

    def end(self, node_id: str) -> None:
        """Ends a node with all that is on it; another one like it comes.

        Raises:
            ProcessLookupError: it has gone already.
        """
        node = next((each for each in self._cluster.worker_nodes if each.node_id == node_id), None)
        if node is None:
            raise ProcessLookupError(f"no node {node_id}")
        self._cluster.remove_node(node, allow_graceful=False)
        time.sleep(2)
        self._add()

    def shutdown(self) -> None:
        """Ends the cluster."""
        ray.shutdown()
        self._cluster.shutdown()


class Killer:
    """Counts calls as the driver makes them, and kills who is at one that was drawn."""

    def __init__(self, kills: Sequence[Kill], nodes: Nodes | None):
        self._left = list(kills)
        self._nodes = nodes
        self.killed: list[Kill] = []
        self.hit: set[str] = set()
        """Roles of which a process was killed, or lay on a node that went."""
        self.counts: Counter[Call] = Counter()
        self._during: Phase | None = None
        self._processes: dict[Any, tuple[str, Any]] = {}
        """By worker: its role, and a reference to its process and its node."""
        self._lock = threading.Lock()

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """How often each role was asked for each method, whatever for."""
        found: Counter[tuple[str, str]] = Counter()
        for call, count in self.counts.items():
            found[call.role, call.method] += count
        return found

    @contextmanager
    def during(self, phase: Phase) -> Generator[None, None, None]:
        """What the driver asks for in here, it asks for a phase of its own."""
        before, self._during = self._during, phase
        try:
            yield
        finally:
            self._during = before

    def phase_of(self, method: str) -> Phase:
        """What a method that the driver asks for now is for."""
        return self._during or PHASES[method]

    def met(self, role: str, actor: Any) -> None:
        """Takes note of a worker's process."""
        process = actor.__ray_call__.remote(lambda _: (os.getpid(), ray.get_runtime_context().get_node_id()))
        self._processes[actor] = (role, process)

    def asked(self, call: Call, place: int, actor: Any) -> None:
        """A worker was given a call."""
        with self._lock:
            self.counts[call] += 1
            due = [kill for kill in self._left if kill.call == call and kill.occurrence <= self.counts[call]]
            kill = next((kill for kill in due if kill.place == place), None)
            if kill is not None:
                self._left.remove(kill)
                threading.Timer(kill.delay_s, self._kill, (kill, actor)).start()

    def _kill(self, kill: Kill, actor: Any) -> None:
        hit = {kill.call.role}
        try:
            process, node = ray.get(self._processes[actor][1], timeout=60)
            if kill.how is How.NODE and self._nodes is not None:
                hit |= self._roles_on(node)
                self._nodes.end(node)
            else:
                os.kill(process, signal.SIGSTOP if kill.how is How.HANG else signal.SIGKILL)
        except (RayError, ProcessLookupError):
            return  # It has died of another one, or with its world.
        self.hit |= hit
        self.killed.append(kill)

    def _roles_on(self, node: str) -> set[str]:
        """Roles that have had a worker on a node in this run."""
        known = [*self._processes.values()]
        up, _ = ray.wait([process for _, process in known], num_returns=len(known), timeout=0)
        found: set[str] = set()
        for role, process in known:
            try:
                if process in up and ray.get(process)[1] == node:
                    found.add(role)
            except RayError:
                continue  # It died before it said where it was.
        return found


Patches = dict[tuple[Any, str], Any]


@contextmanager
def watched(killer: Killer) -> Generator[None, None, None]:
    """Shows the killer all workers that start and all calls that are made in here."""
    patches: Patches = {**_of_worlds(killer), **_of_pools(killer), **_of_driver(killer)}
    originals = {(owner, name): getattr(owner, name) for owner, name in patches}
    for (owner, name), value in patches.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in originals.items():
            setattr(owner, name, value)


def _of_worlds(killer: Killer) -> Patches:
    start, ask, offer = World._start, World._ask, World.offer  # pyright: ignore[reportPrivateUsage]

    def was_asked(world: World[Any], method: str) -> None:
        for place, actor in enumerate(world.actors):
            killer.asked(Call(killer.phase_of(method), world.role, method), place, actor)

    def watched_start(world: World[Any]) -> None:
        start(world)
        for actor in world.actors:
            killer.met(world.role, actor)

    def watched_ask(world: World[Any], method: str, *args: Any, **kwargs: Any) -> Any:
        answer = ask(world, method, *args, **kwargs)
        was_asked(world, method)
        return answer

    def watched_offer(world: World[Any], method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        offered = offer(world, method, *args, **kwargs)
        was_asked(world, method.__name__)
        return offered

    return {(World, "_start"): watched_start, (World, "_ask"): watched_ask, (World, "offer"): watched_offer}


def _of_pools(killer: Killer) -> Patches:
    started, give, set_up = Staff._started, Pool._give, Pool._set_up  # pyright: ignore[reportPrivateUsage]
    made = Task.__init__

    def watched_started(staff: Staff, *seat: Any) -> Any:
        member = started(staff, *seat)
        killer.met(staff.role, member.actor)
        return member

    def watched_made(task: Any, method: str, *args: Any, **kwargs: Any) -> None:
        made(task, method, *args, **kwargs)
        task.phase = killer.phase_of(method)  # The driver's, who makes it; a worker gets it later.

    def watched_give(pool: Pool[Any], task: Any, member: Member) -> None:
        taken = task.state if member.state is not task.state else None
        give(pool, task, member)
        if taken is not None:
            killer.asked(Call(Phase.SYNC, pool.role, taken.method), member.seat, member.actor)
        killer.asked(Call(task.phase, pool.role, task.method), member.seat, member.actor)

    def watched_set_up(pool: Pool[Any], member: Member, *recovery: Any) -> None:
        set_up(pool, member, *recovery)
        killer.asked(Call(Phase.LOAD, pool.role, "setup"), member.seat, member.actor)

    return {
        (Staff, "_started"): watched_started,
        (Task, "__init__"): watched_made,
        (Pool, "_give"): watched_give,
        (Pool, "_set_up"): watched_set_up,
    }


def _of_driver(killer: Killer) -> Patches:
    def within(phase: Phase, of: Callable[..., Any]) -> Callable[..., Any]:
        def watched_phase(*args: Any, **kwargs: Any) -> Any:
            with killer.during(phase):
                return of(*args, **kwargs)

        return watched_phase

    return {
        (Validator, "evaluated"): within(Phase.EVALUATE, Validator.evaluated),
        (parity, "check"): within(Phase.CHECK, parity.check),
    }
