"""The vocabulary head: logprobs and entropies of chosen tokens, in chunks, so that logits never exist whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.models.float32 import float32_product

# Finite, so that a forbidden token has probability zero and entropy terms stay zero instead of NaN.
FORBIDDEN_LOGIT = -1e9
# Float32 logits that exist at one time.
CHUNK_BYTES = 64 * 2**20


class VocabularyHead(nn.Module):
    """A model's `lm_head`, weight (and bias) shared with it, that forbids some tokens.

    It is called as one module, whatever the number of chunks, so that under ZeRO-3 every rank gathers its weight
    equally often.
    """

    forbidden: Tensor

    def __init__(self, linear: nn.Linear, forbidden: list[int]):
        super().__init__()
        self.weight = linear.weight
        self.bias = cast(nn.Parameter | None, linear.bias)
        place = linear.weight.device
        self.register_buffer("forbidden", torch.tensor(forbidden, dtype=torch.int64, device=place), persistent=False)
        self.chunk_bytes = CHUNK_BYTES

    def forward(
        self, hidden: Tensor, token_ids: Tensor | None = None, *, temperature: float = 1.0, with_entropy: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Of states `hidden` [..., H], the float32 logits [..., V] of the distribution sampled from.

        With `token_ids` [K] and `hidden` [K, H]: their float32 logprobs [K] and the distribution's entropies [K], in
        nats; zeros without `with_entropy`. Then at most `chunk_bytes` of logits exist at one time, also in the backward
        pass, which computes them again.
        """
        scale = 1.0 / temperature if temperature > 0 else 1.0
        if token_ids is None:
            return _logits(hidden, self.weight, self.bias, self.forbidden, scale)
        rows = max(1, self.chunk_bytes // (4 * self.weight.shape[0]))
        return _ChosenLogprobs.apply(
            hidden, self.weight, self.bias, token_ids, self.forbidden, scale, rows, with_entropy
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, forbidden: Tensor, scale: float) -> Tensor:
    logits = float32_product(hidden, weight.mT).float()
    if bias is not None:
        logits = logits + bias
    if scale != 1.0:
        logits = logits * scale
    return logits.index_fill_(-1, forbidden, FORBIDDEN_LOGIT)


class _ChosenLogprobs(torch.autograd.Function):
    """Log softmax at the chosen tokens, and entropy.

    With p the distribution and H its entropy: d logprob / d logits = onehot - p, d H / d logits = -p * (log p + H).
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        forbidden: Tensor,
        scale: float,
        rows: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(token_ids), dtype=torch.float32, device=hidden.device)
        entropies, normalisers = torch.zeros_like(logprobs), torch.empty_like(logprobs)
        kept: Tensor | None = None
        needs_gradient = any(ctx.needs_input_grad[:3])
        for part in _chunks(len(token_ids), rows):
            logits = _logits(hidden[part], weight, bias, forbidden, scale)
            normalisers[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, token_ids[part, None])[:, 0] - normalisers[part]
            if not with_entropy and not needs_gradient:
                continue
            probabilities = (logits - normalisers[part, None]).exp_()
            if with_entropy:
                entropies[part] = normalisers[part] - logits.mul_(probabilities).sum(-1)
            # A single chunk is within the bound, so that it need not be computed again.
            kept = probabilities if len(token_ids) <= rows else None
        ctx.save_for_backward(hidden, weight, bias, token_ids, forbidden, normalisers, entropies, kept)
        ctx.scale, ctx.rows = scale, rows
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, forbidden, normalisers, entropies, kept = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(token_ids), ctx.rows):
            p = kept
            if p is None:
                p = (_logits(hidden[part], weight, bias, forbidden, ctx.scale) - normalisers[part, None]).exp_()
            of_logits = _of_logits(
                p, token_ids[part], entropies[part], *(g if g is None else g[part] for g in gradients)
            )
            of_logits.index_fill_(-1, forbidden, 0.0)
            if ctx.scale != 1.0:
                of_logits *= ctx.scale
            narrow = of_logits.to(weight.dtype)
            of_hidden[part] = narrow @ weight
            if of_weight is not None:
                of_weight += narrow.T @ hidden[part]
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
            *(None for _ in range(5)),
        )


def _of_logits(
    p: Tensor, token_ids: Tensor, entropies: Tensor, of_logprobs: Tensor | None, of_entropies: Tensor | None
) -> Tensor:
    """Gradient of logits [K, V] whose softmax is `p`, from those of logprobs and entropies [K]; None counts as zero."""
    of_logits = torch.zeros_like(p) if of_logprobs is None else p * -of_logprobs[:, None]
    if of_entropies is not None:
        # Where p is zero its logarithm is not finite, and p * log p is zero.
        of_logits -= (p.log().add_(entropies[:, None]).mul_(p) * of_entropies[:, None]).nan_to_num_(nan=0.0)
    if of_logprobs is not None:
        of_logits.scatter_add_(1, token_ids[:, None], of_logprobs[:, None])
    return of_logits


def _chunks(length: int, rows: int) -> Iterator[slice]:
    yield from (slice(start, start + rows) for start in range(0, length, rows))
