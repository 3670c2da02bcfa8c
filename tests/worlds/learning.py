"""A small learner under a real `Engine`: what its checkpoints hold, and how it goes on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actors.engine import Engine, World
from actors.files import Folder
from actors.state import TensorFiles
from pipeline.config import Device, Dtype, Trained

NUM_STEPS = 3


class Learner(nn.Module):
    """Sizes that two ranks do not divide, a parameter of one element, and a frozen one."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.5)

        self.first = made(5, 7)
        self.scale = made(1)
        self.frozen = nn.Parameter(torch.full((7,), 0.5), requires_grad=False)
        self.second = made(7, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return (torch.tanh(rows @ self.first + self.frozen) @ self.second * self.scale).float().square().mean(-1)


def make(stage: int, dtype: Dtype = Dtype.FLOAT32, *, seed: int = 0, module: nn.Module | None = None) -> Engine:
    settings = Trained(zero_stage=stage, learning_rate=0.05, weight_decay=0.1, warmup_steps=2, decay_steps=9)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    world = World(rank=rank, size=size, address="", port=0, device=Device.CPU, timeout_s=60)
    return Engine(module or Learner(seed), world=world, settings=settings, dtype=dtype)


def train(engine: Engine, steps: Sequence[int]) -> None:
    """Optimizer steps on four rows, split over the ranks; the rows follow from the step."""
    dtype = next(engine.module.parameters()).dtype
    for step in steps:
        rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(step)).to(dtype)
        share = rows.chunk(engine.world.size)[engine.world.rank]
        engine.train(lambda share=share: engine(share).sum() / 4, last=True)


def contents(folder: Folder, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of every tensor but the random state."""
    files = TensorFiles(folder, names)
    return {name: files.read(name).numpy().tobytes() for name in files if not name.startswith("rng/")}


def save(engine: Engine, folder: Folder) -> tuple[list[str], Mapping[str, Any]]:
    """Names of all ranks' files, and the schedule, on every rank."""
    saved = engine.save(folder)
    names: list[Any] = [None] * engine.world.size
    torch.distributed.all_gather_object(names, [file.name for file in saved.files])
    return [name for part in names for name in part], saved.schedule


def written(root: str, stage: int, dtype: Dtype) -> tuple[list[str], Mapping[str, Any], float]:
    """Trains, saves, trains on and saves where that led to; the names of the files are the same both times."""
    engine = make(stage, dtype)
    train(engine, range(NUM_STEPS))
    names, schedule = save(engine, Folder(root) / "half")
    random = float(torch.rand(()))
    train(engine, range(NUM_STEPS, 2 * NUM_STEPS))
    save(engine, Folder(root) / "whole")
    return names, schedule, random


def written_at_all_stages(root: str, stages: Sequence[int], dtype: Dtype) -> dict[int, Any]:
    return {stage: written(f"{root}/{stage}", stage, dtype) for stage in stages}


def resumed(
    root: str, names: Sequence[str], schedule: Mapping[str, Any], stage: int, dtype: Dtype, again: str
) -> tuple[float, float]:
    """Loads into an engine that has learnt something else, saves at once, trains on and saves where that leads to."""
    engine = make(stage, dtype, seed=1)
    if stage % 2:
        # A used optimizer and a fresh one both have to take what is loaded.
        train(engine, [99])
    engine.load(Folder(root) / "half", names, schedule)
    save(engine, Folder(again) / "half")
    random, rate = float(torch.rand(())), engine.learning_rate
    train(engine, range(NUM_STEPS, 2 * NUM_STEPS))
    save(engine, Folder(again) / "whole")
    return random, rate


def resumed_from_all(jobs: Sequence[tuple[Any, ...]]) -> list[tuple[float, float]]:
    return [resumed(*job) for job in jobs]
