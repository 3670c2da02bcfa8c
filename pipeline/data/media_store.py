"""Media beside a table, each once, named by their content: `media/<ab>/<sha256 of the file>.<suffix>`."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.data.filesystems import filesystem
from pipeline.data.inspection import format_of
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import MediaKind, Medium

_STORED = re.compile(r"(?:^|/)media/([0-9a-f]{2})/((\1[0-9a-f]{62})\.[A-Za-z0-9]{1,8})$")
_OWN = re.compile(r"\.?([0-9a-f]{2})[0-9a-f]{62}\.\w+")
"""The names of files here, also of one that was not written to its end."""


class MediaStore:
    """The media beside the table in a directory, on disk or at an address; they are written on disk alone.

    Nothing is opened but files that are named after their own hash. Many workers may write at once: equal names hold
    equal bytes.
    """

    def __init__(self, directory: str) -> None:
        self._system, self._root = filesystem(directory)

    def filled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the bytes of media that it names by their place here; other media stay as they are.

        Raises:
            RowError: there is no such file, or it holds something else.
        """
        filled = dict(row)
        for kind, column in MEDIA_COLUMNS.items():
            files = cast("list[dict[str, Any] | None]", row.get(column) or [])
            filled[column] = [self._file(kind, file) if file and not file.get("bytes") else file for file in files]
        return filled

    def _file(self, kind: MediaKind, file: dict[str, Any]) -> dict[str, Any]:
        match = _STORED.search(cast("str | None", file.get("path")) or "")
        if not match:
            return file
        try:
            with self._system.open_input_stream(posixpath.join(self._root, "media", match[1], match[2])) as stream:
                data = stream.read()
        except (FileNotFoundError, IsADirectoryError):
            raise RowError(Reason.MISSING_BYTES, f"{match[0]}: there is no such file beside the table") from None
        if hashlib.sha256(data).hexdigest() != match[3]:
            raise RowError(Reason.corrupt(kind), f"{match[0]}: the file beside the table holds something else")
        return {**file, "bytes": data}

    def put(self, medium: Medium) -> str:
        """Stores a medium's file unless it is there, and returns its path."""
        name, found = hashlib.sha256(medium.data).hexdigest(), format_of(medium.data)
        suffix = found.suffixes[0] if found and found.suffixes else "bin"
        target = Path(self._root) / "media" / name[:2] / f"{name}.{suffix}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(medium.data)
            os.chmod(partial, 0o644)
            os.replace(partial, target)
        return str(target)

    def remove_unless(self, is_used: Callable[[str], bool]) -> None:
        """Removes files of the store that no row of the table uses; asks by their names. Others' files stay."""
        for file in (Path(self._root) / "media").glob("*/*"):
            match = _OWN.fullmatch(file.name)
            if match and match[1] == file.parent.name and not is_used(file.name):
                file.unlink()
