"""The decode loop of the built-in rollout engine.

A prompt is prefilled once for the n completions of its group; finished rows leave the batch; each sample draws from
its own random numbers, so that neither batching nor the number of workers changes what is sampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.batch import PromptBatch
from pipeline.models.forward import Policy
from pipeline.records import FinishReason


@dataclass(frozen=True)
class Sample:
    """One sampled completion: token_ids int64 [T], behaviour_logprobs float32 [T]."""

    token_ids: NDArray[np.int64]
    behaviour_logprobs: NDArray[np.float32]
    finish_reason: FinishReason


def sample_seed(run_seed: int, step: int, prompt_id: str, sample: int) -> int:
    """The seed of one sample: 63 bits of a hash of who it is, so that no worker's history enters."""
    digest = hashlib.sha256(f"{run_seed}:{step}:{prompt_id}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: PromptBatch,
    *,
    group_size: int,
    seeds: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    end_ids: Sequence[int],
) -> list[Sample]:
    """Samples `group_size` completions for each prompt, groups together, in the order of the prompts.

    Args:
        seeds: one a completion.
        temperature: 0 takes the likeliest token; logprobs are then those at temperature 1.
        end_ids: token ids that end a completion; the end token is part of it.
    """
    device = prompts.input_ids.device
    num_samples = prompts.input_ids.shape[0] * group_size
    if len(seeds) != num_samples:
        raise ValueError(f"{len(seeds)} seeds for {num_samples} completions: give one each")
    uniforms = _uniforms(seeds, max_new_tokens).to(device)
    owner = torch.arange(num_samples, device=device) // group_size
    last, cache, next_position = policy.decoder.prefill(prompts)
    cache.batch_select_indices(owner)
    hidden, mask, position = last[owner], prompts.mask[owner], next_position[owner]

    token_ids = torch.zeros(num_samples, max_new_tokens, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_samples, max_new_tokens, device=device)
    lengths = torch.full((num_samples,), max_new_tokens, device=device)
    stopped = torch.zeros(num_samples, dtype=torch.bool, device=device)
    live = torch.arange(num_samples, device=device)
    ends = torch.tensor(list(end_ids), device=device)
    for step in range(max_new_tokens):
        chosen, logprob = _choose(policy.logits(hidden, temperature=temperature), uniforms[live, step], temperature)
        token_ids[live, step], logprobs[live, step] = chosen, logprob
        ended = torch.isin(chosen, ends)
        stopped[live[ended]] = True
        lengths[live[ended]] = step + 1
        keep = (~ended).nonzero()[:, 0]
        if len(keep) == 0 or step + 1 == max_new_tokens:
            break
        if len(keep) < len(live):
            cache.batch_select_indices(keep)
            live, mask, position, chosen = live[keep], mask[keep], position[keep], chosen[keep]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        hidden = policy.decoder.extend(
            chosen[:, None],
            cache=cache,
            mask=mask,
            positions=position[:, None],
            num_axes=prompts.position_ids.shape[0],
        )[:, 0]
        position = position + 1
    return _samples(token_ids, logprobs, lengths, stopped)


def _choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of the cumulative distribution, and its logprob."""
    logprobs = torch.log_softmax(logits, dim=-1)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        cumulative = logprobs.double().exp().cumsum(-1)
        target = uniforms.double()[:, None] * cumulative[:, -1:]
        # `right`: a uniform of exactly zero must not choose a token of probability zero.
        chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]


def _uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """Uniform numbers [N, T] in [0, 1), row i from seed i alone."""
    return torch.stack([torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _samples(token_ids: Tensor, logprobs: Tensor, lengths: Tensor, stopped: Tensor) -> list[Sample]:
    rows: list[Sample] = []
    ids: Any = token_ids.cpu().numpy()
    values: Any = logprobs.float().cpu().numpy()
    for row, (length, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True)):
        reason = FinishReason.STOP if stop else FinishReason.LENGTH
        rows.append(Sample(ids[row, :length].copy(), values[row, :length].copy(), reason))
    return rows
