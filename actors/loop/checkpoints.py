"""Checkpoints of the loop: policy and critic with their optimizers, and the state that the driver holds.

    step-000020/
      policy/rank-00000-000.safetensors, …   written by the ranks (`state.py`)
      critic/…
      state.json                             the loop's own state, and the step's metrics
      manifest.json                          sizes and checksums of all of it, written last (`files.py`)
    best.json                                which of them is the best, where `best_metric` asks
    own.json                                 those of the run that writes here now: others may lie beside them

Nothing in there can run when it is loaded, and nothing depends on the number of workers or the ZeRO stage.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.engine.files import (
    MANIFEST_FILE,
    STATE_FILE,
    Damaged,
    File,
    Folder,
    Manifest,
    Unwritable,
    begin,
    newest_first,
    order_of,
    publish,
    write_note,
)
from actors.fleet.answer import gather
from actors.fleet.world import World
from actors.loop.crew import Roles
from actors.roles.policy import LearningWorker, PolicyWorker
from pipeline.algorithms.kl import AdaptiveKl, FixedKl, KlController
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import BestMode, Checkpoints, ConfigError, Exported, Kl, KlControl, Recipe
from pipeline.evaluation.validation import Progress
from pipeline.models.checkpoint import FINGERPRINT_FILE

BEST_FILE = "best.json"
OWN_FILE = "own.json"
PACKAGES = ("polyphony", "torch", "deepspeed", "transformers", "ray", "safetensors")


@dataclass(frozen=True)
class LoopState:
    """Where the loop is. Sampling seeds follow from the data position."""

    step: int
    kl: KlController
    reward_scale: RunningScale
    cursor: int = 0
    """The data position: batches of prompts drawn so far."""
    progress: Progress = field(default_factory=Progress)
    """What evaluations while training have shown so far."""
    reward_version: int = 0
    """Which reward model judged the step before: 0 is the run's own, later ones learned from people."""
    multipliers: Mapping[str, float] = field(default_factory=dict[str, float])
    """What parts of the reward that have a floor weigh in the next step, by name; empty before the first."""

    @classmethod
    def start(cls, kl: Kl) -> LoopState:
        """The state before the first step."""
        if kl.control is KlControl.FIXED:
            return cls(0, FixedKl(kl.weight), RunningScale())
        return cls(0, AdaptiveKl(kl.weight, kl.target, kl.horizon), RunningScale())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        control = KlControl.FIXED if isinstance(self.kl, FixedKl) else KlControl.ADAPTIVE
        return {
            "step": self.step,
            "cursor": self.cursor,
            "kl": {"control": control, **self.kl.state()},
            "reward_scale": self.reward_scale.state(),
            "progress": self.progress.to_json(),
            "reward_version": self.reward_version,
            "multipliers": dict(self.multipliers),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], kl: Kl) -> LoopState:
        """The state that `to_json` came from.

        Raises:
            ConfigError: the recipe controls the KL weight in another way now.
        """
        values = dict(stored["kl"])
        control = values.pop("control")
        if control != kl.control:
            raise ConfigError(
                f"rlhf.algorithm.kl.control={kl.control}, but the checkpoint was written with {control}: use that, or "
                "start without --resume"
            )
        kind = FixedKl if control == KlControl.FIXED else AdaptiveKl
        scale = RunningScale.from_state(stored["reward_scale"])
        progress = Progress(**stored.get("progress", {}))
        return cls(
            stored["step"],
            kind.from_state(values),
            scale,
            stored["cursor"],
            progress,
            stored.get("reward_version", 0),
            stored.get("multipliers", {}),
        )


def save(roles: Roles, state: LoopState, recipe: Recipe, metrics: Mapping[str, float]) -> Folder:
    """Writes the checkpoint after `state.step` steps, whose metrics are given.

    Raises:
        Unwritable: there is no room for it, or a file could not be written. What there was of it is gone.
    """
    root, trained = root_of(recipe), _trained(roles)
    staged, target = begin(root, state.step)
    check_space(root, num_bytes(roles))
    try:
        _write(staged, target, trained, state=state, metrics=metrics, recipe=recipe, towers=_towers(roles))
    except OSError:
        with suppress(Exception):  # The next save sweeps it away.
            staged.remove()
        raise
    return target


def num_bytes(roles: Roles) -> int:
    """What a checkpoint takes, a hair less."""
    worlds = _trained(roles)
    found, _ = gather({role: world.on_all(LearningWorker.checkpoint_bytes) for role, world in worlds.items()})
    return sum(ranks[0] for ranks in found.values())


def check_space(root: Folder, needed: int) -> None:
    """Looks before anything is written.

    Raises:
        Unwritable: the disk has no room for a checkpoint.
    """
    free = root.free_bytes()
    if free is not None and free < needed:
        raise Unwritable(f"{root}: a checkpoint takes {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} MiB are free")


def _write(
    staged: Folder,
    target: Folder,
    trained: Mapping[str, World[Any]],
    *,
    state: LoopState,
    metrics: Mapping[str, float],
    recipe: Recipe,
    towers: Mapping[str, str | None],
) -> None:
    answers = {role: world.on_all(LearningWorker.save, staged / role) for role, world in trained.items()}
    files: list[File] = []
    schedules: dict[str, Any] = {}
    for role, saved in gather(answers)[0].items():
        schedules[role] = saved[0].schedule
        files += [below(role, file) for part in saved for file in part.files]
        if failures := [part.failure for part in saved if part.failure]:
            raise Unwritable("; ".join(failures))
    write(staged, target, files, state=state, schedules=schedules, metrics=metrics, recipe=recipe, towers=towers)


def below(role: str, file: File) -> File:
    """A file that a rank has written, by its name in the checkpoint."""
    return replace(file, name=f"{role}/{file.name}")


def write(
    staged: Folder,
    target: Folder,
    files: list[File],
    *,
    state: LoopState,
    schedules: Mapping[str, Any],
    metrics: Mapping[str, float],
    recipe: Recipe,
    towers: Mapping[str, str | None],
) -> None:
    """Adds the loop's state to the files that the ranks have written, and publishes all."""
    content = {**state.to_json(), "schedules": schedules, "metrics": dict(metrics)}
    manifest = Manifest(
        step=state.step,
        seed=recipe.run.seed,
        written_by={"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        towers=towers,
        recipe=hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(),
        files=(*files, staged.write(STATE_FILE, json.dumps(content, indent=1).encode())),
    )
    publish(staged, target, manifest)


def keep(root: Folder, newest: Folder, settings: Checkpoints) -> None:
    """Removes all checkpoints but the `keep_last` newest and the best, and says in best.json which that is.

    Of a step that was saved again the older revision goes. Checkpoints of later steps than `newest`, which this run
    has just written, are not its own: they stay, and are reported.

    Raises:
        ConfigError: `best_metric` is not among the metrics of the newest.
    """
    own = [folder for folder in newest_first(root) if _order(folder) <= _order(newest)]
    for folder in newest_first(root):
        if _order(folder) > _order(newest):
            print(f"{folder} is of a later step than this run has reached: --resume would take it", flush=True)
    newest_of_step = _newest_of_step(own)
    kept = newest_of_step[: settings.keep_last]
    if settings.best_metric is not None:
        kept += _mark_best(root, newest_of_step, settings.best_metric, settings.best_mode)
    for folder in own:
        if folder not in kept:
            folder.remove()


def _newest_of_step(folders: list[Folder]) -> list[Folder]:
    """The newest revision of each step, in the order of the folders, which begin with the newest."""
    newest: dict[int, Folder] = {}
    for folder in folders:
        newest.setdefault(_order(folder)[0], folder)
    return list(newest.values())


def _mark_best(root: Folder, folders: list[Folder], metric: str, mode: BestMode) -> list[Folder]:
    """The best of the checkpoints (the newest comes first), if any; it has been among them at every save so far."""
    known = json.loads(folders[0].read(STATE_FILE))["metrics"]
    if metric not in known:
        shown = ", ".join(sorted(known))
        raise ConfigError(f"rlhf.checkpoints.best_metric={metric}: not a metric of this run; there are {shown}")
    best = _best_of(folders, metric, mode)
    if best is None:
        return []
    write_note(root, BEST_FILE, {"checkpoint": best[0].name, "metric": metric, "mode": mode, "value": best[1]})
    return [best[0]]


def _best_of(folders: list[Folder], metric: str, mode: BestMode) -> tuple[Folder, float] | None:
    """The checkpoint with the best finite value, and the value, if any; of equal ones the newest, which comes first."""
    found = {folder: json.loads(folder.read(STATE_FILE))["metrics"].get(metric, math.nan) for folder in folders}
    values = {folder: value for folder, value in found.items() if math.isfinite(value)}
    return (max if mode is BestMode.MAX else min)(values.items(), key=lambda item: item[1]) if values else None


def export(roles: Roles, recipe: Recipe, step: int, target: Path) -> None:
    """Writes what the loop, which has made `step` steps, hands on into `target`, as a Hugging Face directory.

    Without a step there is no checkpoint: the weights are those that it started from, and the best.

    Raises:
        ConfigError: it is to be the best checkpoint, and there is none, or it is not whole.
    """
    if recipe.rlhf.checkpoints.export is Exported.BEST and step > 0:
        _load_best(roles, recipe, step)
    roles.policy.on_all(PolicyWorker.export, target.absolute()).result()


def _load_best(roles: Roles, recipe: Recipe, step: int) -> None:
    """Gives the policy the weights of the best checkpoint of `step` steps at most."""
    settings, root = recipe.rlhf.checkpoints, root_of(recipe)
    own = [folder for folder in newest_first(root) if _order(folder)[0] <= step and folder.has(MANIFEST_FILE)]
    best = _best_of(_newest_of_step(own), str(settings.best_metric), settings.best_mode)
    cure = "take the last weights with --resume rlhf.checkpoints.export=last"
    if best is None:
        raise ConfigError(f"rlhf.checkpoints.export=best: no checkpoint has {settings.best_metric}; {cure}")
    folder, value = best
    try:
        manifest = Manifest.read(folder)
        _verify(folder, manifest, {"policy": roles.policy})
    except Damaged as error:
        raise ConfigError(f"rlhf.checkpoints.export=best: {folder}: {error}; {cure}") from error
    _load(folder, manifest, {"policy": roles.policy})
    print(f"{folder} is handed on: the best, with {settings.best_metric}={value:.4g}", flush=True)


def _load(folder: Folder, manifest: Manifest, trained: Mapping[str, World[Any]]) -> None:
    """Has the ranks load their roles' share of a checkpoint."""
    schedules = json.loads(folder.read(STATE_FILE))["schedules"]
    names = {role: [file.name.removeprefix(f"{role}/") for file in manifest.files_of(role)] for role in trained}
    gather(
        {
            role: world.on_all(LearningWorker.resume, folder / role, names[role], schedules[role])
            for role, world in trained.items()
        }
    )


def resume(roles: Roles, recipe: Recipe, *, among: Sequence[Folder] | None = None) -> tuple[Folder, LoopState]:
    """Restores policy and critic from the newest checkpoint that is whole; returns it, and the loop's state.

    among: the checkpoints to choose from, the newest first; None is all of the run's directory.

    Raises:
        FileNotFoundError: there is none; the message lists why each was refused.
        ConfigError: the checkpoint is whole, but not of this recipe.
    """
    root, trained = root_of(recipe), _trained(roles)
    refused: list[str] = []
    for folder in newest_first(root) if among is None else among:
        try:
            manifest = Manifest.read(folder)
            check_fits(folder, manifest, recipe, trained=list(trained), towers=_towers(roles))
            _verify(folder, manifest, trained)
        except Damaged as error:
            refused.append(f"{folder}: {error}")
            print(f"refused checkpoint {refused[-1]}", flush=True)
            continue
        stored = json.loads(folder.read(STATE_FILE))
        state = LoopState.from_json(stored, recipe.rlhf.algorithm.kl)
        _load(folder, manifest, trained)
        print(f"resumed from {folder}", flush=True)
        return folder, state
    if refused:
        raise FileNotFoundError("--resume: no checkpoint is whole:\n" + "\n".join(refused))
    raise FileNotFoundError(f"--resume: no checkpoint in {root}; start without --resume")


def own(root: Folder) -> list[Folder]:
    """The checkpoints of the run that wrote here last, the newest first."""
    names = json.loads(root.read(OWN_FILE)) if root.has(OWN_FILE) else []
    return [folder for folder in newest_first(root) if folder.name in names]


def claim(root: Folder, folders: Sequence[Folder]) -> None:
    """Notes which checkpoints are those of the run that writes now."""
    write_note(root, OWN_FILE, [folder.name for folder in folders])


def check_fits(
    folder: Folder, manifest: Manifest, recipe: Recipe, *, trained: list[str], towers: Mapping[str, str | None]
) -> None:
    """Makes sure that a checkpoint is of this recipe.

    Raises:
        ConfigError: it was written with another seed, so that data order would not go on; by other roles; or with
            other towers, which it does not hold.
    """
    if manifest.seed != recipe.run.seed:
        raise ConfigError(f"{folder} was written with run.seed={manifest.seed}, not {recipe.run.seed}: use that seed")
    roles = sorted({file.name.split("/")[0] for file in manifest.files if "/" in file.name})
    if roles != sorted(trained):
        raise ConfigError(
            f"{folder} holds {' and '.join(roles)}, but {' and '.join(sorted(trained))} train now: use the "
            "rlhf.algorithm.advantage that it was written with, or start without --resume"
        )
    for role in trained:
        written, now = manifest.towers.get(role), towers.get(role)
        if written and now and written != now:
            raise ConfigError(
                f"{folder}: {role} was trained on towers {written[:8]}, but starts from {now[:8]} now, and frozen "
                "parameters are not saved: bring back the checkpoint that it started from, or start without --resume"
            )


def _verify(folder: Folder, manifest: Manifest, trained: Mapping[str, World[Any]]) -> None:
    """Reads every file; the ranks share the work.

    Raises:
        Damaged: not all files are what the manifest says.
    """
    found, _ = gather(
        {role: world.on_all(LearningWorker.damages, folder, manifest.files_of(role)) for role, world in trained.items()}
    )
    damages = [damage for file in manifest.files if "/" not in file.name and (damage := folder.damage(file))]
    damages += [damage for ranks in found.values() for rank in ranks for damage in rank]
    if damages:
        raise Damaged("; ".join(damages))


def root_of(recipe: Recipe) -> Folder:
    """Where the run's checkpoints are."""
    path = recipe.rlhf.checkpoints.path
    if path is not None and "://" in path:
        return Folder(path)
    return Folder(str((recipe.run.directory / "checkpoints" / "rlhf_steps" if path is None else Path(path)).absolute()))


def _trained(roles: Roles) -> dict[str, World[Any]]:
    return {"policy": roles.policy, **({"critic": roles.critic} if roles.critic else {})}


def _towers(roles: Roles) -> dict[str, str | None]:
    """The fingerprint of each trained role's towers; a checkpoint that Polyphony did not write has none."""
    files = {role: world.path / FINGERPRINT_FILE for role, world in _trained(roles).items() if world.path}
    return {role: file.read_text(encoding="utf-8") if file.is_file() else None for role, file in files.items()}


def _order(folder: Folder) -> tuple[int, int]:
    order = order_of(folder.name)
    assert order is not None
    return order


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
