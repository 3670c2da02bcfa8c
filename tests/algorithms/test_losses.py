"""PPO's losses: golden values by hand, where the gradient ends, and what padding and splitting must not change."""

import math
from collections.abc import Callable

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from pipeline.algorithms.losses import clipped_policy_loss, clipped_value_loss, entropy_bonus

NAN = math.nan


def test_policy_loss_by_hand() -> None:
    # Ratios 2, 0.5, 1.1 and advantages 1, 1, -2, clip 0.2, four tokens in the step (one lies elsewhere):
    #   token 1: min(2 * 1, 1.2 * 1) = 1.2  (clipped)
    #   token 2: min(0.5 * 1, 0.8 * 1) = 0.5
    #   token 3: min(1.1 * -2, 1.1 * -2) = -2.2
    # loss = -(1.2 + 0.5 - 2.2) / 4 = 0.125; clip fraction 1 / 4; ratio mean 3.6 / 4.
    # KL(behaviour || policy) by k3: ((2 - 1 - ln 2) + (0.5 - 1 + ln 2) + (0.1 - ln 1.1)) / 4 = (0.6 - ln 1.1) / 4.
    result = clipped_policy_loss(
        policy_logprobs=torch.tensor([[2.0, 0.5, 1.1, NAN]]).log(),
        behaviour_logprobs=torch.tensor([[0.0, 0.0, 0.0, NAN]]),
        advantages=torch.tensor([[1.0, 1.0, -2.0, NAN]]),
        mask=torch.tensor([[True, True, True, False]]),
        clip=0.2,
        num_tokens=4.0,
    )
    assert result.loss.item() == pytest.approx(0.125)
    assert result.clip_fraction.item() == 0.25
    assert result.ratio_mean.item() == pytest.approx(0.9)
    assert result.approx_kl.item() == pytest.approx((0.6 - math.log(1.1)) / 4, abs=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "has_gradient"),
    [
        (1.5, 1.0, False),  # already raised enough
        (0.5, -1.0, False),  # already lowered enough
        (1.5, -1.0, True),  # raised, though it should fall
        (0.5, 1.0, True),  # lowered, though it should rise
        (1.1, 1.0, True),  # within the clip range
        (0.9, -1.0, True),
    ],
)
def test_the_clipped_region_has_no_gradient(ratio: float, advantage: float, has_gradient: bool) -> None:
    policy_logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = clipped_policy_loss(
        policy_logprobs=policy_logprobs,
        behaviour_logprobs=torch.zeros(1, 1),
        advantages=torch.tensor([[advantage]]),
        mask=torch.ones(1, 1, dtype=torch.bool),
        clip=0.2,
        num_tokens=1.0,
    )
    (gradient,) = torch.autograd.grad(result.loss, policy_logprobs)
    assert gradient.item() == pytest.approx(-advantage * ratio if has_gradient else 0.0)  # d/dlogp of -A * ratio
    assert result.clip_fraction.item() == float(not has_gradient)


def test_on_its_own_samples_the_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    result = clipped_policy_loss(
        policy_logprobs=logprobs,
        behaviour_logprobs=logprobs.detach(),
        advantages=torch.tensor([[3.0, -4.0]]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        clip=0.2,
        num_tokens=2.0,
    )
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert gradient.tolist() == [[-1.5, 2.0]]  # -A / num_tokens
    assert result.approx_kl.item() == 0.0
    assert result.ratio_mean.item() == 1.0


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


def test_entropy_by_hand() -> None:
    bonus = entropy_bonus(
        entropy=torch.tensor([[1.0, 0.5, NAN]]), mask=torch.tensor([[True, True, False]]), num_tokens=6.0
    )
    assert bonus.item() == 0.25  # (1 + 0.5) / 6


def _policy(x: Tensor, other: Tensor, target: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    result = clipped_policy_loss(
        policy_logprobs=x, behaviour_logprobs=other, advantages=target, mask=mask, clip=0.2, num_tokens=num_tokens
    )
    return torch.stack(list(result))


def _value(x: Tensor, other: Tensor, target: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    return clipped_value_loss(
        values_now=x, values_behaviour=other, returns=target, mask=mask, clip=0.2, num_tokens=num_tokens
    )[None]


def _entropy(x: Tensor, other: Tensor, target: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    return entropy_bonus(entropy=x, mask=mask, num_tokens=num_tokens)[None]


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
each_loss = pytest.mark.parametrize("loss", [_policy, _value, _entropy])


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, other, target = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, other, target, torch.arange(5)[None] < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]


def _outcome(loss: Loss, x: Tensor, other: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Loss with statistics, and the gradient in x, of a batch whose step has 15 tokens."""
    x = x.clone().requires_grad_()
    result = loss(x, other, target, mask, 15.0)
    return result.detach(), torch.autograd.grad(result[0], x)[0]


@each_loss
def test_micro_batches_add_up_to_one_batch(loss: Loss) -> None:
    whole, whole_gradient = _outcome(loss, *_batch())
    parts = [_outcome(loss, *part) for part in zip(*(x.split([2, 1, 3]) for x in _batch()), strict=True)]
    torch.testing.assert_close(torch.stack([result for result, _ in parts]).sum(0), whole)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in parts]), whole_gradient)


@each_loss
def test_padding_changes_nothing_whatever_it_holds(loss: Loss) -> None:
    x, other, target, mask = _batch()
    plain, plain_gradient = _outcome(loss, x, other, target, mask)
    dirty = (torch.cat([y.masked_fill(~mask, NAN), torch.full_like(y, NAN)], dim=1) for y in (x, other, target))
    x_dirty, other_dirty, target_dirty = dirty
    wide_mask = torch.cat([mask, torch.zeros_like(mask)], dim=1)
    padded, padded_gradient = _outcome(loss, x_dirty, other_dirty, target_dirty, wide_mask)
    torch.testing.assert_close(padded, plain)
    torch.testing.assert_close(padded_gradient, torch.cat([plain_gradient * mask, torch.zeros_like(x)], dim=1))


@each_loss
def test_the_order_of_rows_changes_nothing(loss: Loss) -> None:
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    plain, plain_gradient = _outcome(loss, *_batch())
    permuted, permuted_gradient = _outcome(loss, *(y[order] for y in _batch()))
    torch.testing.assert_close(permuted, plain)
    torch.testing.assert_close(permuted_gradient, plain_gradient[order])


@each_loss
def test_a_worker_without_real_tokens_adds_nothing(loss: Loss) -> None:
    x, other, target, mask = _batch()
    result, gradient = _outcome(loss, x, other, target, torch.zeros_like(mask))
    assert not result.any()
    assert not gradient.any()


def test_annotations_refuse_shapes_that_would_broadcast_in_silence() -> None:
    with pytest.raises(TypeCheckError):
        jaxtyped(typechecker=beartype)(entropy_bonus)(
            entropy=torch.zeros(2, 3), mask=torch.ones(1, 3, dtype=torch.bool), num_tokens=3.0
        )
