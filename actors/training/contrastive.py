"""Contrastive pretraining inside Ray Train's workers: each rank embeds its rows and compares them with those of all.

    rows of a step -> this rank's share -> a tower a modality -> embeddings -> gathered from all ranks -> loss

A rank's loss is its share of the whole batch's. In the backward pass every rank's gradients come back to whoever made
an embedding, so that several workers learn what one would of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
from torch import Tensor

from actors.engine.engine import Engine
from actors.engine.place import Place
from actors.training.gathering import Batch, gathered, share_of, shown, view_seeds
from actors.training.supervised import batches_of, begin, report
from actors.training.warm_up import WarmingTowers, warm_step
from pipeline.algorithms.contrastive import info_nce, sigmoid_loss
from pipeline.config import ConfigError, Recipe
from pipeline.config.fusion import Modality
from pipeline.config.pretrain import ContrastiveLoss, Pretrain, WarmUpKind
from pipeline.models.dual_encoder import DualEncoder, JointEncoder, load_joint_encoder
from pipeline.models.dual_encoder.joint import BIAS, SCALE
from pipeline.models.dual_encoder.views import altered

Stepping = Callable[[int, Batch], dict[str, float]]
"""Takes the optimizer step of this number, and returns what is shown of the whole batch."""


def train_contrastive(config: dict[str, Any]) -> None:
    """Ray Train's loop of `jobs.pretrain`: the warm-up's steps, then those of the pairs, then the encoder's export."""
    recipe: Recipe = config["recipe"]
    settings: Pretrain = config["settings"]
    if not begin(config):
        return
    world: Place = config["world"]
    batches = batches_of(config)
    torch.manual_seed(recipe.run.seed)
    encoder = new_encoder(settings)
    num_warm = settings.num_warm_steps
    if num_warm:
        assert isinstance(encoder, DualEncoder)
        warm = Engine(
            WarmingTowers(encoder, settings.warm_up), world=world, settings=settings, dtype=recipe.model.dtype
        )
        stepping = partial(warm_step, warm, settings.warm_up, recipe.run.seed)
        if not _steps(config, batches, stepping, first=0, count=num_warm):
            return
        encoder = shared(warm, settings, prefix="encoder.")
    engine = Engine(encoder, world=world, settings=settings, dtype=recipe.model.dtype)
    stepping = partial(pair_step, engine, settings, recipe.run.seed)
    if not _steps(config, batches, stepping, first=num_warm, count=settings.num_steps):
        return
    encoder = shared(engine, settings)
    if world.rank == 0:
        encoder.save(cast(Path, config["target"]))
        report(config, None)
        ray.get(config["reported"])


def shared(engine: Engine, settings: Pretrain, *, prefix: str = "") -> JointEncoder:
    """A whole encoder with what the engine has learned, on every rank. prefix: of its weights in the engine's module.

    All ranks must call it.
    """
    state: list[Any] = [engine.gather()]
    if engine.world.size > 1:
        torch.distributed.broadcast_object_list(state)
    encoder = new_encoder(settings)
    own = {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in state[0].items()
        if name.startswith(prefix)
    }
    encoder.load_state_dict(own)
    return encoder


def new_encoder(settings: Pretrain) -> JointEncoder:
    """The dual encoder that the stage starts from; torch's seed sets the weights of one that is built.

    Raises:
        ConfigError: a pair needs a tower that the checkpoint lacks.
    """
    if settings.checkpoint is None:
        return DualEncoder(settings.embedding, settings.modalities)
    encoder = load_joint_encoder(settings.checkpoint)
    for modality in settings.modalities:
        if modality not in encoder.modalities:
            raise ConfigError(
                f"pretrain.pairs: {modality} has no tower in pretrain.checkpoint={settings.checkpoint}, which has "
                f"{', '.join(encoder.modalities)}"
            )
    if settings.warm_up.kind is not WarmUpKind.NONE and not isinstance(encoder, DualEncoder):
        raise ConfigError(
            f"pretrain.warm_up.kind={settings.warm_up.kind}: the towers of pretrain.checkpoint={settings.checkpoint} "
            "are warm; use none"
        )
    return encoder


def _steps(
    config: dict[str, Any],
    batches: Iterator[Batch],
    stepping: Stepping,
    *,
    first: int,
    count: int,
) -> bool:
    """Takes `count` steps and tells the driver; False where the training is cancelled."""
    world: Place = config["world"]
    for step in range(count):
        batch = next(batches, None)
        if batch is None:
            return False
        metrics = stepping(step, batch)
        if world.rank == 0:
            report(config, (first + step, metrics))
    ray.train.report({"step": first + count})
    return True


def pair_step(engine: Engine, settings: Pretrain, seed: int, step: int, batch: Batch) -> dict[str, float]:
    """An optimizer step of the mean loss over all pairs of modalities."""
    world = engine.world
    rows, first = share_of(batch, world)
    encoder = cast(JointEncoder, engine.module)
    inputs = encoder.batch(rows, settings.modalities)
    if settings.augment:
        seeds = view_seeds(rows, first, seed=seed, step=step)
        named = {each.value: each for each in Modality}
        inputs = {name: altered(named[name], each, seeds) if name in named else each for name, each in inputs.items()}
    has = {each: torch.tensor([each in row.modalities for row in batch], device=engine.device) for each in Modality}
    found: dict[str, float] = {}

    def loss() -> Tensor:
        outputs: dict[str, Tensor] = engine({name: each.to(engine.device) for name, each in inputs.items()})
        columns = gathered({each: outputs[each] for each in settings.modalities}, world.size)
        losses: list[Tensor] = []
        for one, other in settings.pairs:
            both = has[one] & has[other]
            losses.append(_pair_loss(settings.loss, outputs, columns, one, other, both, first))
            name = f"{one}_{other}"
            found[f"loss/{name}"] = float(losses[-1].detach())
            found.update(_accuracy(name, columns[one].detach(), columns[other].detach(), both, world))
        total = torch.stack(losses).mean()
        found["loss"] = float(total.detach())
        found["temperature"] = float(1 / outputs[SCALE].detach()) / world.size
        return total

    engine.train(loss, last=True)
    return shown(engine, found)


def _pair_loss(
    kind: ContrastiveLoss,
    outputs: dict[str, Tensor],
    columns: dict[Modality, Tensor],
    one: Modality,
    other: Modality,
    both: Tensor,
    first: int,
) -> Tensor:
    if kind is ContrastiveLoss.SIGMOID:
        return sigmoid_loss(
            rows=outputs[one],
            column_partners=columns[other],
            present=both,
            scale=outputs[SCALE],
            bias=outputs[BIAS],
            first_row=first,
        )
    return info_nce(
        rows=outputs[one],
        row_partners=outputs[other],
        columns=columns[one],
        column_partners=columns[other],
        present=both,
        scale=outputs[SCALE],
        first_row=first,
    )


def _accuracy(name: str, one: Tensor, other: Tensor, both: Tensor, world: Place) -> dict[str, float]:
    """How often the first of a pair finds its partner among the batch; rank 0 tells, as all see the same."""
    num = int(both.sum())
    if world.rank or not num:
        return {f"accuracy/{name}": 0.0}
    nearest = (one[both] @ other[both].T).argmax(1)
    return {f"accuracy/{name}": float((nearest == torch.arange(num, device=nearest.device)).float().mean())}
