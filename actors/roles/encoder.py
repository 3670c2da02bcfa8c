"""Encoder workers: process each prompt once, run the frozen towers once a medium, put results into the object store.

Everyone else gets references, so media tensors and features never pass through the driver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.engine.place import Place
from actors.fleet.failures import FEATURES, InputsLost
from actors.fleet.worker import Worker
from actors.roles.feature_cache import CacheCounts, FeatureCache
from pipeline.config import Dataset, Encoder, Parts, Recipe
from pipeline.data.datasets import Datasets, RowKey, RowRef
from pipeline.data.schema import RowError
from pipeline.data.table import info_of
from pipeline.models.architectures import Architecture, architecture_of
from pipeline.models.checkpoint import load_model, tower_fingerprint
from pipeline.models.forward import Policy
from pipeline.models.parts import live_kinds
from pipeline.models.processing import PromptProcessor
from pipeline.records import EncodedPrompt, MediaKind, MediumTensors, ProcessedPrompt, Prompt, PromptInfo, Quarantined

T = TypeVar("T")


@dataclass(frozen=True)
class Needs:
    """Kinds of media whose features some role needs, and kinds whose tensors some role needs for a tower of its own."""

    features: frozenset[MediaKind] = frozenset(MediaKind)
    tensors: frozenset[MediaKind] = frozenset()


@dataclass(frozen=True)
class Showing:
    """How a prompt's media are shown: its own or those of the row `donor`, those of the kinds in `blanked` blanked."""

    blanked: frozenset[MediaKind] = frozenset()
    donor: RowKey | None = None


AS_IT_IS = Showing()

PromptKey = tuple[str, RowKey, Showing, Needs]
"""Split, row, how its media are shown, what is needed."""
FeatureRef = ray.ObjectRef[NDArray[np.float32]]
"""Of a tower's features [num_tokens, hidden]."""
SAME_MEDIA = "same_media"
"""Why a prompt cannot be shown with the media of another row: they are its own."""
SMALL_BYTES = 32 * 2**10
"""Features and tensors up to this size are copied into each prompt that has them."""


@dataclass(frozen=True)
class StoredMedium:
    """A medium of a prompt: features and tensors are objects of their own, shared by all prompts with it.

    Small ones lie in the prompt itself: an object costs more than they do.
    """

    kind: MediaKind
    features: FeatureRef | NDArray[np.float32] | None
    tensors: ray.ObjectRef[MediumTensors] | MediumTensors | None


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt in the object store."""

    id: str
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    media: tuple[StoredMedium, ...]


@dataclass(frozen=True)
class PromptRef:
    """What the driver holds of a prompt: a reference to a `StoredPrompt`, its length, and what rewards ask for."""

    info: PromptInfo
    row: RowKey
    num_tokens: int
    stored: ray.ObjectRef[StoredPrompt]
    content: str = ""
    """SHA-256 (hex) of its token ids and of the content keys of its media: the same in every run with this prompt."""

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.info.id


def fetch_encoded(
    prompts: Sequence[PromptRef], live: frozenset[MediaKind] = frozenset(), *, within_s: float | None = None
) -> list[EncodedPrompt]:
    """Prompts from the object store of this node, without copies where they already lie there.

    Media of the kinds in `live` come as tensors for the caller's own towers, others as features.

    Raises:
        InputsLost: they are not there after `within_s`, as when the encoder that put them there hangs: Ray asks it.
    """
    try:
        stored: list[StoredPrompt] = ray.get([prompt.stored for prompt in prompts], timeout=within_s)
        held: list[Any] = [
            medium.tensors if medium.kind in live else medium.features for prompt in stored for medium in prompt.media
        ]
        objects = iter(ray.get([item for item in held if isinstance(item, ray.ObjectRef)], timeout=within_s))
    except GetTimeoutError:
        raise InputsLost(FEATURES, f"not there after {within_s:g} s: who holds them does not answer") from None
    media = iter([next(objects) if isinstance(item, ray.ObjectRef) else item for item in held])
    return [
        EncodedPrompt(prompt.id, prompt.input_ids, prompt.position_ids, tuple(next(media) for _ in prompt.media))
        for prompt in stored
    ]


def own_towers(recipe: Recipe, parts: Parts, architecture: Architecture) -> frozenset[MediaKind]:
    """Kinds of media for which a role runs towers of its own: they learn, or nothing is shared."""
    if recipe.rlhf.encoder.cache_mib == 0:
        return frozenset(architecture.modalities)
    return frozenset(live_kinds(parts, architecture))


def needs_of(recipe: Recipe, path: Path, *roles: Parts) -> Needs:
    """What roles with these parts need of each prompt, on the architecture of the checkpoint in `path`."""
    architecture = architecture_of(path, trust_remote_code=recipe.model.trust_remote_code)
    live = [own_towers(recipe, parts, architecture) for parts in roles]
    kinds = frozenset(architecture.modalities)
    return Needs(frozenset().union(*(kinds - each for each in live)), frozenset().union(*live))


def _with_media_of(prompt: Prompt | Quarantined, donor: Prompt | Quarantined) -> Prompt | Quarantined:
    """A prompt with another's media in place of its own, each of its kind; where it has fewer, they come again.

    Refused where nothing would change, or where the donor cannot be used.
    """
    if isinstance(prompt, Quarantined) or isinstance(donor, Quarantined):
        return prompt if isinstance(prompt, Quarantined) else replace(donor, row_id=prompt.id)
    lent = {kind: cycle([medium for medium in donor.media if medium.kind is kind]) for kind in MediaKind}
    media = tuple(next(lent[medium.kind], medium) for medium in prompt.media)
    if media == prompt.media:
        return Quarantined(prompt.id, SAME_MEDIA, f"{donor.id} has the same media")
    return replace(prompt, media=media)


class EncoderWorker(Worker):
    """Processes prompts of one checkpoint and encodes their media with its towers."""

    settings: Encoder

    def __init__(self, recipe: Recipe, settings: Encoder):
        super().__init__(recipe, settings)
        self._datasets: dict[tuple[tuple[Dataset, ...], str], Datasets] = {}

    def setup(self, place: Place, path: Path) -> None:
        """Loads processor and towers; what other towers encoded is forgotten."""
        trust = self.recipe.model.trust_remote_code
        self._model, self._architecture = load_model(path, dtype=self.recipe.model.dtype, trust_remote_code=trust)
        self._policy = Policy(self._model, self._architecture).to(place.torch_device)
        self._towers = tower_fingerprint(self._model, self._architecture)[:16]
        # Features that are not shared are not kept either; prompts are, within the least bound.
        self._cache: FeatureCache[PromptKey, PromptRef | Quarantined, StoredMedium] = FeatureCache(
            int(max(self.settings.cache_mib, 64) * 2**20)
        )
        self._num_tower_calls = 0
        self._processor = PromptProcessor(
            path=path,
            model=self._model,
            limits=self.recipe.data.limits,
            max_prompt_tokens=self.recipe.data.max_prompt_tokens,
            trust_remote_code=trust,
        )

    def num_tower_calls(self) -> int:
        """How often a tower ran: as often as there were different media, while the cache holds them all."""
        return self._num_tower_calls

    def cache_counts(self) -> CacheCounts:
        """What the cache holds and how often it helped, since the last checkpoint was loaded."""
        return self._cache.counts

    def encode(
        self,
        rows: Sequence[RowRef],
        split: str,
        needs: Needs,
        *,
        shown: Mapping[RowKey, Showing] | None = None,
        again: bool = False,
    ) -> list[PromptRef | Quarantined]:
        """Processes and encodes rows of a split, each once; refused ones come back with their reason.

        shown: how the media of rows are shown, where not as they are. again: what was put into the object store may
        have been lost there; it is looked for, and encoded again where it is gone.
        """
        keys: dict[RowKey, PromptKey] = {
            row.key: (split, row.key, (shown or {}).get(row.key, AS_IT_IS), needs) for row in rows
        }
        if again:
            for key in keys.values():
                kept = self._cache.get(key)
                if isinstance(kept, PromptRef) and _is_lost(kept):
                    self._cache.lose(key)
        found = {row.key: self._cache.get(keys[row.key]) for row in rows}
        missing = list({row.key: row for row in rows if found[row.key] is None}.values())
        showings = [keys[row.key][2] for row in missing]
        for row, prompt in zip(missing, self._dressed(split, missing, showings), strict=True):
            key = keys[row.key]
            if isinstance(prompt, Quarantined):
                found[row.key] = prompt
                self._cache.put(key, prompt, num_bytes=0, media=())
            else:
                found[row.key] = self._store(prompt, key)
        return [cast(PromptRef | Quarantined, found[row.key]) for row in rows]

    @torch.no_grad()
    def stock_logprobs(
        self, groups: Sequence[tuple[PromptRef, Sequence[NDArray[np.int64]]]], split: str, *, temperature: float
    ) -> list[NDArray[np.float32] | None]:
        """Logprobs [T] of each group's first completion by the checkpoint's own forward on the raw row.

        Nothing of ours takes part: the model runs its towers, finds its positions and keeps no cache. None where a
        completion says that a medium begins, as that of a model that has learned little may: it would look for one.
        """
        openings = self._architecture.opening_ids(self._model.config)
        rows = self._read(split, [RowRef(prompt.row) for prompt, _ in groups])
        found: list[NDArray[np.float32] | None] = []
        for row, (_, (token_ids, *_)) in zip(rows, groups, strict=True):
            if not openings.isdisjoint(token_ids.tolist()):
                found.append(None)
                continue
            inputs = self._processor.stock_inputs(cast(Prompt, row), token_ids)
            hidden = self._model.model(**{name: tensor.to(self._model.device) for name, tensor in inputs.items()})
            states = hidden.last_hidden_state[0, -len(token_ids) - 1 : -1]
            logprobs = self._policy.logits(states, temperature=temperature).log_softmax(-1)
            found.append(logprobs.cpu().numpy()[np.arange(len(token_ids)), token_ids])
        return found

    def _read(self, split: str, rows: Sequence[RowRef]) -> list[Prompt | Quarantined]:
        datasets = self.recipe.datasets
        if (datasets, split) not in self._datasets:
            self._datasets[datasets, split] = Datasets(datasets, split)
        return self._datasets[datasets, split].read(rows)

    def _dressed(self, split: str, rows: Sequence[RowRef], showings: Sequence[Showing]) -> list[Prompt | Quarantined]:
        """Prompts with the media of their donors, where they have one."""
        lent = list({showing.donor: None for showing in showings if showing.donor is not None})
        donors = dict(zip(lent, self._read(split, [RowRef(key) for key in lent]), strict=True))
        return [
            prompt if showing.donor is None else _with_media_of(prompt, donors[showing.donor])
            for prompt, showing in zip(self._read(split, rows), showings, strict=True)
        ]

    def _store(self, prompt: Prompt, key: PromptKey) -> PromptRef | Quarantined:
        _, row, showing, needs = key
        try:
            processed = self._processor(prompt, blanked=showing.blanked)
        except RowError as error:
            refused = error.quarantined(prompt.id)
            self._cache.put(key, refused, num_bytes=0, media=())
            return refused
        keys = [
            f"{medium.key}:{self._towers}:{medium.kind in needs.features:d}{medium.kind in needs.tensors:d}"
            for medium in processed.media
        ]
        media = tuple(
            self._cache.features(medium_key, partial(self._encode, medium, needs))
            for medium_key, medium in zip(keys, processed.media, strict=True)
        )
        stored = StoredPrompt(processed.id, processed.input_ids, processed.position_ids, media)
        ref = PromptRef(info_of(prompt), row, len(processed.input_ids), ray.put(stored), _content_of(processed))
        self._cache.put(key, ref, num_bytes=stored.input_ids.nbytes + stored.position_ids.nbytes, media=keys)
        return ref

    @torch.no_grad()
    def _encode(self, medium: MediumTensors, needs: Needs) -> tuple[StoredMedium, int]:
        """Features and tensors of a medium, as far as they are needed, in the object store; and their bytes."""
        features = tensors = None
        num_bytes = 0
        if medium.kind in needs.features:
            (encoded,) = self._architecture.encode(self._model, medium.kind, [medium.tensors])
            self._num_tower_calls += 1
            array = encoded.float().cpu().numpy()
            features, num_bytes = _held(array, array.nbytes), array.nbytes
        if medium.kind in needs.tensors:
            tensors_bytes = sum(np.asarray(tensor).nbytes for tensor in medium.tensors.values())
            tensors, num_bytes = _held(medium, tensors_bytes), num_bytes + tensors_bytes
        return StoredMedium(medium.kind, features, tensors), num_bytes


def _is_lost(prompt: PromptRef) -> bool:
    """Whether the prompt, or something of its media, is no longer in the object store."""
    try:
        stored: StoredPrompt = ray.get(prompt.stored)
        held = [part for medium in stored.media for part in (medium.features, medium.tensors)]
        ray.get([part for part in held if isinstance(part, ray.ObjectRef)])
    except ObjectLostError:
        return True
    return False


def _content_of(prompt: ProcessedPrompt) -> str:
    media = " ".join(medium.key for medium in prompt.media)
    return hashlib.sha256(prompt.input_ids.tobytes() + media.encode()).hexdigest()


def _held(item: T, num_bytes: int) -> T | ray.ObjectRef[T]:
    return item if num_bytes <= SMALL_BYTES else ray.put(item)
