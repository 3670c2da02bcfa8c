"""All roles: seat them, start them, join their worlds, and end them together."""

from __future__ import annotations

import time
import zlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.fleet.group import Worker, WorkerGroup
from actors.fleet.placement import Ranks, Seating, resolve_device, seat
from actors.roles.critic import CriticWorker
from actors.roles.encoder import EncoderWorker, Needs, PromptRef, Showing, needs_of
from actors.roles.policy import PolicyWorker
from actors.roles.reference import ReferenceWorker
from actors.roles.reward import RewardWorker
from actors.roles.rollout import RolloutWorker
from actors.training.supervised import Training
from pipeline.config import FROZEN, Device, Parts, Recipe, RewardName, Workers
from pipeline.data.datasets import RowKey, RowRef
from pipeline.models.architectures import architecture_of
from pipeline.models.checkpoint import check_same_towers
from pipeline.models.parts import live_kinds
from pipeline.records import Quarantined

WORKERS: Mapping[str, type[Worker]] = {
    "encoder": EncoderWorker,
    "rollout": RolloutWorker,
    "policy": PolicyWorker,
    "critic": CriticWorker,
    "reference": ReferenceWorker,
    "reward": RewardWorker,
}
TRAININGS = ("sft", "reward_model")


class Roles:
    """The groups that a stage asked for, with their checkpoints; a role that it did not ask for is None."""

    def __init__(self, groups: Mapping[str, WorkerGroup[Any]], paths: Mapping[str, Path]):
        """Gives each group in `paths` the checkpoint there."""

        def group(role: str) -> Any:
            return groups[role] if role in paths else None

        self.encoder: WorkerGroup[EncoderWorker] = group("encoder")
        self.rollout: WorkerGroup[RolloutWorker] = group("rollout")
        self.policy: WorkerGroup[PolicyWorker] = group("policy")
        self.critic: WorkerGroup[CriticWorker] | None = group("critic")
        self.reference: WorkerGroup[ReferenceWorker] | None = group("reference")
        self.reward: WorkerGroup[RewardWorker] | None = group("reward")
        ray.get([done for role, path in paths.items() for done in groups[role].setup(path)])

    def encode(
        self, rows: Sequence[RowRef], split: str, needs: Needs, *, shown: Mapping[RowKey, Showing] | None = None
    ) -> Encoding:
        """Has rows processed and encoded; each by the worker that its number gives: once, that is.

        shown: how the media of rows are shown, where not as they are.
        """
        shares: list[list[RowRef]] = [[] for _ in self.encoder.actors]
        for row in {row.key: row for row in rows}.values():
            shares[_stable_index(row.key, len(shares))].append(row)
        calls = self.encoder.on_each(EncoderWorker.encode, shares, split, needs, shown=shown)
        return Encoding([row.key for row in rows], [[row.key for row in share] for share in shares], calls)


@dataclass(frozen=True)
class Encoding:
    """Rows that encoder workers are at."""

    rows: list[RowKey]
    shares: list[list[RowKey]]
    calls: list[ray.ObjectRef[list[PromptRef | Quarantined]]]

    def result(self) -> list[PromptRef | Quarantined]:
        """The prompts in the order of the rows; waits until they are there."""
        found = {
            key: prompt
            for share, prompts in zip(self.shares, ray.get(self.calls), strict=True)
            for key, prompt in zip(share, prompts, strict=True)
        }
        return [found[key] for key in self.rows]


class Crew:
    """The worker processes of one stage, or of several that follow each other: starting one costs 10 CPU-seconds.

    Roles and trainings start when a stage asks for them, or before that: `plan` names them, `start_next` starts them.
    """

    def __init__(self, recipe: Recipe, *, training: str | None = None):
        """training: the one of `TRAININGS` that will be asked for, so that roles leave it room on GPUs."""
        self._recipe = recipe
        self._training = training
        self._seatings: list[Seating] = []
        self._groups: dict[str, WorkerGroup[Any]] = {}
        self._trainings: dict[str, Training] = {}
        self._planned: list[str] = []
        self._starting: list[ray.ObjectRef[None]] = []

    def roles(self, paths: Mapping[str, Path]) -> Roles:
        """A group for each role in `paths`, from the checkpoint given there; the groups of earlier stages go on.

        Raises:
            FileNotFoundError: a checkpoint is missing.
            ConfigError: the checkpoints differ in their towers.
            NotEnoughResources: the cluster cannot hold the roles.
        """
        for role, path in paths.items():
            if not (path / "config.json").is_file():
                raise FileNotFoundError(f"{role}: no checkpoint in {path}; run the stage that writes it first")
        check_same_towers(paths)
        self._start(paths)
        return Roles(self._groups, paths)

    def training(self, stage: str) -> Training:
        """The Ray Train workers of `sft` or `reward_model`: those that were started ahead, or new ones."""
        if stage not in self._trainings or self._trainings[stage].has_ended:
            self._trainings[stage] = Training(self._recipe, stage)
        return self._trainings[stage]

    def fits_whole(self) -> bool:
        """Whether the workers of all stages fit beside each other: on CPUs, where there are enough. GPUs take turns."""
        if resolve_device(self._recipe.cluster) is not Device.CPU:
            return False
        workers = [*self._settings(WORKERS).values(), *(getattr(self._recipe, stage) for stage in TRAININGS)]
        asked = sum(each.num_workers * each.cpus_per_worker for each in workers)
        return asked <= ray.cluster_resources().get("CPU", 0)

    @property
    def num_planned(self) -> int:
        """How many of those that `plan` named have not started yet."""
        return len(self._planned)

    def plan(self, names: Iterable[str]) -> None:
        """Names roles and trainings of later stages that may start on cores that would idle."""
        self._planned += names

    def start_next(self) -> None:
        """Starts the next of what is planned once the last is up: one at a time leaves the other cores their work."""
        if not self._planned or any(ray.wait([ref], timeout=0)[1] for ref in self._starting):
            return
        name = self._planned.pop(0)
        if name in TRAININGS:
            self.training(name)
        else:
            self._start([name])
            self._starting = self._groups[name].warm

    def _start(self, roles: Iterable[str]) -> None:
        settings = self._settings(role for role in roles if role not in self._groups)
        if settings:
            # Once the training has started it has its seats.
            stage = None if self._trainings else self._training
            ranks = Ranks(stage, getattr(self._recipe, stage)) if stage else None
            seating = seat(settings, self._recipe.cluster, training=ranks)
            self._seatings.append(seating)
            for role, workers in settings.items():
                self._groups[role] = WorkerGroup(WORKERS[role], role, seating, self._recipe, workers)

    def _settings(self, roles: Iterable[str]) -> dict[str, Workers]:
        return {role: getattr(self._recipe.rlhf, role) for role in roles}

    def shutdown(self) -> None:
        """Ends all workers and gives their resources back."""
        for group in self._groups.values():
            group.shutdown()
        for seating in self._seatings:
            seating.release()
        for training in self._trainings.values():
            training.close()


@contextmanager
def crew_of(recipe: Recipe, crew: Crew | None = None, *, training: str | None = None) -> Generator[Crew, None, None]:
    """The crew that a stage works with: the one it was given, or one of its own that ends with it."""
    if crew is not None:
        yield crew
        return
    own = Crew(recipe, training=training)
    try:
        yield own
    finally:
        own.shutdown()


def loop_paths(recipe: Recipe) -> dict[str, Path]:
    """The roles that the recipe's algorithm needs, and the checkpoint each starts from. No role runs for nothing."""
    algorithm = recipe.rlhf.algorithm
    sft = recipe.checkpoint("sft")
    paths = {"encoder": sft, "rollout": sft, "policy": sft}
    if algorithm.kl.weight > 0:
        paths["reference"] = sft
    if RewardName.LEARNED in recipe.rlhf.rewards:
        paths["reward"] = recipe.checkpoint("reward_model")
    if algorithm.advantage.needs_critic:
        # A reward model already judges completions: a better start for a critic than the policy, where there is one.
        paths["critic"] = paths.get("reward", sft)
    return paths


def loop_needs(recipe: Recipe) -> Needs:
    """What the roles of the loop need of each prompt. Prints which features cannot be shared, and why."""
    paths = loop_paths(recipe)
    learning: dict[str, Parts] = {"policy": recipe.rlhf.policy.parts}
    if "critic" in paths:
        learning["critic"] = recipe.rlhf.critic.parts
    architecture = architecture_of(paths["encoder"], trust_remote_code=recipe.model.trust_remote_code)
    for role, parts in learning.items():
        for kind, reason in live_kinds(parts, architecture).items():
            print(f"features of {kind} are not shared with {role}: rlhf.{role}.parts.{reason}", flush=True)
    if recipe.rlhf.encoder.cache_mib == 0:
        print("no features are shared: rlhf.encoder.cache_mib=0", flush=True)
    frozen = [FROZEN] if paths.keys() & {"reference", "reward"} else []
    return needs_of(recipe, paths["encoder"], *learning.values(), *frozen)


def collect(calls: Mapping[str, Sequence[ray.ObjectRef[Any]]]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Waits for calls to several roles at once; returns results and seconds until each role was done."""
    started = time.monotonic()
    pending = {ref: role for role, refs in calls.items() for ref in refs}
    seconds: dict[str, float] = {}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        seconds[pending.pop(done)] = time.monotonic() - started
    return {role: ray.get(list(refs)) for role, refs in calls.items()}, seconds


def _stable_index(row: RowKey, num_workers: int) -> int:
    # Not the number itself: tables may have a rhythm of their own.
    return zlib.crc32(f"{row.dataset}/{row.row}".encode()) % num_workers
