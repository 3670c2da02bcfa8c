"""What all sharded roles share: join a world, wrap a module in an `Engine`, walk over passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor, nn

from actors.engine.engine import Engine, import_deepspeed, join
from actors.engine.place import Place
from actors.fleet.answer import Answer
from actors.fleet.failures import FEATURES, InputsLost
from actors.fleet.worker import Worker
from actors.fleet.world import World
from actors.roles.encoder import PromptRef, fetch_encoded, own_towers
from pipeline.config import FROZEN, Device, Learner, LoopParts, Recipe, Sharded
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.models.parts import parameter_groups, parameter_table, set_parts
from pipeline.models.processing import PromptProcessor, load_processor
from pipeline.models.tokens import pad_id
from pipeline.packing import GroupSize, Pass, plan_passes
from pipeline.parity import Sight, sights
from pipeline.records import Arrays, MediaKind, MediumTensors, Records

Group = tuple[PromptRef, Sequence[NDArray[np.int64]]]
"""A prompt and the token ids [T] of each of its completions."""


class Passes(list[Sequence[Group]]):
    """The groups of each pass of a rank, which travel to it in few arrays."""

    def __reduce__(self) -> tuple[Any, ...]:
        groups = [group for each in self for group in each]
        prompts = Records(prompt for prompt, _ in groups)
        completions = Arrays(ids for _, completions in groups for ids in completions)
        return _passes, ([*map(len, self)], prompts, [len(completions) for _, completions in groups], completions)


def _passes(
    lengths: Sequence[int],
    prompts: Sequence[PromptRef],
    sizes: Sequence[int],
    completions: Sequence[NDArray[np.int64]],
) -> Passes:
    ids, groups = iter(completions), zip(prompts, sizes, strict=True)
    return Passes([(prompt, [*islice(ids, size)]) for prompt, size in islice(groups, length)] for length in lengths)


P = ParamSpec("P")
W = TypeVar("W", bound="ShardedWorker")


def group_size(group: Group) -> GroupSize:
    """What a group costs in a pass."""
    prompt, completions = group
    return GroupSize(prompt.num_tokens, len(completions), max(map(len, completions)))


@dataclass(frozen=True)
class Scoring:
    """Calls to the workers of a role, and which groups each of their passes holds."""

    answer: Answer[list[NDArray[np.float32]]]
    plan: list[list[Pass]]

    def in_order(self, results: Sequence[list[NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
        """One array a group, in the order of the groups, from what the workers returned."""
        found: dict[int, NDArray[np.float32]] = {}
        for passes, rows in zip(self.plan, results, strict=True):
            scored = iter(rows)
            for each in passes:
                found |= {index: row for index, row in zip(each.groups, scored, strict=False) if each.counts}
        return [found[index] for index in range(len(found))]


def score(
    world: World[W],
    method: Callable[Concatenate[W, Sequence[Sequence[Group]], P], list[NDArray[np.float32]]],
    groups: Sequence[Group],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Scoring:
    """Asks all ranks of a role for `method` on their passes over `groups`."""
    settings: Any = world.settings
    plan = plan_passes(
        [group_size(group) for group in groups], num_ranks=len(world), budget=settings.micro_batch_tokens
    )
    shares = [Passes([groups[index] for index in each.groups] for each in passes) for passes in plan]
    return Scoring(world.on_each(method, shares, *args, **kwargs), plan)


class ShardedWorker(Worker):
    """A role with a module under DeepSpeed. Features of frozen towers come from the encoder workers."""

    role: ClassVar[str]
    """The section of `rlhf` that holds its settings."""
    settings: Sharded

    def warm_up(self, device: Device) -> None:
        """Imports DeepSpeed too."""
        import_deepspeed(device)
        super().warm_up(device)

    def load_module(self) -> nn.Module:
        """The role's module from its checkpoint at `path`."""
        raise NotImplementedError

    @property
    def parts(self) -> LoopParts:
        """Which parts learn; of a role without an optimizer none does."""
        return self.settings.parts if isinstance(self.settings, Learner) else FROZEN

    def setup(self, place: Place, path: Path) -> None:
        """Joins the role's world and shards the module over it."""
        join(place)
        self.path = path
        self.device = place.torch_device
        model = self.recipe.model
        processor = load_processor(self.path, trust_remote_code=model.trust_remote_code)
        self.pad_id = pad_id(processor.tokenizer)
        # Equal on every rank: what starts at random (a head without a checkpoint) must be the same everywhere.
        torch.manual_seed(self.recipe.run.seed)
        module: Any = self.load_module()
        set_parts(module, self.parts, field=f"rlhf.{self.role}.parts")
        module.decoder.share_prefix = model.share_prefix
        self.live = own_towers(self.recipe, self.parts, module.decoder.architecture)
        module.decoder.blank_media = blank_media(self.recipe, path, module.decoder.model, self.live)
        groups = None
        if isinstance(self.settings, Learner):
            groups = parameter_groups(module, self.parts, learning_rate=self.settings.learning_rate)
        self.engine = Engine(module, world=place, settings=self.settings, dtype=model.dtype, groups=groups)

    def parameter_table(self) -> str:
        """Trainable and frozen parameters by part."""
        rate = self.settings.learning_rate if isinstance(self.settings, Learner) else None
        return parameter_table(self.engine.module, self.parts, learning_rate=rate)

    def batch(self, groups: Sequence[Group]) -> tuple[PromptBatch, CompletionBatch]:
        """Collates prompts and their completions on this worker's device."""
        prompts = [self._fetched[prompt.stored] for prompt, _ in groups]
        return (
            collate_prompts(prompts, pad_id=self.pad_id).to(self.device),
            collate_completions([completions for _, completions in groups], pad_id=self.pad_id).to(self.device),
        )

    @contextmanager
    def fetched(self, prompts: Iterable[PromptRef]) -> Generator[None, None, None]:
        """Brings the prompts of a call here before its first pass. All ranks must call it.

        Raises:
            InputsLost: on every rank, where one of them does not get its own: a pass begins on all ranks or on none.
        """
        wanted, lost = list({prompt.stored: prompt for prompt in prompts}.values()), ""
        try:
            encoded = fetch_encoded(wanted, self.live, within_s=self.recipe.cluster.deadlines.fetch_s)
        except (RayError, InputsLost) as error:
            encoded, lost = [], error.detail if isinstance(error, InputsLost) else str(error).splitlines()[0]
        if self.engine.max_over_ranks(float(bool(lost))):
            raise InputsLost(FEATURES, lost or "those of another rank")
        self._fetched = {prompt.stored: found for prompt, found in zip(wanted, encoded, strict=True)}
        try:
            yield
        finally:
            self._fetched = {}

    def sights(self, prompts: Sequence[PromptRef]) -> list[Sight]:
        """What the role runs for each prompt."""
        encoded = fetch_encoded(prompts, self.live, within_s=self.recipe.cluster.deadlines.fetch_s)
        return sights(encoded, collate_prompts(encoded, pad_id=self.pad_id))

    @torch.no_grad()
    def map_groups(
        self, passes: Sequence[Sequence[Group]], forward: Callable[[PromptBatch, CompletionBatch], Tensor]
    ) -> list[NDArray[np.float32]]:
        """`forward` pass by pass; one array [n, T] or [n] a group, T its own longest completion."""
        results: list[NDArray[np.float32]] = []
        with self.fetched(prompt for groups in passes for prompt, _ in groups):
            for groups in passes:
                rows = forward(*self.batch(groups)).float().cpu().numpy()
                start = 0
                for _, completions in groups:
                    block = rows[start : start + len(completions)]
                    results.append(np.array(block[:, : max(map(len, completions))] if block.ndim == 2 else block))
                    start += len(completions)
        return results


def blank_media(
    recipe: Recipe, path: Path, model: Any, kinds: frozenset[MediaKind]
) -> Mapping[MediaKind, MediumTensors]:
    """Something small of each of `kinds`, for ranks that must run a tower that their rows do not need."""
    if not kinds:
        return {}
    smallest = PromptProcessor(
        path=path,
        model=model,
        limits=recipe.data.limits,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        trust_remote_code=recipe.model.trust_remote_code,
    ).smallest_media()
    return {kind: smallest[kind] for kind in kinds}
