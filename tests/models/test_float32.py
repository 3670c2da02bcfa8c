"""What must not be rounded to bfloat16: scores before the softmax, and scalar heads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.generation.grouped import SharedPrompts, grouped_attention
from pipeline.models.batch import PromptBatch
from pipeline.models.float32 import Float32Linear, keep_masters, masters
from pipeline.models.forward import ScalarHead

HEADS, KEY_HEADS, WIDTH, PROMPT, GROUP, GROWN = 4, 2, 64, 200, 3, 8


def _shared_prompts(keys: Tensor, values: Tensor) -> SharedPrompts:
    """A prompt cache of one layer, without a model."""
    rows, _, length, _ = keys.shape
    decoder: Any = SimpleNamespace(
        model=None, architecture=SimpleNamespace(language_model=lambda _: SimpleNamespace(config=None))
    )
    prompts = PromptBatch(
        input_ids=torch.zeros(rows, length, dtype=torch.int64),
        mask=torch.ones(rows, length, dtype=torch.bool),
        position_ids=torch.zeros(1, rows, length, dtype=torch.int64),
        media=(),
    )
    cache = SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=values)])
    return SharedPrompts(decoder, prompts, cache, GROUP)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("largest_score", [5, 18, 92])
def test_grouped_attention_in_bfloat16_is_as_exact_as_sdpa(largest_score: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, WIDTH, generator=generator).bfloat16()

    query, prompt_keys, prompt_values = drawn(GROUP, HEADS, 1), drawn(1, KEY_HEADS, PROMPT), drawn(1, KEY_HEADS, PROMPT)
    own_keys, own_values = drawn(GROUP, KEY_HEADS, GROWN), drawn(GROUP, KEY_HEADS, GROWN)
    keys, values = (
        torch.cat([prompt.expand(GROUP, -1, -1, -1), own], dim=2).repeat_interleave(HEADS // KEY_HEADS, dim=1)
        for prompt, own in ((prompt_keys, own_keys), (prompt_values, own_values))
    )
    scaling = 0.1
    scores = query.double() @ keys.double().mT * scaling
    query = (query.double() * largest_score / scores.abs().max()).bfloat16()
    attend = nn.functional.scaled_dot_product_attention
    exact = attend(query.double(), keys.double(), values.double(), scale=scaling)
    found, _ = grouped_attention(
        nn.ParameterDict({"layer_idx": 0}),
        query,
        own_keys,
        own_values,
        None,
        shared_prompts=_shared_prompts(prompt_keys, prompt_values),
        scaling=scaling,
    )
    assert found.dtype is torch.bfloat16
    # Weights and outputs are rounded once, as in sdpa; scores that are rounded too give 0.5 to 4.5 %.
    assert _error(found.transpose(1, 2), exact) < 1.5 * _error(attend(query, keys, values, scale=scaling), exact) < 4e-3


def _cast(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16()


def test_a_head_computes_with_its_masters_and_learns_through_its_cast_parameters() -> None:
    head = ScalarHead(3)
    with torch.no_grad():
        # 1 + 2^-12 is between two numbers of bfloat16.
        head.linear.weight.copy_(torch.tensor([[1 + 2**-12, 2.0, -1.0]]))
        head.linear.bias.fill_(0.25)
    keep_masters(head)
    _cast(head)
    hidden = torch.tensor([[4.0, 1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    score = head(hidden)
    assert score.dtype is torch.float32 and score.item() == 4 * (1 + 2**-12) + 0.25
    (3 * score).sum().backward()
    assert head.linear.weight.grad is not None and head.linear.bias.grad is not None and hidden.grad is not None
    assert head.linear.weight.grad.tolist() == [[12.0, 3.0, 6.0]] and head.linear.bias.grad.tolist() == [3.0]
    assert hidden.grad.tolist() == [[3.0, 6.0, -3.0]]


def test_masters_have_their_parameters_names_and_are_saved_as_these() -> None:
    module = nn.ModuleDict({"plain": nn.Linear(3, 1), "head": ScalarHead(3)})
    assert masters(module) == {}
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    keep_masters(module)
    _cast(module)
    kept = masters(module)
    assert kept.keys() == {"head.linear.weight", "head.linear.bias"}
    assert all(torch.equal(kept[name], weights[name]) for name in kept)
    assert module.state_dict().keys() == weights.keys()


def test_without_masters_a_head_is_a_linear_layer_in_float32() -> None:
    layer, hidden = Float32Linear(5, 2), torch.randn(4, 5)
    assert torch.equal(layer(hidden), nn.functional.linear(hidden, layer.weight, layer.bias))
    assert layer(hidden.bfloat16()).dtype is torch.float32
