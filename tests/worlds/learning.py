"""A small learner under a real `Engine`: what its checkpoints hold, and how it goes on from them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.engine import state
from actors.engine.engine import Engine
from actors.engine.files import Folder
from actors.engine.state import TensorFiles
from pipeline.config import ConfigError, Dtype, Trained
from tests import worlds

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
    world = worlds.here()
    return Engine(module or Learner(seed), world=world, settings=settings, dtype=dtype)


def train(engine: Engine, steps: Sequence[int]) -> None:
    """Optimizer steps on four rows, split over the ranks; the rows follow from the step."""
    dtype = next(engine.module.parameters()).dtype
    for step in steps:
        rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(step)).to(engine.device, dtype)
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


def two_groups(root: str, stages: Sequence[int]) -> dict[int, tuple[list[float], list[float]]]:
    """The learning rates of two groups when they were saved, and after they were loaded, at each stage."""
    rates: dict[int, tuple[list[float], list[float]]] = {}
    for stage in stages:
        with _two_groups():
            engine, other = make(stage), make(stage, seed=1)
        train(engine, range(5))
        names, schedule = save(engine, Folder(root) / str(stage))
        other.load(Folder(root) / str(stage), names, schedule)
        rates[stage] = (_rates(engine), _rates(other))
        assert _saved_again(other, f"{root}/{stage}-again") == contents(Folder(root) / str(stage), names)
    return rates


@contextmanager
def _two_groups() -> Generator[None, None, None]:
    """Engines made in here have a group of their own, at a fifth of the rate, for the last parameter."""
    real = torch.optim.AdamW

    def adamw(parameters: list[nn.Parameter], lr: float, **options: Any) -> torch.optim.AdamW:
        groups: list[dict[str, Any]] = [{"params": parameters[:-1]}, {"params": parameters[-1:], "lr": lr / 5}]
        return real(groups, lr=lr, **options)

    torch.optim.AdamW = cast(Any, adamw)
    try:
        yield
    finally:
        torch.optim.AdamW = real


def _rates(engine: Engine) -> list[float]:
    return [float(rate) for rate in cast(Any, engine)._engine.get_lr()]


def _saved_again(engine: Engine, folder: str) -> dict[str, bytes]:
    return contents(Folder(folder), save(engine, Folder(folder))[0])


def refusals(root: str) -> list[str]:
    """What is said when more trains than was saved, when less does, and when a shape is another."""
    names, schedule = save(make(0), Folder(root))
    more, less, wider = Learner(0), Learner(0), Learner(0)
    more.frozen.requires_grad_(True)
    less.second.requires_grad_(False)
    wider.second = nn.Parameter(torch.zeros(7, 4))
    return [_refusal(make(0, module=module), root, names, schedule) for module in (more, less, wider)]


def _refusal(engine: Engine, root: str, names: Sequence[str], schedule: Mapping[str, Any]) -> str:
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    try:
        engine.load(Folder(root), names, schedule)
    except ConfigError as error:
        assert all(torch.equal(old, new) for old, new in zip(before, engine.module.parameters(), strict=True))
        return str(error)
    raise AssertionError("loaded")


def uneven_steps(root: str) -> tuple[str, dict[str, float]]:
    """What is said at stage 1 when one parameter stepped less than others, and the counts that stage 0 restores."""
    engine = make(0)
    train(engine, range(3))
    cast(Any, engine)._engine.optimizer.state[engine.module.scale]["step"].fill_(1)
    names, schedule = save(engine, Folder(root))
    plain = make(0, seed=1)
    plain.load(Folder(root), names, schedule)
    loaded = cast(Any, plain)._engine.optimizer.state
    trained = {name: each for name, each in plain.module.named_parameters() if each.requires_grad}
    counts = {name: float(loaded[parameter]["step"]) for name, parameter in trained.items()}
    return _refusal(make(1), root, names, schedule), counts


def small_files(root: str) -> tuple[list[str], bool]:
    """The names of the files where one may hold 100 bytes, and whether they hold the same as one file does."""
    engine = make(0)
    train(engine, range(2))
    whole = _saved_again(engine, f"{root}/whole")
    state.FILE_BYTES = 100
    names, _ = save(engine, Folder(f"{root}/parts"))
    return names, contents(Folder(f"{root}/parts"), names) == whole
