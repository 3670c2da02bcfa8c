"""Versions of the reward model that learned from people, which of them judges now, and where a run swapped them in.

    <run>/feedback/reward_models/<base>/versions.json   what each learned from, and how good it is
                                        v0001/, …       their checkpoints, as long as they are kept
                                        swaps.json      from which step of the run on which version judged

Version 0 is the run's own reward model. `base` is of its head: where that is trained again, versions begin again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.config import Recipe

HEAD_FILE = "head.safetensors"
"""As in `pipeline.models.checkpoint`, which is slow to import."""


class Trigger(StrEnum):
    """Why a reward model was refitted."""

    COUNT = "count"
    TIME = "time"
    DRIFT = "drift"
    ASKED = "asked"


@dataclass(frozen=True)
class RewardVersion:
    """A refit: of which version, from what, and what came of it.

    num_judgements: all that people had made by then; until: when the newest of them was made, in seconds since 1970.
    num_refused: comparisons so far in its batches, and of the held-out ones, whose prompt the door refused.
    fresh: how often the model before was right on those that it had not learned from, and of how many that was said.
    held_out, held_out_before: `num`, `accuracy` and `brier` on held-out judgements, after and before.
    is_accepted: whether it was right as often as the one before; one that is not never judges.
    """

    number: int
    source: int
    trigger: Trigger
    fitted_at: float
    until: float
    num_judgements: int
    held_out: Mapping[str, Any]
    held_out_before: Mapping[str, Any]
    is_accepted: bool
    fresh: Mapping[str, Any] | None = None
    num_refused: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> RewardVersion:
        """The inverse of `asdict`, from JSON."""
        return replace(cls(**stored), trigger=Trigger(stored["trigger"]))

    def __str__(self) -> str:
        """In a line."""
        after, before = (
            "none" if each["accuracy"] is None else f"{each['accuracy']:.2f}"
            for each in (self.held_out, self.held_out_before)
        )
        return (
            f"reward model {self.number}: from {self.num_judgements} judgements by people; right in {after} of "
            f"{self.held_out['num']} held-out ones, {before} before"
            + ("" if self.is_accepted else "; that is less often, and it is left out")
        )


class RewardVersions:
    """The versions of one run. Processes that read them see whole files; only one at a time may write."""

    def __init__(self, recipe: Recipe):
        self._base = recipe.checkpoint("reward_model")
        self._root = recipe.run.directory / "feedback" / "reward_models"
        self._keep_last = recipe.feedback.refit.keep_last

    @property
    def directory(self) -> Path:
        """Those of the reward model that lies there now: the page opens before the run has trained one."""
        head = self._base / HEAD_FILE
        return self._root / hashlib.sha256(head.read_bytes() if head.is_file() else b"").hexdigest()[:12]

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """For whoever writes: waits until nobody else does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def all(self) -> list[RewardVersion]:
        """In the order in which they were fitted, those that were not accepted among them."""
        return [RewardVersion.of(each) for each in self._read("versions")["all"]]

    @property
    def current(self) -> int:
        """The number of the one that is to judge."""
        return int(self._read("versions")["current"])

    def path(self, number: int) -> Path:
        """The checkpoint of a version."""
        return self._base if number == 0 else self.directory / f"v{number:04d}"

    def add(self, version: RewardVersion) -> None:
        """Keeps a refit, whose checkpoint lies there; it judges from now on where it was accepted."""
        versions = [*self.all(), version]
        current = version.number if version.is_accepted else self.current
        self._write(
            "versions", {**self._read("versions"), "current": current, "all": [asdict(each) for each in versions]}
        )
        accepted = [each.number for each in versions if each.is_accepted]
        for number in {each.number for each in versions} - {*accepted[-self._keep_last :], current}:
            shutil.rmtree(self.path(number), ignore_errors=True)

    def failed(self, error: BaseException) -> None:
        """Counts a refit that came to nothing."""
        stored = self._read("versions")
        self._write("versions", {**stored, "num_failed": stored["num_failed"] + 1, "last_error": repr(error)})

    @property
    def num_failed(self) -> int:
        """Refits that came to nothing."""
        return int(self._read("versions")["num_failed"])

    def roll_back(self, number: int) -> None:
        """Has another version judge.

        Raises:
            ValueError: there is no such version, or its checkpoint is not kept any more.
        """
        kept = [0, *(each.number for each in self.all() if self._is_kept(each.number))]
        if number not in kept:
            raise ValueError(f"version {number}: the reward models that are kept are {', '.join(map(str, kept))}")
        self._write("versions", {**self._read("versions"), "current": number})

    def get(self, number: int) -> RewardVersion:
        """The refit with this number, which is not 0."""
        return next(each for each in self.all() if each.number == number)

    def at(self, step: int) -> int:
        """Which version judges a step: as noted where it was made before, and now the current one."""
        swaps: Sequence[Sequence[int]] = self._read("swaps")["steps"]
        noted = [number for first, last, number in swaps if first <= step <= last and self._is_kept(number)]
        return noted[-1] if noted else self.current

    def note(self, step: int, number: int) -> None:
        """Notes that a version judges a step: whoever makes it again takes the same one."""
        swaps = [list(each) for each in self._read("swaps")["steps"]]
        if swaps and swaps[-1][2] == number and step <= swaps[-1][1] + 1:
            swaps[-1][1] = max(step, swaps[-1][1])
        else:
            swaps.append([step, step, number])
        self._write("swaps", {"steps": swaps})

    def forget_steps(self) -> None:
        """For a run that begins anew."""
        self._write("swaps", {"steps": []})

    def _is_kept(self, number: int) -> bool:
        return number == 0 or self.path(number).is_dir()

    def _read(self, name: str) -> dict[str, Any]:
        file = self.directory / f"{name}.json"
        if not file.is_file():
            return {"versions": {"current": 0, "all": [], "num_failed": 0}, "swaps": {"steps": []}}[name]
        return json.loads(file.read_text(encoding="utf-8"))

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = self.directory / f".{name}.part"
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        draft.replace(self.directory / f"{name}.json")
