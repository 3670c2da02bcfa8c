"""The kills benchmark without Ray: what it draws and when, which calls it sees, and when it says that all went well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.fleet.deadlines import Deadlines
from actors.fleet.failures import Loss
from actors.fleet.member import Member, Task
from actors.fleet.pool import Pool
from actors.fleet.recoveries import Recovery
from actors.fleet.staff import Staff
from actors.fleet.world import World
from actors.loop import parity
from actors.loop.crew import WORKERS
from actors.loop.validation import Validator
from actors.roles.policy import PolicyWorker
from actors.roles.reference import ReferenceWorker
from actors.roles.rollout import RolloutWorker
from benchmarks.kills import carried_out, drawn, in_runs, resuming
from benchmarks.kills_report import Outcome, is_sound, only_the_failed, summary, table
from benchmarks.kills_watch import PHASES, Call, How, Kill, Killer, Phase, watched
from pipeline.config import load_recipe

RECIPE = load_recipe(None, ["cluster.device=cpu"])
CALLS = Counter(
    {
        Call(Phase.ENCODE, "encoder", "encode"): 12,
        Call(Phase.GENERATE, "rollout", "generate"): 12,
        Call(Phase.SCORE, "reference", "logprobs"): 8,
        Call(Phase.SCORE, "critic", "values"): 8,
        Call(Phase.UPDATE, "policy", "update"): 8,
        Call(Phase.UPDATE, "critic", "update"): 8,
        Call(Phase.SYNC, "policy", "weights"): 10,
        Call(Phase.SYNC, "rollout", "update_weights"): 10,
        Call(Phase.SAVE, "policy", "save"): 8,
        Call(Phase.LOAD, "policy", "setup"): 2,
        Call(Phase.EVALUATE, "rollout", "generate"): 12,
    }
)
UPDATE = Call(Phase.UPDATE, "policy", "update")
ENCODE = Call(Phase.ENCODE, "encoder", "encode")
HANG = Kill(UPDATE, 0, 1, 0.0, How.HANG)
KILL = Kill(UPDATE, 0, 1, 0.0)
NODE = Kill(ENCODE, 0, 1, 0.0, How.NODE)


def _plan(num: int, *, hangs: int = 0, nodes: int = 0, seed: int = 0) -> list[Kill]:
    return drawn(CALLS, num=num, hangs=hangs, nodes=nodes, random=np.random.default_rng(seed))


def _outcome(*killed: Kill, hit: set[str] | None = None, lost: tuple[str, ...] = (), **more: Any) -> Outcome:
    recoveries = [Recovery(role, "", Loss.DIED, "rlhf", 3, 0.0, seconds=2.0) for role in lost]
    found = Outcome("same", CALLS, list(killed), hit or set(), recoveries, 0, None, 1.0)
    return replace(found, **more)


# What is drawn.


def test_the_first_round_of_kills_has_every_phase_once() -> None:
    for seed in range(20):
        phases = Counter(kill.call.phase for kill in _plan(8, seed=seed))
        assert set(phases) == {*(call.phase for call in CALLS)}
        # A kill of one that resumes brings a kill in an update along.
        assert all(count <= (2 if phase is Phase.UPDATE else 1) for phase, count in phases.items())


def test_phases_come_in_another_order_in_each_round() -> None:
    calls = Counter({call: count for call, count in CALLS.items() if call.phase not in (Phase.UPDATE, Phase.LOAD)})
    plan = drawn(calls, num=60, hangs=0, nodes=0, random=np.random.default_rng(0))
    rounds = [tuple(kill.call.phase for kill in plan[start : start + 6]) for start in range(0, 60, 6)]
    assert {frozenset(each) for each in rounds} == {frozenset(call.phase for call in calls)}
    assert len(set(rounds)) > 5


def test_every_call_of_every_phase_is_drawn_and_what_learners_do_to_resume_too() -> None:
    resumes = {Call(Phase.LOAD, role, method) for role in ("policy", "critic") for method in ("damages", "resume")}
    assert set(resuming(CALLS)) == resumes
    assert {kill.call for kill in _plan(64)} == {*CALLS, *resumes}


def test_the_same_role_and_method_are_drawn_for_each_of_the_phases_that_they_serve() -> None:
    of_rollout = Counter(kill.call for kill in _plan(80) if kill.call.method == "generate")
    assert set(of_rollout) == {Call(phase, "rollout", "generate") for phase in (Phase.GENERATE, Phase.EVALUATE)}
    assert min(of_rollout.values()) >= 8


def test_who_is_killed_while_he_resumes_follows_a_death_of_his_role_in_a_later_update() -> None:
    plan = _plan(200, hangs=3)
    pairs = [(first, second) for first, second in pairwise(plan) if second.follows]
    assert {second.call for _, second in pairs} == set(resuming(CALLS))
    for first, second in pairs:
        assert first.call == Call(Phase.UPDATE, second.call.role, "update")
        assert first.how is How.KILL and not first.follows
        assert 5 <= first.occurrence <= 8 and second.occurrence == 1


def test_no_run_begins_with_a_kill_that_follows_another_and_none_is_left_out() -> None:
    plan = _plan(200)
    runs = list(in_runs(plan, 2))
    assert [kill for some in runs for kill in some] == plan
    assert not any(some[0].follows for some in runs)
    assert {len(some) for some in runs[:-1]} == {2, 3}


def test_hangs_and_nodes_are_drawn_at_every_phase_in_which_there_can_be_any() -> None:
    plan = _plan(400, hangs=12, nodes=4)
    assert {kill.call.phase for kill in plan if kill.how is How.HANG} == {call.phase for call in CALLS}
    assert {kill.call.role for kill in plan if kill.how is How.NODE} == {"encoder", "rollout"}
    assert all(1 <= kill.occurrence <= max(CALLS[kill.call], 1) for kill in plan)


def test_runs_go_on_until_there_were_as_many_sigkills_as_was_asked_for_whatever_else_there_was() -> None:
    plan = [HANG, KILL, NODE, KILL, HANG, KILL, KILL, KILL]
    outcomes = carried_out(plan, kills=3, kills_a_run=2, carry_out=lambda _, some: _outcome(*some))
    assert [each.killed for each in outcomes] == [[HANG, KILL], [NODE, KILL], [HANG, KILL]]


# What is seen.


class _Method:
    """A remote method that ends at once."""

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *_: Any) -> Any:
        return _Ref()


class _Ref:
    def future(self) -> Future[Any]:
        return Future()

    def __iter__(self) -> Any:
        return iter((self, self))

    def __getitem__(self, _: int) -> _Ref:
        return self


class _Actor:
    perform = _Method()


@dataclass
class _Seen(Killer):
    """Kills nobody."""

    places: list[tuple[Call, int]] = field(default_factory=list[tuple[Call, int]])

    def __post_init__(self) -> None:
        super().__init__([], None)

    def asked(self, call: Call, place: int, actor: Any) -> None:
        self.places.append((call, place))
        super().asked(call, place, actor)


def _world(role: str) -> World[Any]:
    world: Any = object.__new__(World)
    world._worker = PolicyWorker
    world.role, world.actors, world._deadlines = role, [_Actor(), _Actor()], Deadlines(RECIPE.cluster.deadlines)
    return world


def _pool(role: str) -> Any:
    pool: Any = object.__new__(Pool)
    pool._worker = RolloutWorker
    pool.role, pool.state, pool.path, pool._inbox, pool._device = role, None, Path("/"), SimpleQueue(), None
    pool._staff = SimpleNamespace(recipe=RECIPE)
    return pool


def _member(seat: int) -> Member:
    warm: Any = None
    return Member(seat, _Actor(), warm, {})


def _submitted(pool: Any, *args: Any) -> list[Task]:
    """The tasks that a pool was given, which nobody has begun."""
    pool.submit(*args)
    return pool._inbox.get().args[0]


def test_weights_that_are_offered_and_those_that_are_taken_are_calls_of_sync() -> None:
    killer, pool = _Seen(), _pool("rollout")
    with watched(killer):
        _world("policy").offer(PolicyWorker.weights, 1)
        pool.publish(RolloutWorker.update_weights, None)
        member = _member(1)
        for task in _submitted(pool, RolloutWorker.generate, [1, 2]):
            pool._give(task, member)
    weights, taken = Call(Phase.SYNC, "policy", "weights"), Call(Phase.SYNC, "rollout", "update_weights")
    generate = Call(Phase.GENERATE, "rollout", "generate")
    # The second task finds the weights there.
    assert killer.places == [(weights, 0), (weights, 1), (taken, 1), (generate, 1), (generate, 1)]


def test_a_worker_of_a_pool_that_loads_is_seen_as_ranks_of_a_world_are() -> None:
    killer = _Seen()
    with watched(killer):
        _pool("encoder")._set_up(_member(1))
        _world("policy").on_all(PolicyWorker.resume)  # pyright: ignore[reportCallIssue]
    resume = Call(Phase.LOAD, "policy", "resume")
    assert killer.places == [(Call(Phase.LOAD, "encoder", "setup"), 1), (resume, 0), (resume, 1)]


def test_what_the_driver_asks_for_while_it_evaluates_is_evaluation_whenever_a_worker_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killer, pool, world = _Seen(), _pool("rollout"), _world("reference")
    tasks: list[Task] = []

    def asks(*_: Any) -> None:
        tasks.extend(_submitted(pool, RolloutWorker.generate, [1]))
        world.on_all(ReferenceWorker.logprobs)  # pyright: ignore[reportCallIssue]

    monkeypatch.setattr(Validator, "evaluated", asks)
    monkeypatch.setattr(parity, "check", asks)
    with watched(killer):
        validator: Any = object.__new__(Validator)
        validator.evaluated(None)
        parity.check(None, None, None)  # pyright: ignore
        asks()
        for task in tasks:
            pool._give(task, _member(0))
    phases = [Phase.EVALUATE, Phase.CHECK]
    assert [call.phase for call, _ in killer.places] == [
        *[each for phase in [*phases, Phase.SCORE] for each in (phase, phase)],
        *[*phases, Phase.GENERATE],
    ]
    assert killer.calls == Counter({("reference", "logprobs"): 6, ("rollout", "generate"): 3})


def test_a_phase_that_fails_ends_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError

    monkeypatch.setattr(parity, "check", fails)
    killer = _Seen()
    with watched(killer):
        with pytest.raises(ValueError):
            parity.check(None, None, None)  # pyright: ignore
        assert killer.phase_of("update") is Phase.UPDATE


def test_all_is_as_before_when_nobody_watches_any_longer() -> None:
    seams: list[tuple[Any, str]] = [
        *((World, name) for name in ("_start", "_ask", "offer")),
        *((Pool, name) for name in ("_give", "_set_up")),
        *((Staff, "_started"), (Task, "__init__"), (Validator, "evaluated"), (parity, "check")),
    ]
    before = [getattr(owner, name) for owner, name in seams]
    with watched(_Seen()):
        assert all(getattr(owner, name) is not was for (owner, name), was in zip(seams, before, strict=True))
    assert [getattr(owner, name) for owner, name in seams] == before


def test_a_kill_is_due_at_the_occurrence_and_the_rank_that_were_drawn_and_only_once() -> None:
    struck: list[tuple[Kill, Any]] = []

    class Striking(Killer):
        def _kill(self, kill: Kill, actor: Any) -> None:
            struck.append((kill, actor))

    kill = Kill(ENCODE, 1, 3, 0.0)
    killer = Striking([kill], None)
    other = ENCODE._replace(phase=Phase.EVALUATE)
    for actor, (call, place) in enumerate(
        [(ENCODE, 1), (other, 1), (ENCODE, 0), (ENCODE, 0), (ENCODE, 1), (ENCODE, 1)]
    ):
        killer.asked(call, place, actor)
    _until(lambda: bool(struck))
    assert struck == [(kill, 4)]


def _until(holds: Callable[[], bool]) -> None:
    done = Future[None]()
    for _ in range(100):
        if holds():
            return
        with pytest.raises(TimeoutError):
            done.result(timeout=0.02)
    raise AssertionError


def test_the_methods_that_belong_to_phases_are_methods_of_workers_and_no_phase_is_without_any() -> None:
    assert all(any(hasattr(worker, method) for worker in WORKERS.values()) for method in PHASES)
    # That of the one left depends on the driver alone.
    assert set(PHASES.values()) == {*Phase} - {Phase.EVALUATE}


# What is said of it.


def test_only_sigkills_count_as_kills_and_other_events_are_told_beside_them() -> None:
    found = summary([_outcome(KILL, HANG, NODE), _outcome(KILL, HANG, error="boom", fingerprint="")], _outcome())
    assert (found["kills"], found["ended"], found["equal"]) == (2, 1, 1)
    assert found["events"] == {"kill": 2, "hang": 2, "node": 1}
    assert found["phases"] == {phase.value: 2 * (phase is Phase.UPDATE) for phase in Phase}
    assert found["runs"] == {"all": 2, "ended": 1, "equal": 1, "only_the_failed_role": 2}


def test_all_is_well_when_every_run_is_equal_with_a_step_lost_at_most() -> None:
    found = summary([_outcome(KILL, HANG, hit={"policy"}, lost=("critic",), steps_lost_most=1)], _outcome())
    assert is_sound(found, wanted=1)
    assert found["recovery_s"] == {"critic": {"median": 2.0, "most": 2.0}}


@pytest.mark.parametrize(
    "bad",
    [
        _outcome(KILL, error="boom", fingerprint=""),
        _outcome(KILL, fingerprint="other"),
        _outcome(KILL, steps_lost_most=2),
        _outcome(KILL, hit={"policy"}, lost=("reference",)),
        # Without a kill of its own it shows among the runs.
        _outcome(HANG, error="boom", fingerprint=""),
        _outcome(NODE, fingerprint="other"),
        _outcome(HANG, hit={"policy"}, lost=("reference",)),
    ],
)
def test_one_run_that_is_not_as_it_should_be_is_told_by_the_exit_status(bad: Outcome) -> None:
    good = _outcome(KILL, hit={"policy"}, lost=("policy",))
    assert is_sound(summary([good], _outcome()), wanted=1)
    assert not is_sound(summary([good, bad], _outcome()), wanted=1)


def test_fewer_kills_than_were_asked_for_are_told_by_the_exit_status() -> None:
    assert not is_sound(summary([_outcome(KILL)], _outcome()), wanted=2)
    assert not is_sound(summary([], _outcome()), wanted=1)


@pytest.mark.parametrize(
    ("hit", "lost", "holds"),
    [
        ({"reward"}, ("reward",), True),
        ({"policy"}, ("policy", "critic"), True),
        ({"reward"}, ("critic",), False),
        ({"encoder"}, ("encoder", "features"), True),
        ({"encoder"}, ("encoder", "rollout"), False),
        # A node went on which both lay.
        ({"encoder", "rollout"}, ("encoder", "rollout"), True),
        ({"encoder", "rollout"}, ("encoder", "reward"), False),
    ],
)
def test_only_roles_that_were_hit_or_lay_on_a_node_that_went_may_come_back(
    hit: set[str], lost: tuple[str, ...], holds: bool
) -> None:
    assert only_the_failed(_outcome(KILL, hit=hit, lost=lost)) is holds


def test_the_table_has_a_line_a_call_in_the_order_of_the_phases_with_those_that_met_nothing() -> None:
    lines = table([_outcome(KILL, HANG), _outcome(KILL, NODE)], CALLS).splitlines()
    assert len(lines) == 2 + len(CALLS)
    assert lines[2] == "| encode | encoder.encode | 0 | 0 | 1 |"
    assert "| update | policy.update | 2 | 1 | 0 |" in lines
    assert lines[-1] == "| evaluate | rollout.generate | 0 | 0 | 0 |"
