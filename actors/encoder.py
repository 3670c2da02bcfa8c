"""Encoder workers: process each prompt once, run the frozen towers once a medium, put results into the object store.

Everyone else gets references, so media tensors and features never pass through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.engine import World
from actors.group import Worker
from pipeline.config import Recipe, Workers
from pipeline.data.schema import RowError
from pipeline.data.table import PromptTable
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor
from pipeline.records import EncodedPrompt, MediaKind, MediumTensors, ProcessedPrompt, Prompt, Quarantined

PromptKey = tuple[str, str, frozenset[MediaKind], bool]
"""Split, id, kinds blanked, whether encoded."""
FeatureRef = ray.ObjectRef[NDArray[np.float32]]
"""Of a tower's features [num_tokens, hidden]."""


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt in the object store; its features are objects of their own, shared by all prompts with that medium."""

    id: str
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    features: tuple[FeatureRef, ...]


@dataclass(frozen=True)
class PromptRef:
    """What the driver holds of a prompt: a reference to a `StoredPrompt` or a `ProcessedPrompt`, and its length."""

    id: str
    num_tokens: int
    stored: ray.ObjectRef[Any]


def fetch_encoded(prompts: Sequence[PromptRef]) -> list[EncodedPrompt]:
    """Encoded prompts from the object store of this node, without copies where they already lie there."""
    stored: list[StoredPrompt] = ray.get([prompt.stored for prompt in prompts])
    features = iter(ray.get([ref for prompt in stored for ref in prompt.features]))
    return [
        EncodedPrompt(prompt.id, prompt.input_ids, prompt.position_ids, tuple(next(features) for _ in prompt.features))
        for prompt in stored
    ]


def fetch_processed(prompts: Sequence[PromptRef]) -> list[ProcessedPrompt]:
    """Processed prompts from the object store."""
    return ray.get([prompt.stored for prompt in prompts])


class EncoderWorker(Worker):
    """Processes prompts of one checkpoint and encodes their media with its towers."""

    def __init__(self, recipe: Recipe, settings: Workers):
        super().__init__(recipe, settings)
        self._tables: dict[str, PromptTable] = {}

    def setup(self, world: World, path: Path) -> None:
        """Loads processor and towers; what other towers encoded is forgotten."""
        self._prompts: dict[PromptKey, PromptRef | Quarantined] = {}
        self._features: dict[str, FeatureRef] = {}
        self._num_tower_calls = 0
        trust = self.recipe.model.trust_remote_code
        self._model, self._architecture = load_model(path, dtype=self.recipe.model.dtype, trust_remote_code=trust)
        self._model.to(world.torch_device)
        self._processor = PromptProcessor(
            path=path,
            model=self._model,
            limits=self.recipe.data.limits,
            max_prompt_tokens=self.recipe.data.max_prompt_tokens,
            trust_remote_code=trust,
        )

    def num_tower_calls(self) -> int:
        """How often a tower ran: as often as there were different media."""
        return self._num_tower_calls

    def encode(
        self, ids: Sequence[str], split: str, *, blanked: frozenset[MediaKind] = frozenset()
    ) -> list[PromptRef | Quarantined]:
        """Processes and encodes prompts of a split, each once; refused ones come back with their reason."""
        return self._each_once(ids, split, blanked, encoded=True)

    def process(self, ids: Sequence[str], split: str) -> list[PromptRef | Quarantined]:
        """Processes prompts and leaves their media to towers that still train."""
        return self._each_once(ids, split, frozenset(), encoded=False)

    def _each_once(
        self, ids: Sequence[str], split: str, blanked: frozenset[MediaKind], *, encoded: bool
    ) -> list[PromptRef | Quarantined]:
        def key(name: str) -> PromptKey:
            return split, name, blanked, encoded

        new = [name for name in dict.fromkeys(ids) if key(name) not in self._prompts]
        for row in self._table(split).read(new):
            if isinstance(row, Quarantined):
                self._prompts[key(row.row_id)] = row
            else:
                self._prompts[key(row.id)] = self._store(row, blanked, encoded=encoded)
        return [self._prompts[key(name)] for name in ids]

    def _table(self, split: str) -> PromptTable:
        if split not in self._tables:
            self._tables[split] = PromptTable(self.recipe.data_path / f"{split}.parquet")
        return self._tables[split]

    def _store(self, prompt: Prompt, blanked: frozenset[MediaKind], *, encoded: bool) -> PromptRef | Quarantined:
        try:
            processed = self._processor(prompt, blanked=blanked)
        except RowError as error:
            return error.quarantined(prompt.id)
        stored: Any = processed
        if encoded:
            features = self._encode_media(processed.media)
            stored = StoredPrompt(processed.id, processed.input_ids, processed.position_ids, features)
        return PromptRef(prompt.id, len(processed.input_ids), ray.put(stored))

    @torch.no_grad()
    def _encode_media(self, media: Sequence[MediumTensors]) -> tuple[FeatureRef, ...]:
        for medium in media:
            if medium.key not in self._features:
                (features,) = self._architecture.encode(self._model, medium.kind, [medium.tensors])
                self._num_tower_calls += 1
                self._features[medium.key] = ray.put(features.float().cpu().numpy())
        return tuple(self._features[medium.key] for medium in media)
