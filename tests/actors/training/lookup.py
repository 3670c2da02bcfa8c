"""What losses learn without a model: engines that look their values up, and prompts that nobody looks into."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from pipeline.models.batch import CompletionBatch

GOOD, OTHER, BAD = 7, 5, 3
END = 9


class Engine:
    """Looks values up by token: scores [C, M] for the last token of each completion, or a logprob for every token."""

    device = torch.device("cpu")
    settings = SimpleNamespace(micro_batch_tokens=16)

    def __init__(self, values: dict[int, Any], *, heads: tuple[int, ...] = (1, 1)):
        self.values = torch.zeros(10, *heads)
        for token, value in values.items():
            self.values[token] = torch.as_tensor(value, dtype=torch.float32)
        self.values.requires_grad_()
        self.module: Any = None
        self._by_token = not heads

    def max_over_ranks(self, value: float) -> float:
        return value

    def __call__(self, prompts: Any, completions: CompletionBatch) -> Any:
        if self._by_token:
            found = self.values[completions.token_ids] * completions.mask
            return found, torch.zeros_like(found)
        last = completions.mask.sum(1) - 1
        return self.values[completions.token_ids[torch.arange(len(last)), last]]


class Nothing:
    """A batch of prompts."""

    def to(self, device: torch.device) -> Nothing:
        return self
