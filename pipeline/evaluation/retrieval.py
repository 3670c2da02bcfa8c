"""How well a joint embedding finds what belongs together, and how few labels it needs to tell classes apart.

All take embeddings of length one, so that a product is a cosine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.evaluation.intervals import Estimate, proportion

RECALL_AT = (1, 5, 10)
PROBE_STEPS = 100
PROBE_PENALTY = 1e-3
"""Of the squared weights of a linear probe, beside its mean loss."""


@dataclass(frozen=True)
class Retrieval:
    """What the ranks of the right answers come to. recall: by k, the share of queries whose rank is at most k.

    mrr: mean of 1 / rank. median_rank: 1 is best.
    """

    recall: Mapping[int, Estimate]
    mrr: Estimate
    median_rank: float
    num_rows: int


def ranks(queries: Tensor, targets: Tensor) -> Tensor:
    """The rank of each query's own target among all, int64 [N]; 1 is best, and who is as near counts as nearer.

    queries, targets: float32 [N, D], the i-th belong together. Of equal cosines half would be luck: an encoder that
    gives everything one embedding finds nothing.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    if queries.shape != targets.shape or not len(queries):
        raise ValueError(
            f"queries {list(queries.shape)}, targets {list(targets.shape)}: give as many of both, at least 1"
        )
    cosines = queries @ targets.T
    own = cosines.diagonal()[:, None]
    return (cosines >= own).sum(dim=1)


def summarised(found: Tensor) -> Retrieval:
    """Recall, mean reciprocal rank and median rank, with 95 % intervals over rows.

    found: ranks int64 [N], or [R, N] where each row was searched with R kinds of queries: these are averaged first, as
    they are of the same rows.
    """
    each = found if found.ndim == 2 else found[None]

    def share(values: Tensor) -> Estimate:
        estimate = proportion(values.double().mean(0).clamp(0, 1).tolist(), num_samples=values.numel())
        assert estimate is not None
        return estimate

    recall = {k: share(each <= k) for k in RECALL_AT}
    return Retrieval(recall, share(1 / each), statistics.median(each.flatten().tolist()), each.shape[1])


def class_embeddings(prompts: Tensor) -> Tensor:
    """Mean embeddings of classes, float32 [K, D] of length one, of several each, float32 [K, P, D].

    Of prompts this is the ensemble of Radford et al. 2021, section 3.1.4.
    """
    return functional.normalize(prompts.mean(dim=1), dim=-1)


def nearest_class(embeddings: Tensor, classes: Tensor) -> Tensor:
    """The nearest of the classes float32 [K, D] of each of float32 [N, D]: int64 [N]."""
    return (embeddings @ classes.T).argmax(dim=1)


def few_shot(
    embeddings: Tensor, labels: Tensor, *, num_classes: int, shots: int, num_draws: int, seed: int, test: Tensor
) -> Tensor:
    """What the nearest mean of `shots` labelled rows a class says of test rows, for each draw: int64 [R, N].

    Nearest class mean in the embedding, as in prototypical networks (Snell et al. 2017, equation 1, with cosines).

    Args:
        embeddings: float32 [M, D], of labelled rows.
        labels: int64 [M].
        num_classes: K.
        num_draws: R, of labelled rows, without replacement within a draw.
        seed: of the draws.
        test: float32 [N, D].

    Raises:
        ValueError: a class has fewer labelled rows.
    """
    random = np.random.default_rng([seed, shots])
    rows = [torch.nonzero(labels == label).flatten().numpy() for label in range(num_classes)]
    for label, found in enumerate(rows):
        if len(found) < shots:
            raise ValueError(f"shots={shots}: class {label} has {len(found)} labelled rows; use at most so many")
    said: list[Tensor] = []
    for _ in range(num_draws):
        drawn = torch.stack([embeddings[random.permutation(found)[:shots]] for found in rows])
        said.append(nearest_class(test, class_embeddings(drawn)))
    return torch.stack(said)


def probed(embeddings: Tensor, labels: Tensor, *, num_classes: int, test: Tensor) -> Tensor:
    """What a linear probe says of test rows, int64 [N]: logistic regression on all labelled rows, by L-BFGS.

    embeddings, labels, test: as with `few_shot`.
    """
    # Of cosines, whose spread is small: standardised, the penalty weighs the same in every direction.
    mean, spread = embeddings.mean(0), embeddings.std(0).clamp(min=1e-6)
    inputs = ((embeddings - mean) / spread).detach()
    weight = torch.zeros(embeddings.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = functional.cross_entropy(inputs @ weight + bias, labels) + PROBE_PENALTY * weight.square().sum()
        total.backward()  # pyright: ignore[reportUnknownMemberType]
        return total

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return (((test - mean) / spread) @ weight + bias).argmax(dim=1).detach()


def accuracy(said: Tensor, labels: Tensor) -> Estimate:
    """Share that is right, of int64 [N], or the mean over draws of int64 [R, N], with its interval over rows."""
    right = (said == labels).double()
    estimate = proportion((right.mean(0) if right.ndim == 2 else right).tolist(), num_samples=right.numel())
    if estimate is None:
        raise ValueError("no row to classify: name classes that the answers of the split have")
    return estimate
