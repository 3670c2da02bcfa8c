"""Contrastive learning under real engines: what an encoder makes of rows then."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from actors.engine.engine import Engine
from actors.training.contrastive import pair_step, shared
from actors.training.gathering import gathered
from actors.training.warm_up import WarmingTowers, warm_step
from pipeline.config import Dtype
from pipeline.config.fusion import Modality
from pipeline.config.pretrain import Pretrain
from pipeline.models.dual_encoder import DualEncoder, JointEncoder
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio, Image
from tests import worlds


def rows(seed: int) -> list[Sample]:
    """Eight rows, of which one has no sound and one no picture."""
    random = np.random.default_rng(seed)
    texts = ("red", "green", "blue", "red ring", "blue ring", "green ring", "a", "b")
    found: list[Sample] = []
    for place, text in enumerate(texts):
        image = Image(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        audio = Audio((0.1 * random.standard_normal(2000)).astype(np.float32), 8000)
        found.append(Sample(str(place), text, None if place == 6 else image, None if place == 1 else audio))
    return found


def learned(settings: Pretrain, num_steps: int) -> tuple[dict[str, NDArray[Any]], list[dict[str, float]]]:
    """Embeddings of other rows by modality, and the scale, after some steps; and what each step showed."""
    torch.manual_seed(0)
    encoder = DualEncoder(settings.embedding, settings.modalities)
    engine = Engine(encoder, world=worlds.here(), settings=settings, dtype=Dtype.FLOAT32)
    shown = [pair_step(engine, settings, 0, step, rows(step)) for step in range(num_steps)]
    return _seen(shared(engine, settings)), shown


def warmed(settings: Pretrain, num_steps: int) -> tuple[dict[str, NDArray[Any]], list[dict[str, float]]]:
    """The same of a warm-up."""
    torch.manual_seed(0)
    encoder = DualEncoder(settings.embedding, (Modality.TEXT, Modality.IMAGE, Modality.AUDIO))
    towers = WarmingTowers(encoder, settings.warm_up)
    engine = Engine(towers, world=worlds.here(), settings=settings, dtype=Dtype.FLOAT32)
    shown = [warm_step(engine, settings.warm_up, 0, step, rows(step)) for step in range(num_steps)]
    return _seen(shared(engine, settings, prefix="encoder.")), shown


def _seen(encoder: JointEncoder) -> dict[str, NDArray[Any]]:
    """What is seen of its parameters: some, as biases of keys, have no gradient but noise, which Adam makes large."""
    with torch.no_grad():
        outputs = encoder.eval()(encoder.batch(rows(99), encoder.modalities))
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def gradient_of_gathered() -> list[float]:
    """Of this rank's one row x, where each rank's loss is (rank + 1) times the weighted sum of all rows."""
    world = worlds.here()
    row = torch.tensor([[float(world.rank)]], requires_grad=True)
    (column,) = gathered({"x": row}, world.size).values()
    weights = torch.arange(1.0, world.size + 1)[:, None]
    cast(Any, ((world.rank + 1) * weights * column).sum()).backward()
    assert row.grad is not None
    return [*column.flatten().tolist(), float(row.grad)]
