"""All roles of the loop: seat them, start them, join their worlds, and end them together."""

from __future__ import annotations

import time
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from actors.critic import CriticWorker
from actors.encoder import EncoderWorker, PromptRef
from actors.group import WorkerGroup
from actors.placement import seat
from actors.policy import PolicyWorker
from actors.reference import ReferenceWorker
from actors.reward import RewardWorker
from actors.rollout import RolloutWorker
from pipeline.config import AdvantageEstimator, Recipe, RewardName
from pipeline.models.checkpoint import check_same_towers
from pipeline.records import MediaKind, Quarantined


class Roles:
    """The groups that a stage asked for; a role that it did not ask for is None."""

    def __init__(self, recipe: Recipe, paths: Mapping[str, Path]):
        """Starts a group for each role in `paths`, from the checkpoint given there.

        Raises:
            FileNotFoundError: a checkpoint is missing.
            ConfigError: the checkpoints differ in their towers.
        """
        for role, path in paths.items():
            if not (path / "config.json").is_file():
                raise FileNotFoundError(f"{role}: no checkpoint in {path}; run the stage that writes it first")
        check_same_towers(paths)
        settings: dict[str, Any] = {role: getattr(recipe.rlhf, role) for role in paths}
        self._seating = seat(settings, recipe.cluster)

        def start(worker: Any, role: str) -> Any:
            if role not in paths:
                return None
            return WorkerGroup(worker, role, self._seating, recipe, settings[role], paths[role])

        self.encoder: WorkerGroup[EncoderWorker] = start(EncoderWorker, "encoder")
        self.rollout: WorkerGroup[RolloutWorker] = start(RolloutWorker, "rollout")
        self.policy: WorkerGroup[PolicyWorker] = start(PolicyWorker, "policy")
        self.critic: WorkerGroup[CriticWorker] | None = start(CriticWorker, "critic")
        self.reference: WorkerGroup[ReferenceWorker] | None = start(ReferenceWorker, "reference")
        self.reward: WorkerGroup[RewardWorker] | None = start(RewardWorker, "reward")
        self.groups: list[WorkerGroup[Any]] = [
            group
            for group in (self.encoder, self.rollout, self.policy, self.critic, self.reference, self.reward)
            if group is not None
        ]
        try:
            ray.get([done for group in self.groups for done in group.setup()])
        except BaseException:
            self.shutdown()
            raise

    def encode(
        self, ids: Sequence[str], split: str, *, blanked: frozenset[MediaKind] = frozenset(), towers: bool = True
    ) -> list[PromptRef | Quarantined]:
        """Processed and, with `towers`, encoded prompts; each by the worker that its id hashes to: once, that is."""
        shares, calls = self._ask_encoders(ids, split, blanked, towers)
        found = {
            name: prompt
            for share, prompts in zip(shares, ray.get(calls), strict=True)
            for name, prompt in zip(share, prompts, strict=True)
        }
        return [found[name] for name in ids]

    def announce(self, ids: Sequence[str], split: str) -> None:
        """Lets the encoders start on prompts that are soon asked for, while others work."""
        self._ask_encoders(ids, split, frozenset(), True)

    def _ask_encoders(
        self, ids: Sequence[str], split: str, blanked: frozenset[MediaKind], towers: bool
    ) -> tuple[list[list[str]], list[ray.ObjectRef[list[PromptRef | Quarantined]]]]:
        shares: list[list[str]] = [[] for _ in self.encoder.actors]
        for name in dict.fromkeys(ids):
            shares[_stable_index(name, len(shares))].append(name)
        if towers:
            return shares, self.encoder.on_each(EncoderWorker.encode, shares, split, blanked=blanked)
        return shares, self.encoder.on_each(EncoderWorker.process, shares, split)

    def shutdown(self) -> None:
        """Ends all workers and gives their resources back."""
        for group in self.groups:
            group.shutdown()
        self._seating.release()


@contextmanager
def start_roles(recipe: Recipe, paths: Mapping[str, Path]) -> Generator[Roles, None, None]:
    """The roles of a stage, ended with it."""
    roles = Roles(recipe, paths)
    try:
        yield roles
    finally:
        roles.shutdown()


def loop_paths(recipe: Recipe) -> dict[str, Path]:
    """The roles that the recipe's algorithm needs, and the checkpoint each starts from. No role runs for nothing."""
    algorithm = recipe.rlhf.algorithm
    sft = recipe.checkpoint("sft")
    paths = {"encoder": sft, "rollout": sft, "policy": sft}
    if algorithm.kl.weight > 0:
        paths["reference"] = sft
    if RewardName.LEARNED in recipe.rlhf.rewards:
        paths["reward"] = recipe.checkpoint("reward_model")
    if algorithm.advantage is AdvantageEstimator.GAE:
        # A reward model already judges completions: a better start for a critic than the policy, where there is one.
        paths["critic"] = paths.get("reward", sft)
    return paths


def collect(calls: Mapping[str, Sequence[ray.ObjectRef[Any]]]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Waits for calls to several roles at once; returns results and seconds until each role was done."""
    started = time.monotonic()
    pending = {ref: role for role, refs in calls.items() for ref in refs}
    seconds: dict[str, float] = {}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        seconds[pending.pop(done)] = time.monotonic() - started
    return {role: ray.get(list(refs)) for role, refs in calls.items()}, seconds


def _stable_index(name: str, num_workers: int) -> int:
    return zlib.crc32(name.encode()) % num_workers
