"""Checkpoints of the loop: policy and critic with their optimizers, and the state that the driver holds.

A checkpoint is written into a temporary directory and takes its name when all of it is there. DeepSpeed's files are
pickles: load checkpoints only from where you trust.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.critic import CriticWorker
from actors.policy import PolicyWorker
from actors.roles import Roles
from pipeline.algorithms.kl import AdaptiveKl, FixedKl, KlController
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import ConfigError, Kl, KlControl, Recipe

STATE_FILE = "state.json"


@dataclass(frozen=True)
class LoopState:
    """Where the loop is. Data order and sampling seeds follow from the step, so the step is the data position."""

    step: int
    kl: KlController
    reward_scale: RunningScale

    @classmethod
    def start(cls, kl: Kl) -> LoopState:
        """The state before the first step."""
        if kl.control is KlControl.FIXED:
            return cls(0, FixedKl(kl.weight), RunningScale())
        return cls(0, AdaptiveKl(kl.weight, kl.target, kl.horizon), RunningScale())


def save(roles: Roles, state: LoopState, recipe: Recipe) -> Path:
    """Writes the checkpoint after `state.step` steps and removes the oldest beyond `rlhf.keep_last`."""
    target = _directory(recipe) / f"step-{state.step:06d}"
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    calls = roles.policy.on_all(PolicyWorker.save, (partial / "policy").absolute())
    if roles.critic:
        calls += roles.critic.on_all(CriticWorker.save, (partial / "critic").absolute())
    ray.get(calls)
    (partial / STATE_FILE).write_text(json.dumps({**_as_json(state), "seed": recipe.run.seed}))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for old in _complete(recipe)[: -recipe.rlhf.keep_last]:
        shutil.rmtree(old)
    return target


def newest(recipe: Recipe) -> Path:
    """The newest complete checkpoint of the run.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it was written with another seed, so that its data order would not go on.
    """
    complete = _complete(recipe)
    if not complete:
        raise FileNotFoundError(f"--resume: no checkpoint in {_directory(recipe)}; start without --resume")
    seed = json.loads((complete[-1] / STATE_FILE).read_text())["seed"]
    if seed != recipe.run.seed:
        raise ConfigError(f"{complete[-1]} was written with run.seed={seed}, not {recipe.run.seed}: use that seed")
    return complete[-1].absolute()


def resume(roles: Roles, recipe: Recipe) -> LoopState:
    """Restores policy and critic from the newest checkpoint and returns the loop's state; errors as `newest`."""
    directory = newest(recipe)
    calls = roles.policy.on_all(PolicyWorker.resume, directory / "policy")
    if roles.critic:
        calls += roles.critic.on_all(CriticWorker.resume, directory / "critic")
    ray.get(calls)
    stored = json.loads((directory / STATE_FILE).read_text())
    kl: Any = FixedKl if recipe.rlhf.algorithm.kl.control is KlControl.FIXED else AdaptiveKl
    return LoopState(stored["step"], kl.from_state(stored["kl"]), RunningScale.from_state(stored["reward_scale"]))


def _as_json(state: LoopState) -> Mapping[str, Any]:
    return {"step": state.step, "kl": state.kl.state(), "reward_scale": state.reward_scale.state()}


def _directory(recipe: Recipe) -> Path:
    return recipe.run.directory / "checkpoints" / "rlhf_steps"


def _complete(recipe: Recipe) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in _directory(recipe).glob(f"step-*/{STATE_FILE}"))
