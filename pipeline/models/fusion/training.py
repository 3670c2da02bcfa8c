"""Supervised training of a fusion model in one process: labelled rows in memory, AdamW, the best epoch kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from pipeline.models.fusion.model import FusionModel, check_labels
from pipeline.models.fusion.outputs import FusionOutput
from pipeline.models.fusion.samples import PRESENT, Inputs

WARM_UP = 0.1
MAX_GRADIENT_NORM = 1.0
_EVALUATED_AT_A_TIME = 256


@dataclass(frozen=True)
class Labelled:
    """Rows as a model takes them, raw or as features, with the class of each: int64 [N]."""

    inputs: Inputs
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Labelled:
        """The rows of these numbers (or where a bool mask is True)."""
        return Labelled({name: each[rows] for name, each in self.inputs.items()}, self.labels[rows])


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: mean loss in training (nats), and loss and accuracy on validation."""

    loss: float
    validation_loss: float
    validation_accuracy: float


def fit(
    model: FusionModel,
    train: Labelled,
    validation: Labelled,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> list[Epoch]:
    """Trains the model by cross-entropy, and leaves it with the weights of the epoch that was best on validation.

    Best is the highest accuracy, and of equals the lowest loss. The step size rises linearly over a tenth of the steps
    and falls to 0 as a cosine. `seed` sets the order of the rows; torch's own seed what is dropped out.

    Raises:
        ValueError: a label is none of the model's classes, or a row has no modality.
    """
    for rows in (train, validation):
        check_labels(rows.labels, model.num_classes)
    if model.frozen:
        train, validation = (replace(rows, inputs=_features(model, rows.inputs)) for rows in (train, validation))
    order = torch.Generator().manual_seed(seed)
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=weight_decay)
    num_batches = math.ceil(len(train) / batch_size)
    schedule = LambdaLR(optimizer, lambda step: step_size(step, epochs * num_batches))
    history: list[Epoch] = []
    best: tuple[tuple[float, float], dict[str, Tensor]] | None = None
    for _ in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(train), generator=order).chunk(num_batches):
            batch = train[rows]
            loss = F.cross_entropy(model(batch.inputs).logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        logits = predict(model, validation.inputs).logits
        accuracy = float((logits.argmax(-1) == validation.labels).float().mean())
        history.append(Epoch(total / len(train), float(F.cross_entropy(logits, validation.labels)), accuracy))
        merit = (accuracy, -history[-1].validation_loss)
        if best is None or merit > best[0]:
            best = merit, {name: each.clone() for name, each in model.state_dict().items()}
    if best is not None:
        model.load_state_dict(best[1])
    return history


def step_size(step: int, num_steps: int) -> float:
    """The share of the highest step size at a step, from 0 on: up linearly, then down as half a cosine."""
    warm = max(1, round(WARM_UP * num_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, num_steps - warm))))


@torch.no_grad()
def predict(model: FusionModel, inputs: Inputs) -> FusionOutput:
    """What the model says of all rows, some at a time, in evaluation mode."""
    model.eval()
    outputs = [model(part) for part in _parts(inputs)]
    return FusionOutput(
        *(torch.cat([getattr(each, name) for each in outputs]) for name in FusionOutput.__annotations__)
    )


@torch.no_grad()
def _features(model: FusionModel, inputs: Inputs) -> Inputs:
    model.eval()
    parts = [model.features(part) for part in _parts(inputs)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _parts(inputs: Inputs) -> list[Inputs]:
    starts = range(0, len(inputs[PRESENT]), _EVALUATED_AT_A_TIME)
    return [{name: each[start : start + _EVALUATED_AT_A_TIME] for name, each in inputs.items()} for start in starts]
