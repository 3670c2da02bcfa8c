"""Contrastive losses: pairs that belong together are pulled together, all others of the batch are pushed apart.

Rows are those of one rank, columns those of the whole batch over all ranks: a rank's loss is its share of the whole
batch's, and the shares sum to it. With one rank both are the same. Embeddings have length one.

Rows that lack one of the pair (`present` is False) are no rows, and no columns: what they hold, even NaN, reaches no
result and no gradient. A batch without any pair has loss 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

MAX_SCALE = 100.0
"""What similarities are multiplied by at most, as in CLIP: the temperature stays above 0.01."""


def bounded_scale(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What similarities are multiplied by: below `MAX_SCALE` whatever is learned, and about exp(log_scale) far below.

    scale = 1 / (1/M + exp(-log_scale)), so the temperature is exp(-log_scale) with a floor of 1/M. CLIP clips its
    parameter after each step instead (Radford et al. 2021, section 2.5), which a sharded optimizer undoes; this bound
    is smooth, so that a scale near it has a gradient that leads away, too.
    """
    return MAX_SCALE * torch.sigmoid(log_scale - math.log(MAX_SCALE))


def log_scale_of(scale: float) -> float:
    """The inverse of `bounded_scale`; a scale at the bound or above gets one a ten-thousandth below it.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale}: similarities are multiplied by a positive number; use 14.3 (temperature .07)")
    return -math.log(1 / min(scale, MAX_SCALE * (1 - 1e-4)) - 1 / MAX_SCALE)


def info_nce(
    *,
    rows: Float[Tensor, "n D"],
    row_partners: Float[Tensor, "n D"],
    columns: Float[Tensor, "N D"],
    column_partners: Float[Tensor, "N D"],
    present: Bool[Tensor, " N"],
    scale: Float[Tensor, ""],
    first_row: int = 0,
) -> Float[Tensor, ""]:
    """CLIP's symmetric loss: each of a pair must find its partner among all of the batch, both ways.

    1/2N sum_i [-log softmax_j(s <a_i, b_j>)_i - log softmax_j(s <b_i, a_j>)_i] over this rank's i, with j over all N
    (van den Oord et al. 2018, equation 4; Radford et al. 2021, figure 3).

    Args:
        rows: [n, D], this rank's embeddings of one modality, a.
        row_partners: [n, D], those of the other modality, b.
        columns: [N, D], a of all ranks.
        column_partners: [N, D], b of all ranks.
        present: [N], which rows of the whole batch have both.
        scale: see `bounded_scale`.
        first_row: where this rank's rows begin among the columns.

    Raises:
        ValueError: the rows do not lie within the columns.
    """
    own, targets = _targets(rows, present, first_row)
    ways = ((rows, column_partners), (row_partners, columns))
    losses = [
        functional.cross_entropy(scale * mine[own] @ theirs[present].T, targets, reduction="sum")
        for mine, theirs in ways
    ]
    return (losses[0] + losses[1]) / (2 * present.sum().clamp(min=1))


def sigmoid_loss(
    *,
    rows: Float[Tensor, "n D"],
    column_partners: Float[Tensor, "N D"],
    present: Bool[Tensor, " N"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    first_row: int = 0,
) -> Float[Tensor, ""]:
    """SigLIP's loss: each of all N x N pairs is a question of its own, whether it belongs together.

    -1/N sum_ij log sigmoid(z_ij (s <a_i, b_j> + c)) over this rank's i and all j, where z is 1 for i = j, else -1
    (Zhai et al. 2023, equation 1).

    Args:
        rows, column_partners, present, scale, first_row: as with `info_nce`.
        bias: c. It begins well below zero, as most pairs do not belong together.

    Raises:
        ValueError: the rows do not lie within the columns.
    """
    own, targets = _targets(rows, present, first_row)
    num = int(present.sum())
    signs = 2 * functional.one_hot(targets, max(num, 1))[:, :num].to(rows) - 1
    logits = scale * rows[own] @ column_partners[present].T + bias
    return -functional.logsigmoid(signs * logits).sum() / max(num, 1)


def two_views_loss(
    *,
    views: Float[Tensor, "n D"],
    others: Float[Tensor, "n D"],
    all_views: Float[Tensor, "N D"],
    all_others: Float[Tensor, "N D"],
    present: Bool[Tensor, " N"],
    scale: Float[Tensor, ""],
    first_row: int = 0,
) -> Float[Tensor, ""]:
    """SimCLR's loss (NT-Xent): of each row two views, which must find each other among all 2N - 1 other views.

    1/2N sum over this rank's views u, with partner u', of -log (exp(s <u, u'>) / sum_{w != u} exp(s <u, w>))
    (Chen et al. 2020, equation 1).

    Args:
        views, others: [n, D], the two views of this rank's rows. all_views, all_others: [N, D], those of all ranks.
        present, scale, first_row: as with `info_nce`.

    Raises:
        ValueError: the rows do not lie within the columns.
    """
    own, targets = _targets(views, present, first_row)
    num = int(present.sum())
    itself = functional.one_hot(targets, max(num, 1))[:, :num].bool()
    total = views.new_zeros(())
    for mine, same, other in ((views, all_views, all_others), (others, all_others, all_views)):
        alike = (scale * mine[own] @ same[present].T).masked_fill(itself, -math.inf)
        logits = torch.cat([scale * mine[own] @ other[present].T, alike], dim=1)
        total = total + functional.cross_entropy(logits, targets, reduction="sum")
    return total / max(2 * num, 1)


def _targets(
    rows: Float[Tensor, "n D"], present: Bool[Tensor, " N"], first_row: int
) -> tuple[Bool[Tensor, " n"], Int[Tensor, " m"]]:
    """Which of this rank's rows are there, and the place of each one's partner among the columns that are there."""
    if first_row < 0 or first_row + len(rows) > len(present):
        raise ValueError(
            f"first_row={first_row}: {len(rows)} rows from there on do not lie within {len(present)} columns"
        )
    own = present[first_row : first_row + len(rows)]
    places = present.cumsum(0) - 1
    return own, places[first_row : first_row + len(rows)][own]
