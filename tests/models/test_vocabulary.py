"""The vocabulary head in chunks: the same numbers and gradients as the plain formula, and less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.vocabulary import FORBIDDEN_LOGIT, VocabularyHead

FORBIDDEN = [3, 7]


def _plain(hidden: Tensor, linear: nn.Linear, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = linear(hidden).float() / temperature
    logprobs = logits.index_fill(-1, torch.tensor(FORBIDDEN), FORBIDDEN_LOGIT).log_softmax(-1)
    return logprobs.gather(-1, token_ids[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def _case(*, bias: bool, dtype: torch.dtype) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(12, 20, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(11, 12, generator=generator).to(dtype).requires_grad_()
    allowed = torch.tensor([token for token in range(20) if token not in FORBIDDEN])
    return hidden, linear, allowed[torch.randint(len(allowed), (11,), generator=generator)]


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("bias", "dtype"), [(True, torch.float32), (False, torch.float64), (False, torch.bfloat16)])
def test_chunks_give_the_logprobs_entropies_and_gradients_of_the_plain_formula(
    rows: int, temperature: float, bias: bool, dtype: torch.dtype
) -> None:
    hidden, linear, token_ids = _case(bias=bias, dtype=dtype)
    head = VocabularyHead(linear, FORBIDDEN)
    head.chunk_bytes = rows * 20 * 4
    weights = torch.randn(2, 11, generator=torch.Generator().manual_seed(1))

    def run(forward: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        outputs = torch.stack(forward())
        return [outputs, *torch.autograd.grad((outputs * weights).sum(), [hidden, *linear.parameters()])]

    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    found = run(lambda: head(hidden, token_ids, temperature=temperature))
    expected = run(lambda: _plain(hidden, linear, token_ids, temperature))
    for ours, plain in zip(found, expected, strict=True):
        assert (ours.double() - plain.double()).abs().max() <= tolerance * plain.double().abs().max().clamp(min=1)


def test_logprobs_of_a_bfloat16_model_come_from_float32_logits() -> None:
    hidden, linear, token_ids = _case(bias=False, dtype=torch.bfloat16)
    head = VocabularyHead(linear, FORBIDDEN)
    with torch.no_grad():
        linear.weight.mul_(4.0)
        exact = hidden.double() @ linear.weight.double().mT
        # Large enough for bfloat16 to lose 0.06 nats.
        assert exact.abs().max() > 16 and (linear(hidden) - exact).abs().max() > 0.03
        allowed = [token for token in range(20) if token not in FORBIDDEN]
        logits, (logprobs, _) = head(hidden), head(hidden, token_ids)
    torch.testing.assert_close(logits[:, allowed].double(), exact[:, allowed], atol=1e-5, rtol=0)
    expected = exact[:, allowed].log_softmax(-1)
    places = torch.tensor([allowed.index(token) for token in token_ids.tolist()])
    torch.testing.assert_close(logprobs.double(), expected.gather(-1, places[:, None])[:, 0], atol=1e-5, rtol=0)


def test_a_forbidden_token_gets_no_gradient_and_no_probability() -> None:
    hidden, linear, token_ids = _case(bias=False, dtype=torch.float32)
    head = VocabularyHead(linear, FORBIDDEN)
    logprobs, entropies = head(hidden, token_ids)
    (logprobs.sum() + entropies.sum()).backward()
    assert linear.weight.grad is not None
    assert not linear.weight.grad[FORBIDDEN].any()
    assert not head(hidden).softmax(-1)[:, FORBIDDEN].any()


def test_logits_of_all_tokens_never_exist_whole() -> None:
    num_tokens, size, rows = 2048, 4096, 64
    hidden = torch.randn(num_tokens, 8, requires_grad=True)
    head = VocabularyHead(nn.Linear(8, size, bias=False), [])
    head.chunk_bytes = rows * size * 4
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        logprobs, _ = head(hidden, torch.zeros(num_tokens, dtype=torch.int64))
        logprobs.sum().backward()
    assert largest == rows * size


def test_what_is_forbidden_lies_where_the_weights_do() -> None:
    assert VocabularyHead(nn.Linear(12, 20, device="meta"), FORBIDDEN).forbidden.device.type == "meta"
