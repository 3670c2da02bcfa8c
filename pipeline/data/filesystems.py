"""Files wherever they lie: on disk, in S3 or Google Cloud (pyarrow's own clients), or where fsspec reaches."""

from __future__ import annotations

import os
import posixpath
import re

import fsspec
from pyarrow import fs

_URI = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_ARROW_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs")


def is_uri(path: str) -> bool:
    """Whether `path` is an address (`s3://...`) and not a path on disk."""
    return _URI.match(path) is not None


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path inside it.

    Raises:
        ValueError: no filesystem is known for the URI's scheme.
    """
    if not is_uri(path):
        return fs.LocalFileSystem(), os.path.abspath(path)
    scheme, _, rest = path.partition("://")
    if scheme in _ARROW_SCHEMES:
        return fs.FileSystem.from_uri(path)
    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), rest


def files_below(path: str) -> list[str]:
    """All files below a directory, or the file itself, as paths or URIs like `path`, sorted. Hidden ones are left out.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    system, inner = filesystem(path)
    info = system.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [path]
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: nothing is here")
    found = system.get_file_info(fs.FileSelector(inner, recursive=True))
    # Some filesystems begin what they list with a slash, and others do not.
    start = f"/{inner.strip('/')}"
    below = (posixpath.relpath(f"/{each.path.lstrip('/')}", start) for each in found if each.type == fs.FileType.File)
    root = path.rstrip("/")
    return sorted(f"{root}/{name}" for name in below if not any(part.startswith(".") for part in name.split("/")))
