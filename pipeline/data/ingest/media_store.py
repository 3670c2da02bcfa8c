"""Media beside the table, each once: `media/<ab>/<sha256 of the file>.<suffix>`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.records import MediaKind, Medium

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (8, b"WAVE", "wav"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (8, b"AVI ", "avi"),
)
_DEFAULTS = {MediaKind.IMAGE: "img", MediaKind.AUDIO: "mp3", MediaKind.VIDEO: "mpg"}


class MediaStore:
    """A directory of files named by their content. Many workers may write at once: equal names hold equal bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def put(self, medium: Medium) -> str:
        """Stores a medium's file unless it is there, and returns its path."""
        name = hashlib.sha256(medium.data).hexdigest()
        target = self.directory / name[:2] / f"{name}.{suffix_of(medium)}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".")
            with os.fdopen(handle, "wb") as file:
                file.write(medium.data)
            os.chmod(partial, 0o644)
            os.replace(partial, target)
        return str(target)

    def remove_unless(self, is_used: Callable[[str], bool]) -> None:
        """Removes files that no row of the table uses; asks by their names."""
        for file in self.directory.glob("*/*"):
            if not is_used(file.name):
                file.unlink()


def suffix_of(medium: Medium) -> str:
    """The usual suffix of a file of this content."""
    head = medium.data[:16]
    found = (suffix for at, magic, suffix in _SIGNATURES if head[at : at + len(magic)] == magic)
    return next(found, _DEFAULTS[medium.kind])
