"""Files of a checkpoint on any filesystem that fsspec knows, and how a set of them becomes a checkpoint all at once.

`begin` gives an empty folder, everybody writes into it, and `publish` writes the manifest last: it names every file
with its size and SHA-256. On a local filesystem the folder then takes its name by a rename; elsewhere the manifest is
what publishes. Either way a folder without a manifest is no checkpoint. No Ray and no DeepSpeed inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
READ_BYTES = 16 * 2**20
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


class Damaged(ValueError):
    """A checkpoint that cannot be trusted; the message says which file, what was expected and what was found."""


class Unwritable(OSError):
    """A file of a checkpoint cannot be written: the disk is full, or the store cannot be reached."""


@dataclass(frozen=True)
class File:
    """A file of a checkpoint, by its path inside."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """A folder, named by a URL of fsspec or an absolute local path. It can be sent to other processes."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether it can be renamed."""
        return "file" in self._filesystem()[0].protocol

    def _filesystem(self, name: str = "") -> tuple[Any, str]:
        """The filesystem (fsspec keeps one instance a process) and the path of `name` on it."""
        import fsspec.core

        try:
            filesystem, path = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"rlhf.checkpoints.path={self.url}: {error}") from error
        return filesystem, f"{path.rstrip('/')}/{name}" if name else path

    def write(self, name: str, content: bytes | memoryview) -> File:
        """Writes a file below the folder, whole and, on a local filesystem, down to the disk.

        Raises:
            Unwritable: whatever the store's client says is wrong.
        """
        filesystem, path = self._filesystem(name)
        try:
            filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            with filesystem.open(path, "wb") as file:
                file.write(content)
                if self.is_local:
                    file.flush()
                    os.fsync(file.fileno())
            if self.is_local:
                _sync(path.rsplit("/", 1)[0])
        except Exception as error:  # Stores' clients have no common error.
            raise Unwritable(f"{self.url}/{name}: {type(error).__name__}: {error}") from error
        return File(name, len(content), hashlib.sha256(content).hexdigest())

    def free_bytes(self) -> int | None:
        """What the disk below a local folder has room for; None where that cannot be known."""
        if not self.is_local:
            return None
        path = Path(self._filesystem()[1])
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes `start` to `end` of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        filesystem, path = self._filesystem(name)
        return filesystem.cat_file(path, start=start, end=end)

    def damage(self, file: File) -> str | None:
        """What is wrong with a file, or None where it is what its record says."""
        filesystem, path = self._filesystem(file.name)
        try:
            num_bytes = int(filesystem.info(path)["size"])
            if num_bytes != file.num_bytes:
                return f"{file.name}: {file.num_bytes} bytes expected, {num_bytes} found"
            digest = hashlib.sha256()
            with filesystem.open(path, "rb") as opened:
                while block := opened.read(READ_BYTES):
                    digest.update(block)
        except FileNotFoundError:
            return f"{file.name}: {file.num_bytes} bytes expected, no file found"
        if digest.hexdigest() != file.sha256:
            return f"{file.name}: sha256 {file.sha256[:16]}… expected, {digest.hexdigest()[:16]}… found"
        return None

    def names(self) -> list[str]:
        """What lies directly in the folder; nothing where there is no folder."""
        filesystem, path = self._filesystem()
        filesystem.invalidate_cache()
        if not filesystem.isdir(path):
            return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        filesystem, path = self._filesystem(name)
        return bool(filesystem.exists(path))

    def remove(self) -> None:
        """Removes the folder, its manifest first: what a crash leaves of it is no checkpoint."""
        filesystem, path = self._filesystem()
        if self.has(MANIFEST_FILE):
            filesystem.rm_file(f"{path}/{MANIFEST_FILE}")
        filesystem.rm(path, recursive=True)

    def rename(self, target: Folder) -> None:
        """Takes another name in the same local folder, at once."""
        path, new = self._filesystem()[1], target._filesystem()[1]
        os.rename(path, new)
        _sync(os.path.dirname(new))


def _sync(directory: str) -> None:
    """Makes the directory's entries last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of and what wrote it."""

    step: int
    seed: int
    written_by: Mapping[str, str]
    """Versions, by package."""
    towers: Mapping[str, str | None]
    """Fingerprint of each role's towers, which is also what the feature cache knows them by; None where not known."""
    recipe: str
    """SHA-256 of the recipe."""
    files: tuple[File, ...]

    def write(self, folder: Folder) -> None:
        """Writes the manifest with a checksum of its own."""
        body = {"format_version": FORMAT_VERSION, **asdict(self)}
        folder.write(MANIFEST_FILE, json.dumps({**body, "sha256": _digest(body)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Folder) -> Manifest:
        """The manifest of a checkpoint.

        Raises:
            Damaged: there is none, or it is not what was written.
            ConfigError: another version of the format.
        """
        try:
            body = json.loads(folder.read(MANIFEST_FILE))
            stored, version = body.pop("sha256"), body.pop("format_version")
        except FileNotFoundError:
            raise Damaged(f"no {MANIFEST_FILE}: it was never finished") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{MANIFEST_FILE}: a manifest expected, {error!r} found") from None
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{folder}: written in format {version}, but this Polyphony reads format {FORMAT_VERSION}: resume with "
                f"the version that wrote it ({body.get('written_by', {}).get('polyphony', 'unknown')})"
            )
        found = _digest({"format_version": version, **body})
        if found != stored:
            raise Damaged(f"{MANIFEST_FILE}: sha256 {stored[:16]}… expected, {found[:16]}… found")
        files = tuple(File(**file) for file in body.pop("files"))
        return cls(files=files, **body)

    def files_of(self, role: str) -> tuple[File, ...]:
        """The files below `<role>/`, with their whole names."""
        return tuple(file for file in self.files if file.name.startswith(f"{role}/"))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def order_of(name: str) -> tuple[int, int] | None:
    """Step and revision of a checkpoint by its name; None for what is no checkpoint's name.

    A step that is saved again, after a resume from further back, is a new revision: nothing is ever overwritten.
    """
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def newest_first(root: Folder) -> list[Folder]:
    """All folders with a checkpoint's name, finished or not."""
    named = [(order, name) for name in root.names() if (order := order_of(name)) is not None]
    return [root / name for _, name in sorted(named, reverse=True)]


def begin(root: Folder, step: int) -> tuple[Folder, Folder]:
    """An empty folder to write the step's checkpoint into, and the folder that it becomes; sweeps unfinished ones away.

    There must be one writer at a time.
    """
    for name in root.names():
        unfinished = order_of(name) is not None and not (root / name).has(MANIFEST_FILE)
        if unfinished or (name.startswith(".step-") and name.endswith(".partial")):
            (root / name).remove()
    revisions = [order[1] for folder in newest_first(root) if (order := order_of(folder.name)) and order[0] == step]
    target = root / (f"step-{step:06d}" + (f".{max(revisions) + 1}" if revisions else ""))
    return (root / f".{target.name}.partial" if root.is_local else target), target


def publish(staged: Folder, target: Folder, manifest: Manifest) -> None:
    """Makes what was written into `staged` a checkpoint: from here on it is one, and before it is none."""
    manifest.write(staged)
    if staged != target:
        staged.rename(target)


def write_note(root: Folder, name: str, note: Any) -> None:
    """Writes a small file beside the checkpoints, at once."""
    content = json.dumps(note).encode()
    if not root.is_local:
        root.write(name, content)
        return
    root.write(f".{name}", content)
    (root / f".{name}").rename(root / name)
