"""From logits to a token: the filters that cut a distribution, and the draw from what they leave."""

from __future__ import annotations

import torch
from torch import Tensor


def truncate(logits: Tensor, *, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Logits [N, V] in which unlikely tokens are -inf; those kept keep their values.

    After the temperature come top-k, top-p and min-p, each on the renormalised distribution that the one before left:
    the order of transformers' `_get_logits_processor`. vLLM applies min-p first. A ratio of probabilities is the same
    before and after renormalising, so the two differ only in the mass that top-p counts.

    Args:
        top_k: the k likeliest tokens stay, and whatever ties with the k-th (Fan et al., 2018, arXiv:1805.04833).
        top_p: the fewest tokens with at least this mass stay; of equals those with the lower id (nucleus sampling,
            Holtzman et al., 2020, arXiv:1904.09751).
        min_p: tokens at least this times as likely as the likeliest stay (Nguyen et al., 2024, arXiv:2407.01082).
    """
    if top_k is not None:
        last = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1, dtype=torch.float64)
        # The mass before a token, so that the one that crosses `top_p` stays.
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    if min_p > 0:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -torch.inf)
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of the cumulative distribution, and its logprob.

    Args:
        logits: float32 [N, V]; -inf is impossible.
        uniforms: [N] in [0, 1).

    Returns:
        Token ids int64 [N] and their logprobs float32 [N].
    """
    # Unnormalised: the sum of all gives the normaliser of the logprob too.
    largest = logits.amax(-1, keepdim=True)
    cumulative = (logits - largest).exp_().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # `right`: a uniform of exactly zero must not choose a token of probability zero.
    chosen = torch.searchsorted(cumulative, uniforms.double()[:, None] * total, right=True).clamp(
        max=logits.shape[-1] - 1
    )
    return chosen[:, 0], (logits.gather(-1, chosen) - largest - total.log())[:, 0].float()


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token of each row and its logprob: int64 [N], float32 [N]."""
    chosen = logits.argmax(-1)
    return chosen, logprob_of(logits, chosen)


def logprob_of(logits: Tensor, chosen: Tensor) -> Tensor:
    """Logprobs float32 [N] of the tokens `chosen` int64 [N] under the logits [N, V], in nats."""
    return (logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)).float()
