"""The value loss: golden values by hand, where the gradient ends, and what padding and splitting must not change."""

import math

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from pipeline.algorithms.losses import clipped_value_loss

NAN = math.nan


def test_value_loss_by_hand() -> None:
    # Clip 0.5, behaviour values 0, two tokens:
    #   V = 1, R = 2:   max((1 - 2)^2, (0.5 - 2)^2) = 2.25
    #   V = -0.25, R = 1: within the clip, (-1.25)^2 = 1.5625
    # 0.5 * (2.25 + 1.5625) / 2 = 0.953125.
    loss = clipped_value_loss(
        values_now=torch.tensor([[1.0, -0.25, NAN]]),
        values_behaviour=torch.tensor([[0.0, 0.0, NAN]]),
        returns=torch.tensor([[2.0, 1.0, NAN]]),
        mask=torch.tensor([[True, True, False]]),
        clip=0.5,
        num_tokens=2.0,
    )
    assert loss.item() == 0.953125


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 0.0),  # moved by more than the clip, towards the return: the clipped error is the larger one
        (0.25, 0.25 - 2.0),  # within the clip: V - R
        (-1.0, -1.0 - 2.0),  # moved away from the return: V - R
    ],
)
def test_a_value_that_moved_far_towards_its_return_has_no_gradient(value: float, expected: float) -> None:
    values_now = torch.tensor([[value]], requires_grad=True)
    loss = clipped_value_loss(
        values_now=values_now,
        values_behaviour=torch.zeros(1, 1),
        returns=torch.tensor([[2.0]]),
        mask=torch.ones(1, 1, dtype=torch.bool),
        clip=0.5,
        num_tokens=1.0,
    )
    (gradient,) = torch.autograd.grad(loss, values_now)
    assert gradient.item() == pytest.approx(expected)


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    now, behaviour, returns = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return now, behaviour, returns, torch.arange(5)[None] < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]


def _outcome(now: Tensor, behaviour: Tensor, returns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a batch whose step has 15 tokens."""
    now = now.clone().requires_grad_()
    loss = clipped_value_loss(
        values_now=now, values_behaviour=behaviour, returns=returns, mask=mask, clip=0.2, num_tokens=15.0
    )
    return loss.detach(), torch.autograd.grad(loss, now)[0]


def test_micro_batches_add_up_to_one_batch() -> None:
    whole, whole_gradient = _outcome(*_batch())
    parts = [_outcome(*part) for part in zip(*(x.split([2, 1, 3]) for x in _batch()), strict=True)]
    torch.testing.assert_close(torch.stack([result for result, _ in parts]).sum(), whole)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole_gradient)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    now, behaviour, returns, mask = _batch()
    plain, plain_gradient = _outcome(now, behaviour, returns, mask)
    now, behaviour, returns = (
        torch.cat([values.masked_fill(~mask, NAN), torch.full_like(values, NAN)], dim=1)
        for values in (now, behaviour, returns)
    )
    padded, padded_gradient = _outcome(now, behaviour, returns, torch.cat([mask, torch.zeros_like(mask)], dim=1))
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(padded_gradient, torch.cat([plain_gradient * mask, torch.zeros_like(plain_gradient)], 1))


def test_the_order_of_rows_changes_nothing() -> None:
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    plain, plain_gradient = _outcome(*_batch())
    permuted, permuted_gradient = _outcome(*(y[order] for y in _batch()))
    torch.testing.assert_close(permuted, plain)
    torch.testing.assert_close(permuted_gradient, plain_gradient[order])


def test_a_worker_without_real_tokens_adds_nothing() -> None:
    now, behaviour, returns, mask = _batch()
    loss, gradient = _outcome(now, behaviour, returns, torch.zeros_like(mask))
    assert loss == 0.0
    assert not gradient.any()


def test_annotations_refuse_shapes_that_would_broadcast_in_silence() -> None:
    with pytest.raises(TypeCheckError):
        jaxtyped(typechecker=beartype)(clipped_value_loss)(
            values_now=torch.zeros(2, 3),
            values_behaviour=torch.zeros(2, 3),
            returns=torch.zeros(2, 3),
            mask=torch.ones(1, 3, dtype=torch.bool),
            clip=0.2,
            num_tokens=3.0,
        )
