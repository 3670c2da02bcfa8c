"""A learner that does nothing but save, until it is killed."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.engine.files import STATE_FILE, Damaged, Folder, Manifest, begin, newest_first
from actors.engine.state import TensorFiles
from actors.loop import checkpoints
from actors.loop.checkpoints import LoopState
from pipeline.algorithms.kl import FixedKl
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import Checkpoints, Recipe
from tests.worlds import learning

NUM_PARAMETERS = 8
PARAMETER_SIZE = 20_000


class Filled(nn.Module):
    """Parameters that all hold the number of the step."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(PARAMETER_SIZE)) for _ in range(NUM_PARAMETERS))

    def forward(self, rows: Tensor) -> Tensor:
        return sum((part.sum() * rows for part in self.parts), torch.zeros_like(rows))


def newest_whole(root: Folder) -> tuple[Folder, Manifest] | None:
    """The newest checkpoint that is finished, with every file as its manifest says.

    Raises:
        AssertionError: one is finished, but not whole.
    """
    found: tuple[Folder, Manifest] | None = None
    for folder in newest_first(root):
        try:
            manifest = Manifest.read(folder)
        except Damaged as error:
            assert "never finished" in str(error), f"{folder}: {error}"
            continue
        damages = [damage for file in manifest.files if (damage := folder.damage(file))]
        assert not damages, f"{folder}: {damages}"
        found = found or (folder, manifest)
    return found


def tensors_of(folder: Folder, manifest: Manifest) -> TensorFiles:
    """The engine's tensors in a checkpoint."""
    return TensorFiles(folder / "policy", [file.name.removeprefix("policy/") for file in manifest.files_of("policy")])


def save_for_ever(root: str, started: str) -> None:
    """Goes on from the newest checkpoint, then saves one after the other as the driver and its one rank do."""
    place, engine = Folder(root), learning.make(0, module=Filled())
    engine.train(lambda: engine(torch.ones(1)).sum(), last=True)
    first = 1
    newest = newest_whole(place)
    if newest:
        folder, manifest = newest
        stored = json.loads(folder.read(STATE_FILE))
        names = [file.name.removeprefix("policy/") for file in manifest.files_of("policy")]
        engine.load(folder / "policy", names, stored["schedules"]["policy"])
        assert all(bool((part == manifest.step).all()) for part in engine.module.parts)
        first = manifest.step + 1
    Path(started).touch()
    optimizer = cast(Any, engine)._engine.optimizer
    for step in count(first):
        for part in engine.module.parts:
            for tensor in (part.detach(), *optimizer.state[part].values()):
                tensor.fill_(step)
        staged, target = begin(place, step)
        saved = engine.save(staged / "policy")
        checkpoints.write(
            staged,
            target,
            [checkpoints.below("policy", file) for file in saved.files],
            state=LoopState(step, FixedKl(0.1), RunningScale(), cursor=step),
            schedules={"policy": saved.schedule},
            metrics={},
            recipe=Recipe(),
            towers={},
        )
        checkpoints.keep(place, target, Checkpoints(keep_last=2))
