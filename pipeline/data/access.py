"""Bytes of media that a row names by path or address, from where the config allows and from nowhere else.

What is allowed: files below the directory of the source and below `data.access.roots`, after links are resolved;
objects below the roots that are addresses (`s3://`, `gs://`, whatever fsspec knows); `http` and `https` from
`data.access.hosts`; `data:` addresses. A row's own words never choose a file system, its options or its credentials:
the root does.

A relative path is looked for below the directory of the source first, then below each root in its order.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import ssl
import stat
import sys
from collections.abc import Callable
from functools import cached_property
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from pyarrow import fs

from pipeline.config import Access, MediaLimits
from pipeline.data.fetching import fetch, short, too_large
from pipeline.data.filesystems import filesystem
from pipeline.data.schema import Reason, RowError

MAX_ADDRESS = 4_096
"""Characters of a path or an address, as Linux has it; `data:` addresses are bounded by `limits.max_bytes`."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file|data):", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\")
"""A drive, a share, or the top of a drive."""
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


class Reader:
    """Reads media for one source.

    Args:
        base: the directory of the source, local or an address: where relative paths are looked for first, and a root
            itself.
    """

    def __init__(self, access: Access, limits: MediaLimits, base: str) -> None:
        self._access, self._limits = access, limits
        self._base = base.rstrip("/") if _is_remote(base) else _real(base)
        roots = (self._base, *access.roots)
        self._roots = list(dict.fromkeys(root.rstrip("/") if _is_remote(root) else _real(root) for root in roots))
        self._local_roots = [root for root in self._roots if not _is_remote(root)]
        self._stores: dict[str, tuple[fs.FileSystem, str]] = {}

    def __reduce__(self) -> tuple[type[Reader], tuple[Access, MediaLimits, str]]:
        return type(self), (self._access, self._limits, self._base)

    def read(self, path_or_uri: str) -> bytes:
        """The bytes of a medium.

        Raises:
            RowError: not allowed, not found, too large, not a path or an address, or it could not be fetched.
        """
        address = _checked_type(path_or_uri)
        scheme = _scheme(address)
        if scheme == "data":
            return _inline(address, self._limits)
        if scheme == "" and not _WINDOWS.match(address):
            address = address.replace("\\", "/")  # a table that was made on Windows
        _check_words(address)
        if scheme in ("http", "https"):
            return fetch(address, access=self._access, limits=self._limits, tls=self._tls)
        if scheme in ("", "file"):
            path = _local(address)
            return self._file(path) if path.startswith("/") else self._relative(path)
        return self._object(address)

    def _relative(self, path: str) -> bytes:
        _check_parts(path)
        for root in self._roots:
            try:
                if _is_remote(root):
                    return self._from_store(root, path, f"{_without_secrets(root)}/{path}")
                return self._file(os.path.join(root, path))
            except RowError as error:
                if error.reason is not Reason.NOT_FOUND:
                    raise
        places = ", ".join(map(_without_secrets, self._roots))
        cure = self._packed or "data.access.roots names more places to look in"
        raise RowError(Reason.NOT_FOUND, f"{short(path)} lies below none of {places}; {cure}")

    @cached_property
    def _packed(self) -> str | None:
        """What to say where the files that are missed may lie in an archive."""
        for root in filter(os.path.isdir, self._local_roots):
            if found := sorted(name for name in os.listdir(root) if name.lower().endswith(_ARCHIVES)):
                return f"unpack {root}/{found[0]}: media inside archives are not found by their paths"
        return None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _file(self, path: str) -> bytes:
        _check_parts(path)
        try:
            # Without reading rights first: that opens no device and wakes no pipe.
            found = os.open(path, getattr(os, "O_PATH", os.O_NONBLOCK) | os.O_CLOEXEC)
        except OSError as error:
            raise _os_refusal(path, error) from None
        except UnicodeEncodeError:
            detail = f"{short(path)} cannot be spelt in this locale; set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
            raise RowError(Reason.BAD_ADDRESS, detail) from None
        try:
            return self._opened(found, path)
        except OSError as error:
            raise _os_refusal(path, error) from None
        finally:
            os.close(found)

    def _opened(self, found: int, path: str) -> bytes:
        # What is open is checked, not what the path might lead to by now.
        real = os.readlink(f"/proc/self/fd/{found}") if sys.platform == "linux" else os.path.realpath(path)
        if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in self._local_roots):
            where = "is" if os.path.abspath(path) == real else f"leads to {short(real)}, which is"
            raise RowError(
                Reason.OUTSIDE_ROOTS, f"{short(path)} {where} none of the source's directory, nor of {self._allowed}"
            )
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise RowError(Reason.BAD_ADDRESS, f"{short(path)} is no file but {_file_type(status.st_mode)}")
        if status.st_size > self._limits.max_bytes:
            raise too_large(path, status.st_size, self._limits)
        same = f"/proc/self/fd/{found}" if sys.platform == "linux" else real
        with open(os.open(same, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return _bounded(file.read, path, self._limits)

    @property
    def _allowed(self) -> str:
        return f"data.access.roots={[_without_secrets(root) for root in self._access.roots]}"

    def _object(self, address: str) -> bytes:
        if "?" in address or "#" in address or "@" in address.split("/")[2]:
            raise RowError(Reason.BAD_ADDRESS, f"{short(address)} has options or a user")
        _check_parts(address)
        for root in filter(_is_remote, self._roots):
            prefix = _without_secrets(root) + "/"
            if address.startswith(prefix):
                return self._from_store(root, address.removeprefix(prefix), address)
        raise RowError(Reason.OUTSIDE_ROOTS, f"{short(address)} lies below none of {self._allowed}")

    def _from_store(self, root: str, rest: str, address: str) -> bytes:
        try:
            if root not in self._stores:
                place, _, options = (root, "", "") if root == self._base else root.partition("?")
                self._stores[root] = filesystem(place, options)
            files, root_path = self._stores[root]
            info = files.get_file_info(f"{root_path.rstrip('/')}/{rest}")
            if info.type == fs.FileType.NotFound:
                raise FileNotFoundError
            if info.type != fs.FileType.File:
                raise RowError(Reason.BAD_ADDRESS, f"{short(address)} is no file")
            if (info.size or 0) > self._limits.max_bytes:
                raise too_large(address, info.size, self._limits)
            with files.open_input_stream(info.path) as file:
                return _bounded(file.read, address, self._limits)
        except RowError:
            raise
        except FileNotFoundError:
            raise RowError(Reason.NOT_FOUND, short(address)) from None
        except Exception as error:  # each store has errors of its own
            raise RowError(Reason.FETCH_FAILED, f"{short(address)}: {type(error).__name__}: {error}"[:1_000]) from None


def _checked_type(address: object) -> str:
    """Columns of strangers hold all sorts of things."""
    if not isinstance(address, str):
        raise RowError(Reason.WRONG_TYPE, f"a path of type {type(address).__name__}")
    return address


def _scheme(address: str) -> str:
    found = _SCHEME.match(address)
    return (found[1] or found[2]).lower() if found else ""


def _is_remote(root: str) -> bool:
    return _scheme(root) not in ("", "file")


def _real(root: str) -> str:
    return os.path.realpath(_local(root))


def _without_secrets(root: str) -> str:
    """A root as rows write it: without options and without a user."""
    return re.sub(r"^([A-Za-z0-9+.-]+://)[^/@]*@", r"\1", root.partition("?")[0].rstrip("/"))


def _local(address: str) -> str:
    """The path of a plain path or of a `file:` address."""
    if _scheme(address) != "file":
        return address
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)}: {error}") from None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)}: a file: address names a path on this host and no more")
    path = unquote(parts.path, errors="surrogateescape")
    _check_words(path)
    return path


def _check_words(address: str) -> None:
    if not address:
        raise RowError(Reason.BAD_ADDRESS, "an empty path")
    if len(address) > MAX_ADDRESS:
        raise RowError(
            Reason.BAD_ADDRESS, f"{short(address)} has {len(address)} characters; {MAX_ADDRESS} are the most"
        )
    if _CONTROL.search(address):
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)} holds control characters")
    if _WINDOWS.match(address) or "\\" in address:
        cure = "write it relative to the table or to one of data.access.roots, such as images/1.png"
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)} is a path of Windows; {cure}")


def _check_parts(path: str) -> None:
    if ".." in path.split("/"):
        raise RowError(
            Reason.OUTSIDE_ROOTS, f"{short(path)} climbs with '..'; write it relative to one of data.access.roots"
        )


def _os_refusal(path: str, error: OSError) -> RowError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return RowError(Reason.NOT_FOUND, short(path))
    bad = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return RowError(Reason.BAD_ADDRESS if bad else Reason.FETCH_FAILED, f"{short(path)}: {error.strerror}")


def _file_type(mode: int) -> str:
    names = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


def _bounded(read: Callable[[int], bytes], address: str, limits: MediaLimits) -> bytes:
    data = read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:  # grew since its size was asked
        raise too_large(address, len(data), limits)
    return data


def _inline(address: str, limits: MediaLimits) -> bytes:
    """The bytes of a `data:` address."""
    head, comma, body = address.partition(",")
    if not comma:
        raise RowError(Reason.BAD_ADDRESS, f"{short(address)}: a data: address without a comma")
    if len(body) > limits.max_bytes * 4:  # four characters a byte: base64 takes 4/3, percent-encoded three times that
        raise too_large(address, len(body) // 4, limits)
    if not head.lower().rstrip().endswith(";base64"):
        data = unquote_to_bytes(body.encode(errors="replace"))
    else:
        try:
            data = base64.b64decode(unquote_to_bytes(body.encode(errors="replace")), validate=True)
        except binascii.Error as error:
            raise RowError(Reason.BAD_ADDRESS, f"{short(address)}: {error}") from None
    if len(data) > limits.max_bytes:
        raise too_large(address, len(data), limits)
    return data
