"""The decode loop of the built-in rollout engine.

A prompt is prefilled once for the n completions of its group, which share its cache; finished rows leave the batch;
each sample draws from its own random numbers, so that neither batching nor the number of workers changes what is
sampled.
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

from pipeline.generation.sampling import draw, likeliest, logprob_of, truncate
from pipeline.generation.stopping import Decode, StopStrings
from pipeline.models.batch import PromptBatch
from pipeline.models.forward import Policy
from pipeline.records import FinishReason

LEAVING_SHARE = 1 / 8
"""Finished rows leave the batch when they are this share of it: each time costs a copy of what the others hold."""


@dataclass(frozen=True)
class Sample:
    """One sampled completion: token_ids int64 [T], behaviour_logprobs float32 [T], and before filters raw_logprobs.

    raw_logprobs: float32 [T]; None where there are no filters and the behaviour's are raw.
    """

    token_ids: NDArray[np.int64]
    behaviour_logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    raw_logprobs: NDArray[np.float32] | None = None


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
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: Sequence[str] = (),
    decode: Decode | None = None,
) -> list[Sample]:
    """Samples `group_size` completions for each prompt, groups together, in the order of the prompts.

    Behaviour logprobs are those of the distribution sampled from, after temperature and filters; raw ones are those
    after the temperature, before the filters.

    Args:
        seeds: one a completion.
        temperature: 0 takes the likeliest token; logprobs are then those at temperature 1 without filters.
        end_ids: token ids that end a completion; the end token is part of it.
        top_k, top_p, min_p: filters, see `truncate`.
        stop: texts that end a completion as soon as it contains one; all its tokens stay.
        decode: token ids to text; needed for `stop` only.
    """
    # Here, because it imports transformers, which a driver that only names this module does without.
    from pipeline.generation.grouped import group_decoder

    device = prompts.input_ids.device
    num_samples = prompts.input_ids.shape[0] * group_size
    if len(seeds) != num_samples:
        raise ValueError(f"{len(seeds)} seeds for {num_samples} completions: give one each")
    uniforms = _uniforms(seeds, max_new_tokens).to(device)
    stops = StopStrings(stop, decode, num_samples) if stop else None
    last, cache, next_position = policy.decoder.prefill(prompts)
    decoder = group_decoder(policy.decoder, prompts, cache, group_size)
    rows = torch.arange(num_samples, device=device)
    owner = rows // group_size
    positions = next_position[owner]
    ends = torch.tensor(list(end_ids), dtype=torch.int64, device=device)

    token_ids = torch.zeros(num_samples, max_new_tokens, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_samples, max_new_tokens, device=device)
    filters: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    is_filtered = temperature > 0 and (top_k is not None or top_p < 1 or min_p > 0)
    raw = torch.zeros_like(logprobs) if is_filtered else None
    lengths = torch.full((num_samples,), max_new_tokens, device=device)
    stopped = torch.zeros(num_samples, dtype=torch.bool, device=device)
    logits = policy.logits(last, temperature=temperature)[owner]
    for step in range(max_new_tokens):
        if temperature == 0:
            chosen, logprob = likeliest(logits)
        else:
            chosen, logprob = draw(truncate(logits, **filters), uniforms[rows, step])
        if raw is not None:
            raw[rows, step] = logprob_of(logits, chosen)
        token_ids[rows, step], logprobs[rows, step] = chosen, logprob
        ended = torch.isin(chosen, ends)
        if stops is not None:
            ended |= stops.reached(rows, chosen)
        # A row that ended before runs on until it leaves: its first end counts.
        lengths[rows] = torch.where(ended & ~stopped[rows], step + 1, lengths[rows])
        stopped[rows] |= ended
        growing = (~stopped[rows]).nonzero()[:, 0]
        if len(growing) == 0 or step + 1 == max_new_tokens:
            break
        if len(growing) <= (1 - LEAVING_SHARE) * len(rows):
            decoder.select(growing)
            rows, chosen = rows[growing], chosen[growing]
        logits = policy.logits(decoder.extend(chosen, positions[rows] + step), temperature=temperature)
    return _samples(token_ids, logprobs, raw, lengths, stopped)


def _uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """Uniform numbers [N, T] in [0, 1), row i from seed i alone."""
    return torch.stack([torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _samples(token_ids: Tensor, logprobs: Tensor, raw: Tensor | None, lengths: Tensor, stopped: Tensor) -> list[Sample]:
    samples: list[Sample] = []
    ids: Any = token_ids.cpu().numpy()
    values: Any = logprobs.cpu().numpy()
    raw_values: Any = None if raw is None else raw.cpu().numpy()
    for row, (length, stop) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True)):
        reason = FinishReason.STOP if stop else FinishReason.LENGTH
        of_row = None if raw is None else raw_values[row, :length].copy()
        samples.append(Sample(ids[row, :length].copy(), values[row, :length].copy(), reason, of_row))
    return samples
