"""Media beside the table, each once: `media/<ab>/<sha256 of the file>.<suffix>`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.data.inspection import format_of
from pipeline.records import Medium


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
    found = format_of(medium.data)
    return found.suffixes[0] if found and found.suffixes else "bin"
