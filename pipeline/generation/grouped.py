"""Decoding all completions of a group on one copy of their prompt's keys and values.

Attention of a new token has two parts. Over the prompt, the queries of all n completions of a group are stacked and
meet its keys in one matrix product; over what was sampled so far, each completion has keys of its own. One softmax
runs over both, on float32 scores whatever the model's type, as in the kernels of sdpa. The prompt cache is read once a
group instead of once a completion, and never copied n times: bifurcated attention (Athiwaratkun et al., 2024,
arXiv:2403.08845), also Hydragen (Juravsky et al., 2024, arXiv:2402.05099).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.models.batch import PromptBatch
from pipeline.models.float32 import float32_product
from pipeline.models.forward import Decoder

ATTENTION = "polyphony_grouped"
FIRST_CAPACITY = 16
"""Tokens that a completion has room for before its buffers grow."""


class GroupDecoder(Protocol):
    """Completions that grow by a token at a time on prefilled prompts, group after group."""

    def extend(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [N, H] that have seen one more token each; token_ids, positions int64 [N]."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows, int64 ascending."""
        ...


def group_decoder(decoder: Decoder, prompts: PromptBatch, cache: Any, group_size: int) -> GroupDecoder:
    """Decodes `group_size` completions on each prompt of a prefilled `cache`, shared where the model allows it."""
    kind = SharedPrompts if can_share(decoder, cache) else RepeatedPrompts
    return kind(decoder, prompts, cache, group_size)


def can_share(decoder: Decoder, cache: Any) -> bool:
    """Whether every layer is plain attention over all that came before: no sliding window, no softcap, no kernel."""
    config = decoder.architecture.language_model(decoder.model).config
    return config._attn_implementation == "sdpa" and all(type(layer) is DynamicLayer for layer in cache.layers)


class RepeatedPrompts:
    """The prompt cache is repeated for each completion: right for every model."""

    def __init__(self, decoder: Decoder, prompts: PromptBatch, cache: Any, group_size: int):
        self._decoder, self._cache = decoder, cache
        self._num_axes = prompts.position_ids.shape[0]
        self._mask = prompts.mask.repeat_interleave(group_size, dim=0)
        cache.batch_repeat_interleave(group_size)

    def extend(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [N, H]."""
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        return self._decoder.extend(
            token_ids[:, None],
            cache=self._cache,
            mask=self._mask,
            positions=positions[:, None],
            num_axes=self._num_axes,
        )[:, 0]

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]


class SharedPrompts:
    """One prompt cache a group.

    Rows are the completions that still grow, N of them; slots are P prompts times the most rows that any has, S. Where
    some groups have fewer rows than others, slots stay empty: they cost a little arithmetic and no memory traffic.
    """

    def __init__(self, decoder: Decoder, prompts: PromptBatch, cache: Any, group_size: int):
        self._model, self._language_model = decoder.model, decoder.architecture.language_model(decoder.model)
        self._num_axes = prompts.position_ids.shape[0]
        self._keys: list[Tensor] = [layer.keys for layer in cache.layers]
        self._values: list[Tensor] = [layer.values for layer in cache.layers]
        self._bias = torch.zeros_like(prompts.mask, dtype=torch.float32).masked_fill(~prompts.mask, -torch.inf)
        self._completions = Cache(layers=[GrowingLayer() for _ in cache.layers])
        self._owner = torch.arange(len(prompts.mask), device=prompts.mask.device).repeat_interleave(group_size)
        self._slots_each = group_size
        self._slots: Tensor | None = None

    def extend(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [N, H]."""
        position_ids = positions[:, None]
        if self._num_axes > 1:
            position_ids = position_ids.expand(self._num_axes, *position_ids.shape)
        with _attention(self._language_model.config):
            outputs = self._language_model(
                inputs_embeds=self._model.get_input_embeddings()(token_ids[:, None]),
                position_ids=position_ids,
                past_key_values=self._completions,
                use_cache=True,
                shared_prompts=self,
            )
        return outputs.last_hidden_state[:, 0]

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows, and the prompts that still have any."""
        self._completions.batch_select_indices(rows)
        num_prompts = len(self._bias)
        prompts, self._owner = self._owner[rows].unique(return_inverse=True)
        # Rows ascend, so that a group's rows are neighbours: the place in the group is the distance to its first.
        places = torch.arange(len(rows), device=rows.device) - torch.searchsorted(self._owner, self._owner)
        self._slots_each = int(places.max()) + 1
        self._slots = self._owner * self._slots_each + places
        if len(prompts) < num_prompts:
            self._keys = [keys[prompts] for keys in self._keys]
            self._values = [values[prompts] for values in self._values]
            self._bias = self._bias[prompts]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
        """Outputs [N, K, G, D] of queries [N, K, G, D] over the prompt and the completions' [N, K, t, D]."""
        num_prompt_tokens = self._bias.shape[1]
        on_prompt = float32_product(self._to_slots(query), self._keys[layer].mT)
        on_completion = self._to_slots(float32_product(query, key.mT))
        scores = torch.cat([on_prompt, on_completion], dim=-1).mul_(scaling)
        scores[..., :num_prompt_tokens] += self._bias[:, None, None]
        weights = scores.softmax(-1).to(query.dtype)
        from_prompt = float32_product(weights[..., :num_prompt_tokens], self._values[layer])
        from_completion = float32_product(self._to_rows(weights[..., num_prompt_tokens:]), value)
        return (self._to_rows(from_prompt) + from_completion).to(query.dtype)

    def _to_slots(self, rows: Tensor) -> Tensor:
        """[N, K, G, X] as [P, K, S * G, X]; empty slots are zero."""
        num_prompts, (_, heads, group, width) = len(self._bias), rows.shape
        if self._slots is not None:
            empty = rows.new_zeros(num_prompts * self._slots_each, heads, group, width)
            rows = empty.index_copy_(0, self._slots, rows)
        slots = rows.view(num_prompts, self._slots_each, heads, group, width).transpose(1, 2)
        return slots.reshape(num_prompts, heads, self._slots_each * group, width)

    def _to_rows(self, slots: Tensor) -> Tensor:
        """[P, K, S * G, X] as [N, K, G, X]."""
        num_prompts, heads, _, width = slots.shape
        rows = slots.reshape(num_prompts, heads, self._slots_each, -1, width).transpose(1, 2).flatten(0, 1)
        return rows if self._slots is None else rows[self._slots]


class GrowingLayer(DynamicLayer):
    """Keys and values in buffers that double when they are full: a token is written without copying all before it."""

    _buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values [N, K, t, D]; returns all so far."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._buffer is None or end > self._buffer.shape[3]:
            rows, heads, _, width = key_states.shape
            grown = key_states.new_empty(2, rows, heads, max(FIRST_CAPACITY, 2 * end), width)
            if self._buffer is not None:
                grown[:, :, :, :start] = self._buffer[:, :, :, :start]
            self._buffer, self.is_initialized = grown, True
        self._buffer[0, :, :, start:end] = key_states
        self._buffer[1, :, :, start:end] = value_states
        self.keys, self.values = self._buffer[:, :, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep the `indices` in the batch dimension."""
        if self._buffer is not None:
            length = self.get_seq_length()
            self._buffer = self._buffer[:, indices]
            self.keys, self.values = self._buffer[:, :, :, :length]


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompts: SharedPrompts,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: query [N, H, 1, D], key and value [N, K, t, D]; returns [N, 1, H, D]."""
    rows, heads, _length, width = query.shape
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
    output = shared_prompts.attend(layer, grouped, key, value, scaling=scaling)
    return output.reshape(rows, 1, heads, width), None


@contextmanager
def _attention(config: Any) -> Generator[None]:
    """The model attends with `grouped_attention` here, and as before afterwards."""
    AttentionInterface.register(ATTENTION, grouped_attention)
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
