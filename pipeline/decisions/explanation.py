"""What a decision rests on: how much each modality contributes to the probability of the action that is chosen.

The game of one decision: players are the modalities M that the row has, and a coalition S is worth
v(S) = pi(a | x with the modalities of S alone), a the action chosen from all. No modality at all is refused by the
model, and stands for knowing nothing: v(no one) = 1 / K.

- ablation:  v(M) - v(M without i), what is lost without it. Two modalities that say the same lose nothing each.
- Shapley:   sum over S without i of |S|! (|M| - |S| - 1)! / |M|! (v(S with i) - v(S)) (Shapley 1953; Lundberg and Lee
  2017, arXiv 1705.07874), exact over all 2^M coalitions. Two that say the same share the credit, and the values of a
  decision add up to v(M) - 1 / K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.decisions.supervised import Arrays
from pipeline.decisions.table import PRESENT
from pipeline.models.fusion.model import FusionModel, to_inputs

MOST_MODALITIES = 5
"""Exact values ask a model 2^M - 1 times."""

Probabilities = Callable[[Arrays], NDArray[np.floating]]
"""The inputs of N rows -> probabilities [N, K]: `probabilities` of any policy over a table's inputs."""


@dataclass(frozen=True)
class Contributions:
    """What N decisions rest on.

    actions: int64 [N], the chosen ones. probabilities: float64 [N], of them. present: bool [N, M].
    ablation, shapley: float64 [N, M], in units of probability; 0 where a row lacks the modality.
    """

    modalities: tuple[str, ...]
    actions: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    present: NDArray[np.bool_]
    ablation: NDArray[np.float64]
    shapley: NDArray[np.float64]

    def means(self) -> dict[str, dict[str, float]]:
        """By modality `ablation` and `shapley`: means over the rows that have it; `share` of the rows that do."""
        found: dict[str, dict[str, float]] = {}
        for place, name in enumerate(self.modalities):
            there = self.present[:, place]
            found[name] = {
                "ablation": float(self.ablation[there, place].mean()) if there.any() else 0.0,
                "shapley": float(self.shapley[there, place].mean()) if there.any() else 0.0,
                "share": float(there.mean()),
            }
        return found


def model_probabilities(model: FusionModel) -> Probabilities:
    """A fusion model's softmax, in evaluation mode."""

    def probabilities(states: Arrays) -> NDArray[np.float32]:
        with torch.no_grad():
            return model.eval()(to_inputs(states)).logits.softmax(dim=1).numpy()

    return probabilities


def explain(probabilities: Probabilities, states: Arrays, modalities: Sequence[str]) -> Contributions:
    """The contributions of the modalities to each decision.

    states: a model's inputs, raw or features, arrays [N, ...] with `present` bool [N, M], in the order of `modalities`.
        What a modality holds stays; it is `present` that says who is in a coalition.

    Raises:
        ValueError: there are more than `MOST_MODALITIES`, or `present` is of others.
    """
    present = np.asarray(states[PRESENT], np.bool_)
    num, num_modalities = present.shape
    if num_modalities != len(modalities) or num_modalities > MOST_MODALITIES:
        raise ValueError(
            f"{PRESENT} has {num_modalities} modalities for {list(modalities)}: name each of them, and at most "
            f"{MOST_MODALITIES}, as all 2^M coalitions are asked"
        )
    whole = np.asarray(probabilities(states), np.float64)
    actions = whole.argmax(axis=1)
    chosen = whole[np.arange(num), actions]
    values = np.full((num, 2**num_modalities), 1 / whole.shape[1])
    for coalition in range(1, 2**num_modalities):
        members = present & _members(coalition, num_modalities)
        same = (members == present).all(axis=1)
        values[same, coalition] = chosen[same]
        asked = members.any(axis=1) & ~same
        if asked.any():
            part: dict[str, NDArray[Any]] = {name: each[asked] for name, each in states.items()}
            part[PRESENT] = members[asked].astype(states[PRESENT].dtype)
            found = np.asarray(probabilities(part), np.float64)
            values[asked, coalition] = found[np.arange(len(found)), actions[asked]]
    return Contributions(
        modalities=tuple(modalities),
        actions=actions,
        probabilities=chosen,
        present=present,
        ablation=ablation_values(values),
        shapley=shapley_values(values),
    )


def shapley_values(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Exact Shapley values float64 [N, M] of N games of M players.

    values: [N, 2^M], the worth of each coalition; player i is in coalition c where its bit, 2^i, is set. A player that
    changes nothing in any coalition, such as an absent one, has 0.
    """
    num_players = values.shape[1].bit_length() - 1
    found = np.zeros((len(values), num_players))
    for coalition in range(values.shape[1]):
        size = coalition.bit_count()
        for player in range(num_players):
            if not coalition >> player & 1:
                weight = factorial(size) * factorial(num_players - size - 1) / factorial(num_players)
                found[:, player] += weight * (values[:, coalition | 1 << player] - values[:, coalition])
    return found


def ablation_values(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """What everybody together loses without each player, float64 [N, M]; `values` as of `shapley_values`."""
    everybody = values.shape[1] - 1
    num_players = values.shape[1].bit_length() - 1
    losses = [values[:, everybody] - values[:, everybody ^ 1 << player] for player in range(num_players)]
    return np.stack(losses, axis=1).astype(np.float64)


def _members(coalition: int, num: int) -> NDArray[np.bool_]:
    return np.array([coalition >> place & 1 for place in range(num)], np.bool_)
