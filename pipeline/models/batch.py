"""Prompts and completions as the model takes them: prompts padded on the left, completions on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.records import EncodedPrompt, MediumTensors, ProcessedPrompt


@dataclass(frozen=True)
class PromptBatch:
    """P prompts, padded on the left to length L.

    input_ids: int64 [P, L]; mask: bool [P, L]; position_ids: int64 [R, P, L].
    media: in the order of their placeholders, tower features float [M, H] of one or several media that follow each
    other, or what a tower must still encode.
    """

    input_ids: Tensor
    mask: Tensor
    position_ids: Tensor
    media: tuple[Tensor | MediumTensors, ...]

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on `device`; what a tower must encode moves when it runs."""
        return PromptBatch(
            self.input_ids.to(device),
            self.mask.to(device),
            self.position_ids.to(device),
            tuple(item.to(device) if isinstance(item, Tensor) else item for item in self.media),
        )


@dataclass(frozen=True)
class CompletionBatch:
    """N completions, padded on the right to length T.

    token_ids: int64 [N, T]; mask: bool [N, T]; owner: int64 [N], the row of each completion's prompt.
    group_size: completions of each prompt, where all have as many and lie together; else None.
    """

    token_ids: Tensor
    mask: Tensor
    owner: Tensor
    group_size: int | None = None

    def to(self, device: torch.device) -> CompletionBatch:
        """The same batch on `device`."""
        token_ids, mask, owner = (each.to(device) for each in (self.token_ids, self.mask, self.owner))
        return CompletionBatch(token_ids, mask, owner, self.group_size)


def collate_prompts(prompts: Sequence[EncodedPrompt | ProcessedPrompt], *, pad_id: int) -> PromptBatch:
    """Pads prompts on the left and lines up their media."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    num_axes = prompts[0].position_ids.shape[0]
    input_ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    positions = torch.zeros(num_axes, len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.input_ids)
        input_ids[row, start:] = torch.tensor(prompt.input_ids)
        mask[row, start:] = True
        positions[:, row, start:] = torch.tensor(prompt.position_ids)
    media: list[Tensor | MediumTensors] = []
    for is_encoded, run in groupby(chain.from_iterable(prompt.media for prompt in prompts), _is_encoded):
        items: list[Any] = list(run)
        media.extend([torch.from_numpy(np.concatenate(items))] if is_encoded else items)
    return PromptBatch(input_ids, mask, positions, tuple(media))


def _is_encoded(medium: NDArray[Any] | MediumTensors) -> bool:
    return isinstance(medium, np.ndarray)


def collate_completions(groups: Sequence[Sequence[NDArray[np.int64]]], *, pad_id: int) -> CompletionBatch:
    """Pads the completions of several groups on the right; the k-th group belongs to the k-th prompt."""
    rows = [completion for group in groups for completion in group]
    owner = torch.tensor([index for index, group in enumerate(groups) for _ in group], dtype=torch.int64)
    length = max(len(row) for row in rows)
    token_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    sizes = set(map(len, groups))
    return CompletionBatch(token_ids, mask, owner, sizes.pop() if len(sizes) == 1 else None)
