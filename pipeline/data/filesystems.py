"""Files wherever they lie: on disk, in S3 or Google Cloud (pyarrow's own clients), or where fsspec reaches.

An address holds names as they are, as the stores' own tools have it: nothing in it is percent-encoded.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any, cast
from urllib.parse import quote

import fsspec.core
from pyarrow import fs

from pipeline.config import ConfigError

_URI = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_ARROW_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs")
_PATIENCE = "retry_limit_seconds=60"
"""Google's client tries for many minutes by itself, also where there are no credentials at all."""


def is_uri(path: str) -> bool:
    """Whether `path` is an address (`s3://...`) and not a path on disk."""
    return _URI.match(path) is not None


def filesystem(path: str, options: str = "") -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or address, and the path inside it.

    options: what pyarrow, or else fsspec, takes as a URI's query, such as `region=eu-west-1`. What is not said here is
        for the environment to say.

    Raises:
        ValueError: no filesystem is known for the address's scheme, or an option is unknown.
    """
    if not is_uri(path):
        return fs.LocalFileSystem(), os.path.abspath(path)
    scheme, _, rest = path.partition("://")
    if scheme in _ARROW_SCHEMES:
        if scheme in ("gs", "gcs") and "retry_limit_seconds" not in options:
            options = f"{options}&{_PATIENCE}" if options else _PATIENCE
        return fs.FileSystem.from_uri(f"{scheme}://{quote(rest, safe='/@:')}" + (f"?{options}" if options else ""))
    files, inner = cast("tuple[Any, str]", fsspec.core.url_to_fs(f"{path}?{options}" if options else path))
    return fs.PyFileSystem(fs.FSSpecHandler(files)), inner


def files_below(path: str) -> list[str]:
    """All files below a directory, or the file itself, as paths or URIs like `path`, sorted. Hidden ones are left out.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ConfigError: it is an address, and what it names cannot be reached; or a name there is no UTF-8.
    """
    try:
        system, inner = filesystem(path)
        info = system.get_file_info(inner)
        is_directory = info.type == fs.FileType.Directory
        found = system.get_file_info(fs.FileSelector(inner, recursive=True)) if is_directory else []
    except Exception as error:  # each store has errors of its own
        cure = "mend the address, the network or the credentials, or copy the files here first"
        raise ConfigError(f"{path}: cannot be reached: {type(error).__name__}: {error}; {cure}") from error
    if info.type == fs.FileType.File:
        return [path]
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: nothing is here; data sets on a hub are not downloaded (hf download does it)")
    # Some filesystems begin what they list with a slash, and others do not.
    start = f"/{inner.strip('/')}"
    root = path.rstrip("/")
    try:
        files = [each.path.lstrip("/") for each in found if each.type == fs.FileType.File]
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: a name here is no UTF-8 ({error.object!r}); rename it (convmv -f latin1 -t utf8 --notest -r)"
        ) from None
    below = (posixpath.relpath(f"/{each}", start) for each in files)
    return sorted(f"{root}/{name}" for name in below if not any(part.startswith(".") for part in name.split("/")))
