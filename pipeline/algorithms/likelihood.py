"""Learning from demonstrations: the loss of supervised fine-tuning."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def negative_log_likelihood(*, logprobs: Float[Tensor, "B T"], num_tokens: float) -> Float[Tensor, ""]:
    """Negative log likelihood of the answers' tokens, -sum(logprobs) / num_tokens, in nats a token.

    Args:
        logprobs: [B, T], the model's, of each token of the answers (end token included); 0 where padded.
        num_tokens: answer tokens in the whole optimizer step, over all workers and micro-batches.

    Raises:
        ValueError: `num_tokens` is not positive.
    """
    if num_tokens <= 0:
        raise ValueError(f"num_tokens={num_tokens}: must be positive")
    return -logprobs.sum() / num_tokens
