"""What all sharded roles share: join a world, wrap a module in an `Engine`, walk over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.encoder import PromptRef, fetch_encoded
from actors.engine import Engine, World, import_deepspeed, join
from actors.group import Worker
from pipeline.config import Device, Sharded
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.models.checkpoint import freeze_towers, parameter_table
from pipeline.models.processing import load_processor

Group = tuple[PromptRef, Sequence[NDArray[np.int64]]]
"""A prompt and the token ids [T] of each of its completions."""


class ShardedWorker(Worker):
    """A role with a module under DeepSpeed. Its towers are frozen: features come from the encoder workers."""

    settings: Sharded

    def warm_up(self, device: Device) -> None:
        """Imports DeepSpeed too."""
        import_deepspeed(device)
        super().warm_up(device)

    def load_module(self) -> nn.Module:
        """The role's module from its checkpoint at `path`."""
        raise NotImplementedError

    def setup(self, world: World, path: Path) -> None:
        """Joins the role's world and shards the module over it."""
        join(world)
        self.path = path
        self.device = world.torch_device
        trust = self.recipe.model.trust_remote_code
        self.pad_id = int(load_processor(self.path, trust_remote_code=trust).tokenizer.pad_token_id)
        # Equal on every rank: what starts at random (a head without a checkpoint) must be the same everywhere.
        torch.manual_seed(self.recipe.run.seed)
        module = self.load_module()
        freeze_towers(module)
        self.engine = Engine(module, world=world, settings=self.settings, dtype=self.recipe.model.dtype)

    def parameter_table(self) -> str:
        """Trainable and frozen parameters by part."""
        return parameter_table(self.engine.module)

    def batch(self, groups: Sequence[Group]) -> tuple[PromptBatch, CompletionBatch]:
        """Collates prompts and their completions on this worker's device."""
        prompts = fetch_encoded([prompt for prompt, _ in groups])
        return (
            collate_prompts(prompts, pad_id=self.pad_id).to(self.device),
            collate_completions([completions for _, completions in groups], pad_id=self.pad_id).to(self.device),
        )

    def slices(self, num_groups: int) -> Iterator[slice]:
        """Micro-batches of groups. Shards are equally long on all ranks, so these are equally many."""
        size = self.settings.micro_batch_size
        yield from (slice(start, start + size) for start in range(0, num_groups, size))

    @torch.no_grad()
    def map_groups(
        self, groups: Sequence[Group], forward: Callable[[PromptBatch, CompletionBatch], Tensor]
    ) -> list[NDArray[np.float32]]:
        """`forward` on micro-batches; one array [n, T] or [n] a group, T its own longest completion."""
        results: list[NDArray[np.float32]] = []
        for part in self.slices(len(groups)):
            rows = forward(*self.batch(groups[part])).float().cpu().numpy()
            start = 0
            for _, completions in groups[part]:
                block = rows[start : start + len(completions)]
                results.append(np.array(block[:, : max(map(len, completions))] if block.ndim == 2 else block))
                start += len(completions)
        return results
