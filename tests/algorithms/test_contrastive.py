"""Contrastive losses: golden values by hand, shares that sum to the whole, and rows that lack one of the pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.algorithms.contrastive import bounded_scale, info_nce, log_scale_of, sigmoid_loss, two_views_loss

A = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
B = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
BOTH = torch.tensor([True, True])
TWO = torch.tensor(2.0)


def _info_nce(a: Tensor, b: Tensor, present: Tensor, scale: Tensor, rows: slice) -> Tensor:
    return info_nce(
        rows=a[rows],
        row_partners=b[rows],
        columns=a,
        column_partners=b,
        present=present,
        scale=scale,
        first_row=rows.start,
    )


def _sigmoid(a: Tensor, b: Tensor, present: Tensor, scale: Tensor, rows: slice) -> Tensor:
    bias = torch.tensor(-1.0)
    return sigmoid_loss(rows=a[rows], column_partners=b, present=present, scale=scale, bias=bias, first_row=rows.start)


def _two_views(a: Tensor, b: Tensor, present: Tensor, scale: Tensor, rows: slice) -> Tensor:
    return two_views_loss(
        views=a[rows],
        others=b[rows],
        all_views=a,
        all_others=b,
        present=present,
        scale=scale,
        first_row=rows.start,
    )


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, slice], Tensor]
LOSSES: tuple[Loss, ...] = (_info_nce, _sigmoid, _two_views)


def test_info_nce_by_hand() -> None:
    # Similarities <a_i, b_j>: 1, .6 / 0, .8; times 2: 2, 1.2 / 0, 1.6.
    # a finds b: log(e^2 + e^1.2) - 2 = .371101, log(e^0 + e^1.6) - 1.6 = .183901.
    # b finds a (columns): log(e^2 + e^0) - 2 = .126928, log(e^1.2 + e^1.6) - 1.6 = .513015.
    # Their sum over 2 N = 4 is .298736.
    assert _info_nce(A, B, BOTH, TWO, slice(0, 2)).item() == pytest.approx(0.298736, abs=1e-6)


def test_sigmoid_loss_by_hand() -> None:
    # 2 <a_i, b_j> - 1: 1, .2 / -1, .6. Of partners log(1 + e^-x): .313262, .437488;
    # of others log(1 + e^x): .798139, .313262. Their sum over N = 2 is .931075.
    assert _sigmoid(A, B, BOTH, TWO, slice(0, 2)).item() == pytest.approx(0.931075, abs=1e-6)


def test_two_views_loss_by_hand() -> None:
    # Each view among the three others, times 2, its partner first:
    # a_1: b_1 2, a_2 0, b_2 1.2: log(e^2 + 1 + e^1.2) - 2 = .460373.
    # a_2: b_2 1.6, a_1 0, b_1 0: log(e^1.6 + 2) - 1.6 = .339178.
    # b_1: a_1 2, b_2 1.2, a_2 0: .460373. b_2: a_2 1.6, b_1 1.2, a_1 1.2: log(e^1.6 + 2 e^1.2) - 1.6 = .850424.
    # Their sum over 4 is .527587.
    assert _two_views(A, B, BOTH, TWO, slice(0, 2)).item() == pytest.approx(0.527587, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_of_ranks_sum_to_the_loss_of_the_whole_batch(loss: Loss) -> None:
    torch.manual_seed(0)
    a, b = (functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    present = torch.tensor([True, True, False, True, True, True])
    whole = loss(a, b, present, TWO, slice(0, 6))
    shares = [loss(a, b, present, TWO, slice(start, start + 2)) for start in (0, 2, 4)]
    assert whole.item() == pytest.approx(sum(share.item() for share in shares), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_that_lacks_one_of_the_pair_counts_for_nothing(loss: Loss) -> None:
    torch.manual_seed(0)
    a, b = (functional.normalize(torch.randn(3, 4), dim=1) for _ in range(2))
    without = loss(a, b, torch.tensor([True] * 3), TWO, slice(0, 3))
    place = torch.full((1, 4), math.nan)
    wider = [torch.cat([each[:1], place, each[1:]]).requires_grad_() for each in (a, b)]
    found = loss(wider[0], wider[1], torch.tensor([True, False, True, True]), TWO, slice(0, 4))
    assert found.item() == pytest.approx(without.item(), abs=1e-6)
    for gradient in torch.autograd.grad(found, wider):
        assert gradient.isfinite().all() and not gradient[1].any() and gradient[0].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_a_pair_has_no_loss_and_a_gradient_of_zero(loss: Loss) -> None:
    a = A.clone().requires_grad_()
    found = loss(a, B, torch.tensor([False, False]), TWO, slice(0, 2))
    (gradient,) = torch.autograd.grad(found, a)
    assert found.item() == 0 and not gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_down_the_gradient_brings_pairs_together_and_others_apart(loss: Loss) -> None:
    a, b = A.clone().requires_grad_(), torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    (gradient,) = torch.autograd.grad(loss(a, b, BOTH, TWO, slice(0, 2)), a)
    change = -gradient @ b.T
    assert change[0, 0] > change[0, 1] and change[1, 1] > change[1, 0]


def test_rows_outside_of_the_batch_are_an_error() -> None:
    with pytest.raises(ValueError, match="first_row=1: 2 rows from there on do not lie within 2 columns"):
        sigmoid_loss(rows=A, column_partners=B, present=BOTH, scale=TWO, bias=TWO, first_row=1)


def test_the_scale_is_bounded_and_keeps_a_gradient_at_the_bound() -> None:
    # 1 / (1/100 + e^-2) = 6.880642; the temperature of CLIP at its start is .07.
    assert bounded_scale(torch.tensor(2.0)).item() == pytest.approx(6.880642, rel=1e-5)
    assert bounded_scale(torch.tensor(log_scale_of(1 / 0.07))).item() == pytest.approx(1 / 0.07, rel=1e-5)
    high = torch.tensor(9.0, requires_grad=True)
    scale = bounded_scale(high)
    scale.backward()
    assert 98 < scale.item() < 100 and high.grad is not None and high.grad.item() > 0.1
    assert 99 < bounded_scale(torch.tensor(log_scale_of(400.0))).item() < 100
    with pytest.raises(ValueError, match="scale=0"):
        log_scale_of(0)
