"""All roles: seat them, start them, join their worlds, and end them together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import ray

from actors.fleet.answer import Answer, gather
from actors.fleet.failures import InputsLost, KillsWorkers, TrainingLost, WorldLost
from actors.fleet.placement import Ranks, Seating, resolve_device, seat
from actors.fleet.pool import Pool
from actors.fleet.recoveries import Recoveries, Recovery
from actors.fleet.worker import Worker
from actors.fleet.world import World
from actors.loop.graders import Graders
from actors.roles.critic import CriticWorker
from actors.roles.encoder import EncoderWorker, Needs, PromptRef, Showing, needs_of
from actors.roles.grader import GraderWorker
from actors.roles.policy import PolicyWorker
from actors.roles.reference import ReferenceWorker
from actors.roles.reward import RewardWorker
from actors.roles.rollout import RolloutWorker
from actors.roles.scoring import ShardedWorker
from actors.training.training import Training
from pipeline.config import FROZEN, Device, Parts, Recipe, RewardName, Workers
from pipeline.data.datasets import RowKey, RowRef
from pipeline.data.schema import Reason
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
    "grader": GraderWorker,
}
TRAININGS = ("sft", "reward_model")
"""Those of the stages that follow each other; a stage that stands alone has its own."""

JOBS = {
    "base": "prepare",
    "sft": "sft",
    "reward_model": "reward_model",
    "preference": "preference",
    "distilled": "distill",
    "rlhf": "rlhf",
}
"""Which job writes a checkpoint of the run."""

ROWS = "rows"
"""Whose a loss of rows is that lay read in the object store."""

T = TypeVar("T")
Fleet = Pool[Any] | World[Any]


def fleet(
    worker: type[Worker], role: str, seating: Seating, recipe: Recipe, settings: Workers, recoveries: Recoveries
) -> Fleet:
    """The workers of a role: ranks of a world, where its module is sharded over them, or else of a pool."""
    if issubclass(worker, ShardedWorker):
        return World(worker, role, seating, recipe, settings)
    return Pool(worker, role, seating, recipe, settings, recoveries)


class Roles:
    """The pools and worlds that a stage asked for, with their checkpoints; a role that it did not ask for is None."""

    def __init__(self, fleets: Mapping[str, Fleet], paths: Mapping[str, Path], recoveries: Recoveries):
        """Gives each role in `paths` the checkpoint there."""

        def of(role: str) -> Any:
            return fleets[role] if role in paths else None

        self.encoder: Pool[EncoderWorker] = of("encoder")
        self.rollout: Pool[RolloutWorker] = of("rollout")
        self.policy: World[PolicyWorker] = of("policy")
        self.critic: World[CriticWorker] | None = of("critic")
        self.reference: World[ReferenceWorker] | None = of("reference")
        self.reward: World[RewardWorker] | None = of("reward")
        self.all: list[Fleet] = [fleets[role] for role in paths]
        self.graders = Graders(cast(Pool[GraderWorker], fleets["grader"])) if "grader" in paths else None
        self.recoveries = recoveries
        begun: list[Recovery] = []
        while True:
            try:
                gather({role: fleets[role].setup(path) for role, path in paths.items()})
                break
            except WorldLost as lost:
                begun.append(recoveries.begin(lost.role, lost.detail, lost.kind))
                cast(World[Any], fleets[lost.role]).restart()
        for recovery in begun:
            recovery.done()

    def encode(
        self,
        rows: Sequence[RowRef],
        split: str,
        needs: Needs,
        *,
        shown: Mapping[RowKey, Showing] | None = None,
        again: bool = False,
    ) -> Encoding:
        """Has rows processed and encoded; each by the worker that its number gives: once, that is.

        shown: how the media of rows are shown, where not as they are. again: what is kept of them may be lost.
        """
        shares: dict[int, list[RowRef]] = {}
        for row in {row.key: row for row in rows}.values():
            shares.setdefault(self.encoder.seat_of(f"{row.key.dataset}/{row.key.row}"), []).append(row)

        def encode(seat: int, share: list[RowRef]) -> Answer[list[PromptRef | Quarantined]]:
            return self.encoder.submit_to(EncoderWorker.encode, [seat], [share], split, needs, shown=shown, again=again)

        return Encoding(
            [row.key for row in rows],
            [_Share(seat, share, encode, self.recoveries) for seat, share in shares.items()],
        )


@dataclass(frozen=True)
class Encoding:
    """Rows that encoder workers are at."""

    rows: list[RowKey]
    shares: list[_Share]

    def result(self) -> list[PromptRef | Quarantined]:
        """The prompts in the order of the rows; waits until they are there."""
        found = {key: prompt for share in self.shares for key, prompt in share.result().items()}
        return [found[key] for key in self.rows]


Encode = Callable[[int, list[RowRef]], Answer[list[PromptRef | Quarantined]]]


class _Share:
    """Rows that the encoder in one seat is at. Where they kill it again and again, each is tried alone; where they have
    left the object store, they are read from the tables."""

    def __init__(self, seat: int, rows: list[RowRef], encode: Encode, recoveries: Recoveries):
        self._seat = seat
        self._rows = rows
        self._encode = encode
        self._recoveries = recoveries
        self._answer = encode(seat, rows)

    def result(self) -> dict[RowKey, PromptRef | Quarantined]:
        """The prompts by row."""
        try:
            (prompts,) = self._answer.result()
        except InputsLost as lost:
            if not any(row.block for row in self._rows):
                raise
            recovery = self._recoveries.begin(ROWS, lost.detail, lost.kind)
            found = self._with([RowRef(row.key) for row in self._rows]).result()
            recovery.done()
            return found
        except KillsWorkers as error:
            if len(self._rows) > 1:
                alone = [self._with([row]) for row in self._rows]
                return {key: prompt for share in alone for key, prompt in share.result().items()}
            key = self._rows[0].key
            prompts = [Quarantined(f"row {key.row}", Reason.KILLS_WORKER.value, str(error))]
        return {row.key: prompt for row, prompt in zip(self._rows, prompts, strict=True)}

    def _with(self, rows: list[RowRef]) -> _Share:
        return _Share(self._seat, rows, self._encode, self._recoveries)


class Crew:
    """The worker processes of one stage, or of several that follow each other: starting one costs 10 CPU-seconds.

    Roles and trainings start when a stage asks for them, or before that: `plan` names them, `start_next` starts them.
    """

    def __init__(self, recipe: Recipe, *, training: str | None = None):
        """training: the stage whose training will be asked for, so that roles leave it room on GPUs."""
        self._recipe = recipe
        self.recoveries = Recoveries(max_an_hour=recipe.cluster.max_recoveries_an_hour, directory=recipe.run.directory)
        self._training = training
        self._seatings: list[Seating] = []
        self._fleets: dict[str, Fleet] = {}
        self._trainings: dict[str, Training] = {}
        self._planned: list[str] = []
        self._starting: list[ray.ObjectRef[None]] = []

    def roles(self, paths: Mapping[str, Path]) -> Roles:
        """The workers of each role in `paths`, from the checkpoint given there; those of earlier stages go on.

        Raises:
            FileNotFoundError: a checkpoint is missing.
            ConfigError: the checkpoints differ in their towers.
            NotEnoughResources: the cluster cannot hold the roles.
        """
        check_there(self._recipe, paths)
        check_same_towers(paths)
        self._start(paths)
        return Roles(self._fleets, paths, self.recoveries)

    def training(self, stage: str) -> Training:
        """The Ray Train workers of `sft`, `reward_model` and the like: those that were started ahead, or new ones."""
        if stage not in self._trainings or self._trainings[stage].has_ended:
            self._trainings[stage] = Training(self._recipe, stage)
        return self._trainings[stage]

    def insist(self, stage: str, attempt: Callable[[], T]) -> T:
        """What a stage comes to that keeps nothing between its tries: begun again when something it works with is lost.

        Raises:
            TooManyRecoveries: that happens too often.
        """
        begun: list[Recovery] = []
        self.recoveries.enter(stage)
        while True:
            try:
                found = attempt()
                break
            except (InputsLost, TrainingLost, WorldLost) as lost:
                begun.append(self.recoveries.begin(lost.role, lost.detail, lost.kind))
                if isinstance(lost, WorldLost):
                    cast(World[Any], self._fleets[lost.role]).restart()
        for recovery in begun:
            recovery.done()
        return found

    def fits_whole(self) -> bool:
        """Whether the workers of all stages fit beside each other: on CPUs, where there are enough. GPUs take turns."""
        if resolve_device(self._recipe.cluster) is not Device.CPU:
            return False
        roles = [role for role in WORKERS if role != "grader" or self._recipe.rlhf.outside_rewards]
        workers = [*self._settings(roles).values(), *(getattr(self._recipe, stage) for stage in TRAININGS)]
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
            self._starting = self._fleets[name].warm

    def _start(self, roles: Iterable[str]) -> None:
        settings = self._settings(role for role in roles if role not in self._fleets)
        if settings:
            # Once the training has started it has its seats.
            stage = None if self._trainings else self._training
            ranks = Ranks(stage, getattr(self._recipe, stage)) if stage else None
            seating = seat(settings, self._recipe.cluster, training=ranks)
            self._seatings.append(seating)
            for role, workers in settings.items():
                self._fleets[role] = fleet(WORKERS[role], role, seating, self._recipe, workers, self.recoveries)

    def _settings(self, roles: Iterable[str]) -> dict[str, Workers]:
        return {role: getattr(self._recipe.rlhf, role) for role in roles}

    def shutdown(self) -> None:
        """Ends all workers and gives their resources back."""
        for each in self._fleets.values():
            each.shutdown()
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


def check_there(recipe: Recipe, paths: Mapping[str, Path]) -> None:
    """Makes sure that the checkpoints of roles are there.

    Raises:
        FileNotFoundError: one is missing; the message names the field that gives it, or the stage that writes it.
    """
    given = {
        recipe.model.path: "model.path",
        recipe.rlhf.reference.checkpoint: "rlhf.reference.checkpoint",
        recipe.distill.student: "distill.student",
    }
    for role, path in paths.items():
        if (path / "config.json").is_file():
            continue
        if path in given:
            raise FileNotFoundError(
                f"{given[path]}={path}: no checkpoint here (config.json is missing); name a Hugging Face directory on "
                "disk: names of the Hub are not downloaded, `hf download NAME --local-dir DIRECTORY` does that"
            )
        job = JOBS.get(path.name) if path == recipe.checkpoint(path.name) else None
        cure = f"run `python -m jobs.{job}` first" if job else f"those of stages are {', '.join(JOBS)}"
        raise FileNotFoundError(f"{role}: no checkpoint in {path}; {cure}")


def loop_paths(recipe: Recipe) -> dict[str, Path]:
    """The roles that the recipe's algorithm needs, and the checkpoint each starts from. No role runs for nothing."""
    algorithm = recipe.rlhf.algorithm
    sft = recipe.checkpoint("sft")
    paths = {"encoder": sft, "rollout": sft, "policy": sft}
    if algorithm.needs_reference:
        paths["reference"] = recipe.rlhf.reference.checkpoint or sft
    if RewardName.LEARNED in recipe.rlhf.rewards:
        paths["reward"] = recipe.checkpoint("reward_model")
    if recipe.rlhf.outside_rewards:
        paths["grader"] = sft  # which they do not load
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
