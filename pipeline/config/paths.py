"""Paths of a recipe: what may stand in one, what `~` means, and what a relative one is relative to.

Every path of every section has one of the types below, so that all of them are checked and made absolute alike.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

NOTHING = ("none", "null", "nil", "~")
"""Words of other languages for what YAML writes as null."""

_STORE = re.compile(r"(?P<scheme>s3|gs|gcs)://([^/@:]*(?P<password>:[^/@]*)?@)?")
_ON_DISK = re.compile(r"^(?:file|local):(?://(?:localhost)?(?=/)|(?!//))", re.IGNORECASE)
_HALF = re.compile(r"((?:gcs|gs|hdfs|hf|https?|s3)(?=:)|[a-z](?=:\\)|[a-z0-9+.-]+(?=:/)):(?!//)[/\\]*", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]|%[A-Za-z_]+%")


@dataclass(frozen=True)
class Base:
    """What relative paths are relative to: the validation context that makes all paths of a recipe absolute.

    directory: where the user stands; None where nobody knows, and relative paths are refused because of `reason`.
    """

    directory: Path | None
    reason: str = ""


def _checked(value: object, info: ValidationInfo) -> object:
    """A path or an address as it is meant: `~` is the home directory; absolute where the context is a `Base`."""
    if not isinstance(value, str | Path):
        return value  # Whatever it is, pydantic says that it is no path.
    path = str(value)
    if value == "":
        raise ValueError("an empty path; write null for none, or . for the working directory")
    if isinstance(value, str) and path.casefold() in NOTHING:
        raise ValueError(f"{path!r} as a path; write null without quotes for none, or ./{path} for what has this name")
    path = _ON_DISK.sub("", path)
    if "://" in path:
        return _address(path)
    if half := _HALF.match(path):  # To pathlib, a relative path.
        whole = f"{half[1]}://{path[half.end() :]}" if len(half[1]) > 1 else "that of the machine which opens it"
        raise ValueError(f"{path!r} is half an address, or a path of Windows; write {whole}, or its path from /")
    if _VARIABLE.search(path):
        raise ValueError(
            f"{path!r} holds a variable, which recipes do not know; write the path out, or give it as an override, "
            "where the shell fills it in"
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path!r}: nobody here has this home directory; write ./{path} for what has this name")
    _check_name(expanded)
    base = info.context
    if not isinstance(base, Base) or os.path.isabs(expanded):
        return expanded
    if base.directory is None:
        raise ValueError(f"{path!r} is relative, and {base.reason}")
    return os.path.normpath(base.directory / expanded)


def _check_name(path: str) -> None:
    """Makes sure that Python and Arrow, which always writes UTF-8, mean the same file by a name."""
    try:
        same = os.fsencode(path) == path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        same = False
    if not same:
        raise ValueError(
            f"{path!a} cannot be written in UTF-8 under this locale; set PYTHONUTF8=1, or a UTF-8 locale such as "
            "LC_ALL=C.UTF-8, in the environment"
        )


def _address(path: str) -> str:
    address = _STORE.match(path)
    if address and ("?" in path or address["password"]):
        variables = "AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        if address["scheme"] != "s3":
            variables = "GOOGLE_APPLICATION_CREDENTIALS, CLOUD_STORAGE_EMULATOR_ENDPOINT"
        raise ValueError(
            f"an address takes neither options (?...) nor a password: write {address['scheme']}://bucket/path, and set "
            f"{variables} in the environment that Ray is started in"
        )
    return path


def _root(value: object, info: ValidationInfo) -> object:
    return value if isinstance(value, str) and "://" in value else _checked(value, info)


def _text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _on_disk(value: object) -> object:
    if "://" in str(value):
        raise ValueError(f"{str(value)!r} is an address; name a directory on disk, such as one that all nodes mount")
    return value


DiskPath = Annotated[Path, BeforeValidator(_on_disk), BeforeValidator(_checked)]
"""A path on disk."""

Location = Annotated[str, BeforeValidator(_text), BeforeValidator(_checked)]
"""A file or a directory: a path on disk, or an address such as `s3://bucket/data`."""

Root = Annotated[str, BeforeValidator(_text), BeforeValidator(_root)]
"""The same, where an address may have options, such as the endpoint of a store of one's own."""
