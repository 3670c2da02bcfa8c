"""The warm-up of towers inside Ray Train's workers: steps on media alone, before there are pairs."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from actors.engine.engine import Engine
from actors.training.gathering import Batch, gathered, share_of, shown, view_seeds
from pipeline.algorithms.contrastive import two_views_loss
from pipeline.config.fusion import Modality
from pipeline.config.pretrain import WarmUp, WarmUpKind
from pipeline.models.dual_encoder import DualEncoder
from pipeline.models.dual_encoder.views import altered
from pipeline.models.dual_encoder.warm_up import MaskedModelling, hidden_places


class WarmingTowers(nn.Module):
    """The encoder, and what a warm-up by masks puts beside it. A forward pass runs all towers that warm up."""

    def __init__(self, encoder: DualEncoder, settings: WarmUp) -> None:
        super().__init__()
        self.encoder = encoder
        self.modalities = tuple(each for each in settings.modalities if each in encoder.modalities)
        is_masked = settings.kind is WarmUpKind.MASKED
        masked = {each.value: MaskedModelling(encoder, each, settings) for each in self.modalities if is_masked}
        self.masked = nn.ModuleDict(masked)

    def forward(self, inputs: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
        """By modality: of masks, errors [B], where `others` says what is hidden; of views, embeddings [B, D] of both.

        The second view's have the name of their modality with `.other`.
        """
        if len(self.masked):
            return {name: self.masked[name](rows, others[name]) for name, rows in inputs.items()}
        found: dict[str, Tensor] = {}
        for name, rows in inputs.items():
            for label, view in ((name, rows), (f"{name}.other", others[name])):
                found[label] = functional.normalize(self.encoder.tower(Modality(name), {name: view}), dim=-1)
        return found


def warm_step(engine: Engine, settings: WarmUp, seed: int, step: int, batch: Batch) -> dict[str, float]:
    """An optimizer step of the mean loss over the towers that warm up; rows without a modality count for nothing."""
    towers: WarmingTowers = engine.module
    rows, first = share_of(batch, engine.world)
    inputs = towers.encoder.batch(rows, towers.modalities)
    is_masked = settings.kind is WarmUpKind.MASKED
    others: dict[str, Tensor] = {}
    for place, modality in enumerate(towers.modalities):
        name = modality.value
        if is_masked:
            num = cast(MaskedModelling, towers.masked[name]).num_places
            # Of the whole batch, so that a row's does not depend on what rank has it.
            hidden = hidden_places(len(batch), num, settings.masked_share, seed=hash((seed, step, place)) & (2**63 - 1))
            others[name] = hidden[first : first + len(rows)]
        else:
            others[name] = altered(modality, inputs[name], view_seeds(rows, first, seed=seed, step=step, view=1))
            inputs[name] = altered(modality, inputs[name], view_seeds(rows, first, seed=seed, step=step, view=2))
    found: dict[str, float] = {}

    def loss() -> Tensor:
        there = {each: torch.tensor([each in row.modalities for row in batch]).to(engine.device) for each in Modality}
        inputs_there, others_there = (
            {name: each.to(engine.device) for name, each in part.items()} for part in (inputs, others)
        )
        outputs: dict[str, Tensor] = engine(inputs_there, others_there)
        columns = outputs if is_masked else gathered(outputs, engine.world.size)
        losses: list[Tensor] = []
        for modality in towers.modalities:
            present = there[modality]
            own = present[first : first + len(rows)]
            if is_masked:
                num_hidden = int(others[modality.value].sum()) / max(1, len(rows))
                total = (outputs[modality.value] * own).sum() / (num_hidden * present.sum().clamp(min=1))
            else:
                total = _views_loss(outputs, columns, modality, present, first, settings.temperature)
            losses.append(total)
            found[f"warm_up_loss/{modality.value}"] = float(total.detach())
        return torch.stack(losses).mean()

    engine.train(loss, last=True)
    return shown(engine, found)


def _views_loss(
    outputs: dict[str, Tensor],
    columns: dict[str, Tensor],
    modality: Modality,
    present: Tensor,
    first: int,
    temperature: float,
) -> Tensor:
    name, other = modality.value, f"{modality.value}.other"
    return two_views_loss(
        views=outputs[name],
        others=outputs[other],
        all_views=columns[name],
        all_others=columns[other],
        present=present,
        scale=torch.tensor(1 / temperature, device=present.device),
        first_row=first,
    )
