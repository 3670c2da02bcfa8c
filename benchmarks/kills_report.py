"""What kills came to: a table by phase and call, the machine-readable line, and whether all went well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from actors.fleet.failures import FEATURES
from actors.fleet.recoveries import Recovery
from actors.loop.crew import ROWS
from benchmarks.kills_watch import Call, How, Kill, Phase

LEARNERS = frozenset({"policy", "critic"})
"""They go and come together."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it lost on the way."""

    fingerprint: str
    calls: Counter[Call]
    killed: list[Kill]
    hit: set[str]
    """Roles of which a process was killed, or lay on a node that went."""
    recoveries: list[Recovery]
    steps_lost_most: int
    error: str | None
    seconds: float


def num_kills(outcomes: Sequence[Outcome]) -> int:
    """SIGKILLs; workers that were stopped and nodes that went are not among them."""
    return sum(kill.how is How.KILL for each in outcomes for kill in each.killed)


def only_the_failed(outcome: Outcome) -> bool:
    """Whether no role was started again that was not hit; policy and critic go together."""
    allowed = outcome.hit | {FEATURES, ROWS} | (LEARNERS if outcome.hit & LEARNERS else set())
    return {each.role for each in outcome.recoveries} <= allowed


def summary(outcomes: Sequence[Outcome], peaceful: Outcome) -> dict[str, Any]:
    """Counts of SIGKILLs, each ended, equal, alone, where its whole run was; and of runs, whatever happened in them."""
    holds: dict[str, Callable[[Outcome], bool]] = {
        "ended": lambda each: each.error is None,
        "equal": lambda each: each.fingerprint == peaceful.fingerprint,
        "only_the_failed_role": only_the_failed,
    }
    held = {name: [each for each in outcomes if of(each)] for name, of in holds.items()}
    seconds: dict[str, list[float]] = {}
    for recovery in (recovery for each in outcomes for recovery in each.recoveries):
        if recovery.seconds is not None:
            seconds.setdefault(recovery.role, []).append(recovery.seconds)
    killed = [kill for each in outcomes for kill in each.killed]
    return {
        "benchmark": "kills",
        "kills": num_kills(outcomes),
        "ended": num_kills(held["ended"]),
        "equal": num_kills(held["equal"]),
        "steps_lost_most": max((each.steps_lost_most for each in outcomes), default=0),
        "only_the_failed_role": num_kills(held["only_the_failed_role"]),
        "recovery_s": {
            role: {"median": round(median(values), 1), "most": round(max(values), 1)}
            for role, values in sorted(seconds.items())
        },
        "events": {how.value: sum(kill.how is how for kill in killed) for how in How},
        "phases": {
            phase.value: sum(kill.how is How.KILL and kill.call.phase is phase for kill in killed) for phase in Phase
        },
        "runs": {"all": len(outcomes), **{name: len(each) for name, each in held.items()}},
    }


def is_sound(found: Mapping[str, Any], *, wanted: int) -> bool:
    """Whether as many were killed as was asked for, and all runs, also those with other events, went as they should."""
    is_whole = len(set(found["runs"].values())) == 1  # And so all that was killed in them ended, equal, alone.
    return is_whole and found["kills"] >= wanted and found["steps_lost_most"] <= 1


def table(outcomes: Sequence[Outcome], calls: Mapping[Call, int]) -> str:
    """How often what happened at which call; those of `calls` at which nothing did have a line as well."""
    events = Counter((kill.call, kill.how) for each in outcomes for kill in each.killed)
    order = list(Phase)
    known = sorted({*calls, *(call for call, _ in events)}, key=lambda call: (order.index(call.phase), *call))
    lines = ["| phase | call | SIGKILL | SIGSTOP | node |", "|---|---|---:|---:|---:|"]
    for call in known:
        counts = " | ".join(str(events[call, how]) for how in How)
        lines.append(f"| {call.phase} | {call.role}.{call.method} | {counts} |")
    return "\n".join(lines)
