"""From the runs of both sides to tables: samples a second, samples a CPU-second, phases, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine
from benchmarks.vs_trl_peer import GENERATE, LEARN, OPTIMIZER, REPROCESS, SCORE
from benchmarks.vs_trl_watch import Interval

OTHER = "other"
PHASES = (GENERATE, SCORE, REPROCESS, LEARN, OPTIMIZER, OTHER)
ROLES = {
    "RolloutWorker": GENERATE,
    "ReferenceWorker": SCORE,
    "RewardWorker": SCORE,
    "CriticWorker": SCORE,
    "EncoderWorker": REPROCESS,
    "PolicyWorker": LEARN,
}
"""The phase that each of our roles' processes works in; the driver and Ray itself are `other`."""
SIDES = ("Polyphony", "TRL")
QUIET_SHARE = 0.9
"""A side that got less of its core than this shared it with others."""


@dataclass(frozen=True)
class Run:
    """One run of one side, over its measured steps. `phases` are CPU-seconds a step."""

    name: str
    beta: float
    samples: int
    wall_s: float
    cpu_s: float
    phases: Mapping[str, float]
    completion_length: float
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def samples_per_s(self) -> float:
        """By the clock."""
        return self.samples / self.wall_s

    @property
    def samples_per_cpu_s(self) -> float:
        """By the CPU time of all processes."""
        return self.samples / self.cpu_s

    def line(self) -> str:
        """For the console, when the run is done."""
        phases = ", ".join(f"{phase} {spent:.2f}" for phase, spent in self.phases.items())
        return (
            f"{self.name:<10}KL {self.beta:<5g}{self.samples_per_s:8.1f} samples/s"
            f"{self.samples_per_cpu_s:8.1f} samples/CPU-s   CPU-s a step: {phases}"
        )


def our_phases(spans: Sequence[Interval], timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """CPU-seconds by phase over all spans: by role's process, the optimizer's steps by their own timings."""
    phases: dict[str, float] = {phase: 0.0 for phase in PHASES}
    for span in spans:
        for kind, spent in span.cpu_s.items():
            phases[ROLES.get(kind, OTHER)] += spent
        steps = sum(timing["cpu_s"] for timing in timings if span.start < timing["time"] <= span.end)
        phases[OPTIMIZER] += steps
        phases[LEARN] -= steps
    return phases


def peer_phases(spans: Sequence[Interval], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """CPU-seconds by phase over all spans: its own timers, and what they leave of the whole.

    Args:
        rows: its line at the start of the first span, and at the end of each.
    """
    first, last = rows[0]["cpu_s"], rows[-1]["cpu_s"]
    phases = {phase: last.get(phase, 0.0) - first.get(phase, 0.0) for phase in PHASES}
    total = sum(sum(span.cpu_s.values()) for span in spans)
    return {**phases, OTHER: total - sum(phases.values())}


def compare(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """For each KL weight: each side's speeds and phases, and how many times faster, over the pairs of runs in turns."""
    summary: dict[str, dict[str, Any]] = {}
    for beta in dict.fromkeys(run.beta for run in runs):
        sides = [[run for run in runs if run.name == name and run.beta == beta] for name in SIDES]
        pairs = list(zip(*sides, strict=True))
        entry: dict[str, Any] = {name: _side(side) for name, side in zip(SIDES, sides, strict=True)}
        entry["ratio"] = {
            "samples_per_s": _spread([ours.samples_per_s / peer.samples_per_s for ours, peer in pairs]),
            "samples_per_cpu_s": _spread([ours.samples_per_cpu_s / peer.samples_per_cpu_s for ours, peer in pairs]),
        }
        summary[f"{beta:g}"] = entry
    return summary


def _side(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "samples_per_s": _spread([run.samples_per_s for run in runs]),
        "samples_per_cpu_s": _spread([run.samples_per_cpu_s for run in runs]),
        "share_of_core": median(run.cpu_s / run.wall_s for run in runs),
        "completion_length": median(run.completion_length for run in runs),
        "phases": {phase: median(run.phases[phase] for run in runs) for phase in PHASES},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def markdown(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Speeds with their spread, then CPU-seconds a step by phase. No ratio by the clock where the core was shared."""
    lines = [
        "| KL weight | side | samples/s | samples/CPU-s | share of the core | tokens a completion |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for beta, entry in summary.items():
        for name in SIDES:
            side = entry[name]
            cells = [_cell(side[measure], "") for measure in ("samples_per_s", "samples_per_cpu_s")]
            cells += [f"{side['share_of_core']:.0%}", f"{side['completion_length']:.2f}"]
            lines.append(f"| {beta} | {name} | {' | '.join(cells)} |")
        ratios = [_cell(entry["ratio"][measure], "x") for measure in ("samples_per_s", "samples_per_cpu_s")]
        if caveats({beta: entry}):
            ratios[0] = "none: the core was shared"
        lines.append(f"| {beta} | **ratio** | {' | '.join(ratios)} |  |  |")
    lines += ["", "CPU-seconds a step:", ""]
    lines += ["| KL weight | side | " + " | ".join(PHASES) + " | sum |", "|---|---|" + "---:|" * (len(PHASES) + 1)]
    for beta, entry in summary.items():
        for name in SIDES:
            spent = [entry[name]["phases"][phase] for phase in PHASES]
            lines.append(f"| {beta} | {name} | " + " | ".join(f"{each:.3f}" for each in [*spent, sum(spent)]) + " |")
    return "\n".join(lines)


def _cell(spread: Mapping[str, float], unit: str) -> str:
    digits = 2 if unit else 1
    least, most = (f"{spread[name]:.{digits}f}" for name in ("least", "most"))
    return f"**{spread['median']:.{digits}f}{unit}** ({least} to {most})"


def differences(*, ours: Mapping[str, Any], peer: Mapping[str, Any], group_size: int) -> list[str]:
    """What is not the same on both sides, in sentences, from what each says of its set-up.

    Args:
        ours, peer: `versions` by package, `attention`, `trainable` and `frozen` parameters.
    """
    names = dict.fromkeys([*ours["versions"], *peer["versions"]])
    versions = {name: [side["versions"].get(name, "none") for side in (ours, peer)] for name in names}
    packages = [f"{name} {one} and {other}" for name, (one, other) in versions.items() if one != other]
    lines = [f"Packages, ours and TRL's: {', '.join(packages)}."] if packages else []
    counts = {"attention": "Attention", "trainable": "Trained parameters", "frozen": "Frozen parameters"}
    lines += [f"{what}: {ours[key]} and {peer[key]}." for key, what in counts.items() if ours[key] != peer[key]]
    return [
        *lines,
        "Processes: ours are a driver, one a role, and Ray's daemons, all on the one core; TRL's is one.",
        f"Pictures: ours run through the processor and the frozen tower once; TRL's once for each of {group_size} "
        "completions, in generation, in scoring and in the update again.",
        f"Prompts: ours run once for a group in each of those passes; TRL's {group_size} times.",
        "Passes: ours are filled up to `micro_batch_tokens` (8,192); TRL's hold 64 completions unless told otherwise.",
        "Ahead of time: our next prompts are processed while this step generates; on one core that gains nothing.",
        "Weights: ours travel from the policy to the rollout copy after each update; TRL generates with the policy.",
        "Behaviour logprobs: ours are those of sampling; TRL takes the policy's own, equal after a single update.",
        "Completions end at the end token on both sides, and random weights sample other tokens: lengths are above.",
    ]


def caveats(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What to keep in mind: a scheduler shares a busy core by processes, and so favours the side that has more."""
    shares = [entry[name]["share_of_core"] for entry in summary.values() for name in SIDES]
    if min(shares) >= QUIET_SHARE:
        return []
    return [
        f"Other work ran on the core (a side got {min(shares):.0%} of it): samples/s by the clock favour the side with "
        "more processes, ours. Go by samples/CPU-s."
    ]


def append_result(path: Path, *, command: str, work: str, table: str, unlike: Sequence[str]) -> None:
    """Adds a dated section with machine, command, work, tables and differences to `path`."""
    host = machine.describe()
    section = (
        f"\n## {datetime.now(UTC).date().isoformat()}: vs_trl\n\n"
        f"- Machine: {host['cores']} cores, {host['cpu']}; each side on one of them\n"
        f"- Command: `{command}`\n"
        f"- Work: {work}\n\n"
        f"{table}\n\nWhat differs:\n\n" + "".join(f"- {line}\n" for line in unlike)
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(section)
