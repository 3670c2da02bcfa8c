"""The directory of a run: who writes it, and which of its stages are done.

A lock in it names its owner, who touches it every few seconds. One that has not been touched for a while, or whose
process is gone from this machine, is taken over; a living one refuses the second driver. What is done is a chain of
digests: a stage is done as long as everything that it stands on is as it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

import psutil

from pipeline.config import ConfigError, Recipe, Resume

LOCK_FILE = "run.lock"
DONE_FILE = "done.json"
RENEW_S = 5.0
EXPIRES_S = 60.0
"""After which a lock that nobody touched is free: its owner is gone, or has stood still for so long that it counts as
gone. An owner who wakes up after that finds another name in it, and ends."""


@contextmanager
def held(directory: Path, *, renew_s: float = RENEW_S, expires_s: float = EXPIRES_S) -> Generator[None, None, None]:
    """Keeps other drivers from a run. Clocks of different machines need not agree.

    Raises:
        ConfigError: another driver writes it, or nobody can.
    """
    make(directory, "run.directory")
    path, name = directory / LOCK_FILE, secrets.token_hex(8)
    _wait(path, name, expires_s)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, name, ended, renew_s), daemon=True, name="run-lock")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError), _opened(path) as file:
            if _owner(file) == name:
                file.truncate(0)


def make(directory: Path, field: str) -> None:
    """Makes a directory, unless it is there.

    Raises:
        ConfigError: there can be none, as below a file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{field}={directory}: cannot be made ({error.strerror}); name another place") from None


def _wait(path: Path, name: str, expires_s: float) -> None:
    """Takes the lock, once its owner is gone."""
    touched, since = None, time.monotonic()
    while (found := _taken(path, name, is_free=time.monotonic() - since > expires_s)) is not None:
        now = path.stat().st_mtime_ns
        if touched is not None and now != touched:
            raise ConfigError(
                f"run.directory={path.parent}: process {found['process']} on {found['host']} writes it, since "
                f"{found['since']} ({found['command']}): end that one first, or use another directory"
            )
        if touched is None:
            print(f"{path}: waiting up to {expires_s:.0f} s to see whether its owner lives", flush=True)
        touched = now
        time.sleep(min(1.0, expires_s / 10))


def _taken(path: Path, name: str, *, is_free: bool) -> Mapping[str, str | int] | None:
    """None once the lock is ours; before that what is known of its owner."""
    with _opened(path) as file:
        content = file.read()
        try:
            found = json.loads(content) if content else None
        except ValueError:  # Cut off while it was written.
            found = None
        if found is not None and not is_free and not _is_gone(found):
            return found
        file.seek(0)
        file.truncate()
        process = psutil.Process()
        record = {
            "owner": name,
            "host": socket.gethostname(),
            "process": process.pid,
            "started": process.create_time(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
        }
        json.dump(record, file)
        return None


def _is_gone(owner: Mapping[str, str | int]) -> bool:
    """Whether the owner was a process of this machine, and is none any more."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(owner["process"]))
        return process.create_time() != owner["started"] or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def _opened(path: Path) -> Generator[TextIOWrapper, None, None]:
    """The lock's file, with nobody else in it meanwhile, where the filesystem can see to that."""
    with path.open("a+", encoding="utf-8") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def _owner(file: TextIOWrapper) -> str | None:
    content = file.read()
    return json.loads(content)["owner"] if content else None


def _renew(path: Path, name: str, ended: threading.Event, renew_s: float) -> None:
    while not ended.wait(renew_s):
        with suppress(OSError):  # A store that cannot be reached now may be there again soon.
            with path.open(encoding="utf-8") as file:
                owner = _owner(file)
            if owner not in (None, name):
                print(f"{path}: another driver has taken this run over; this one ends", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
            os.utime(path)


class Done:
    """Which stages of a run are done, as far as the recipe that they were done by is the recipe of now."""

    def __init__(self, recipe: Recipe, stages: Mapping[str, Sequence[str]]):
        """stages: in their order, and the sections of the recipe that each depends on beside those of stages before."""
        self._file = recipe.run.directory / DONE_FILE
        self._digests: dict[str, str] = {}
        values, digest = recipe.model_dump(mode="json"), str(recipe.run.seed)
        for stage, sections in stages.items():
            told = json.dumps([digest, *(values[section] for section in sections)], sort_keys=True)
            digest = self._digests[stage] = hashlib.sha256(told.encode()).hexdigest()
        known = {}
        if recipe.run.resume is Resume.AUTO and self._file.is_file():
            known = json.loads(self._file.read_text(encoding="utf-8"))
        self._done = {stage: digest for stage, digest in self._digests.items() if known.get(stage) == digest}
        self._write()

    def has(self, stage: str) -> bool:
        """Whether a stage is done."""
        return stage in self._done

    def all(self) -> bool:
        """Whether nothing is left to do."""
        return self._done == self._digests

    def add(self, stage: str) -> None:
        """Notes that a stage is done."""
        self._done[stage] = self._digests[stage]
        self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        staged = self._file.with_suffix(".partial")
        staged.write_text(json.dumps(self._done, indent=1), encoding="utf-8")
        staged.replace(self._file)
