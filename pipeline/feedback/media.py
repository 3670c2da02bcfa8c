"""Files that items show, each under the hash of its bytes: written once, whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from pipeline.feedback.records import MediumRef
from pipeline.records import MediaKind

_KEY = re.compile(r"[0-9a-f]{64}")
_STARTS = (
    # kind, type, the bytes at the start (dots are any)
    (MediaKind.IMAGE, "image/png", rb"\x89PNG\r\n\x1a\n"),
    (MediaKind.IMAGE, "image/jpeg", rb"\xff\xd8\xff"),
    (MediaKind.IMAGE, "image/gif", rb"GIF8[79]a"),
    (MediaKind.IMAGE, "image/webp", rb"RIFF....WEBP"),
    (MediaKind.AUDIO, "audio/wav", rb"RIFF....WAVE"),
    (MediaKind.AUDIO, "audio/flac", rb"fLaC"),
    (MediaKind.AUDIO, "audio/ogg", rb"OggS"),
    (MediaKind.AUDIO, "audio/mpeg", rb"ID3|\xff[\xe2-\xff]"),
    (MediaKind.VIDEO, "video/webm", rb"\x1aE\xdf\xa3"),
    (MediaKind.VIDEO, "video/mp4", rb"....ftyp"),
)


def media_type(kind: MediaKind, data: bytes) -> str:
    """The type that a file of this kind is served with, by its bytes and never by what it says of itself.

    Raises:
        ValueError: browsers are shown no such file.
    """
    for each, mime, start in _STARTS:
        if each is kind and re.match(start, data[:16], re.DOTALL):
            return mime
    known = ", ".join(mime for each, mime, _ in _STARTS if each is kind)
    raise ValueError(f"a file that starts with {data[:8]!r} is no {kind.value} that a browser shows: {known}")


class MediaFiles:
    """A directory of files by the SHA-256 of their bytes."""

    def __init__(self, directory: Path):
        self._directory = directory

    def keep(self, ref: MediumRef, data: bytes) -> None:
        """Writes a file that is not there yet; it is on disk when this returns."""
        path = self.path(ref.key)
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)

    def path(self, key: str) -> Path:
        """Where the file with this key lies.

        Raises:
            KeyError: this is no key.
        """
        if not _KEY.fullmatch(key):
            raise KeyError(key)
        return self._directory / key[:2] / key
