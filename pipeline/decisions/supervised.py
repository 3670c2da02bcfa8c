"""The baseline that most recommenders are: a model that learns from logged clicks as if they were labels.

Two losses over N logged decisions (x, a, r), from logits f(x) [K]:

- regression:    mean w (sigmoid(f_a) - r)^2, whose minimum is sigmoid(f_a) = E[r | x, a], even if some r are above 1
- cross_entropy: sum w r (-log softmax(f)_a) / sum w r, which learns which item was clicked, and from clicks alone

Without weights both believe the log: what was shown more often (cross_entropy) or higher up (both) seems better than it
is. `inverse_propensities` and `estimators.examined_rewards` set this right (Schnabel et al. 2016, arXiv 1602.05352).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import ConfigError
from pipeline.config.offline import ClickLoss
from pipeline.decisions.estimators import folds
from pipeline.decisions.records import Log
from pipeline.models.fusion.model import FusionModel, to_inputs

Arrays = Mapping[str, NDArray[Any]]
"""Inputs of a fusion model as arrays [N, ...], such as `DecisionTable.inputs`."""

_CHUNK = 256


@dataclass(frozen=True)
class Fit:
    """How a model learns from a log."""

    loss: ClickLoss = ClickLoss.REGRESSION
    num_steps: int = 400
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


class ClickModel:
    """A fusion model that has learned from clicks: a policy, and the reward model of doubly robust estimates.

    temperature: of the softmax over logits; 0, the default, takes the best.
    """

    def __init__(self, model: FusionModel, *, loss: ClickLoss = ClickLoss.REGRESSION, temperature: float = 0.0) -> None:
        self.model = model.eval()
        self.loss = loss
        self.temperature = temperature

    def predictions(self, states: Arrays) -> NDArray[np.float32]:
        """Float32 [N, K]: of a regression, the expected reward of each action; else the logits' softmax."""
        logits = self._logits(states)
        return (logits.sigmoid() if self.loss is ClickLoss.REGRESSION else logits.softmax(dim=1)).numpy()

    def probabilities(self, states: Arrays) -> NDArray[np.float32]:
        """Float32 [N, K]; without temperature 1 for the first of the best."""
        logits = self._logits(states)
        if self.temperature > 0:
            return (logits / self.temperature).softmax(dim=1).numpy()
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float().numpy()

    @torch.no_grad()
    def _logits(self, states: Arrays) -> Tensor:
        inputs = to_inputs(states)
        num = len(next(iter(inputs.values())))
        chunks = [
            self.model({name: each[start : start + _CHUNK] for name, each in inputs.items()}).logits
            for start in range(0, num, _CHUNK)
        ]
        return torch.cat(chunks)


def inverse_propensities(log: Log, *, clip: float = 20.0) -> NDArray[np.float32]:
    """Weights float32 [N]: 1 / propensity, `clip` at most, divided by their mean."""
    weights = np.minimum(1.0 / log.propensities, clip)
    return (weights / weights.mean()).astype(np.float32)


def learn_clicks(
    model: FusionModel,
    states: Arrays,
    *,
    actions: NDArray[np.int64],
    rewards: NDArray[np.floating],
    weights: NDArray[np.floating] | None = None,
    fit: Fit | None = None,
) -> ClickModel:
    """Trains the model in place, by Adam with a learning rate that falls to 0 along a cosine.

    Raises:
        ConfigError: an action is none of the model's, or cross_entropy finds no reward.
    """
    fit = fit or Fit()
    if actions.min() < 0 or actions.max() >= model.num_classes:
        row = int(((actions < 0) | (actions >= model.num_classes)).argmax())
        raise ConfigError(f"row {row}: action={actions[row]}; the model chooses among K={model.num_classes} actions")
    if fit.loss is ClickLoss.CROSS_ENTROPY and not (rewards > 0).any():
        raise ConfigError("rewards: no decision has one; cross_entropy learns from clicks: log more, or use regression")
    inputs = to_inputs(states)
    chosen, earned = torch.from_numpy(actions), torch.from_numpy(np.asarray(rewards, np.float32))
    weight = torch.ones(len(actions)) if weights is None else torch.from_numpy(np.asarray(weights, np.float32))
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=fit.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.num_steps)
    dice = torch.Generator().manual_seed(fit.seed)
    order = torch.zeros(0, dtype=torch.int64)
    model.train()
    for _ in range(fit.num_steps):
        if len(order) < fit.batch_size:
            order = torch.cat([order, torch.randperm(len(actions), generator=dice)])
        rows, order = order[: fit.batch_size], order[fit.batch_size :]
        logits = model({name: each[rows] for name, each in inputs.items()}).logits
        loss = click_loss(fit.loss, logits=logits, actions=chosen[rows], rewards=earned[rows], weights=weight[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return ClickModel(model, loss=fit.loss)


def click_loss(kind: ClickLoss, *, logits: Tensor, actions: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """The losses above, of logits [B, K] and actions, rewards, weights [B]."""
    if kind is ClickLoss.REGRESSION:
        predicted = logits.gather(1, actions[:, None])[:, 0].sigmoid()
        return (weights * (predicted - rewards) ** 2).mean()
    earned = weights * rewards
    return (earned * F.cross_entropy(logits, actions, reduction="none")).sum() / earned.sum().clamp(min=1e-8)


def cross_fitted(
    build: Callable[[], FusionModel],
    states: Arrays,
    log: Log,
    *,
    rewards: NDArray[np.floating],
    num_folds: int = 2,
    fit: Fit | None = None,
) -> NDArray[np.float32]:
    """Predictions float32 [N, K] for doubly robust estimates: each fold's by a model that learned from the others.

    build: makes an untrained model.
    """
    of_fold = folds(log.sessions, num_folds, seed=(fit or Fit()).seed)
    predictions: NDArray[np.float32] | None = None
    for fold in range(num_folds):
        learned, held = of_fold != fold, of_fold == fold
        model = learn_clicks(
            build(),
            {name: each[learned] for name, each in states.items()},
            actions=log.actions[learned],
            rewards=rewards[learned],
            fit=fit,
        )
        found = model.predictions({name: each[held] for name, each in states.items()})
        predictions = np.zeros((len(held), found.shape[1]), np.float32) if predictions is None else predictions
        predictions[held] = found
    assert predictions is not None
    return predictions
