"""Decoding in a process of its own, so that a decoder that crashes, hangs or eats memory costs one row, not the job.

The parent trusts nothing that comes back: kind, shape, rate and size are checked against the bounds before a byte of
the array is read, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Self, cast

import numpy as np

from pipeline.config import MediaLimits
from pipeline.data.bounds import MAX_SAMPLING_RATE, ROUNDING_S, check_bytes
from pipeline.data.decoder_child import LENGTH_BYTES, MAX_DETAIL, MAX_HEADER_BYTES, Task, header_frame
from pipeline.data.film import sound_track
from pipeline.data.media import decode
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Video

START_S = 120.0
"""Longest that the process may take to start, on a machine that is busy."""

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""All that the process learns of its parent's environment: keys and tokens are none of its business."""


class Decoder:
    """Decodes media within `limits`, in one child process that lives as long as it behaves.

    The child starts with the first medium. With `limits.isolate_decoders` off there is none. Equal files give equal
    arrays either way. Pickled, it travels without its child.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self._child: _Child | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the child process, where one runs."""
        return self._child.process.pid if self._child else None

    def decode(self, medium: Medium) -> DecodedMedium:
        """Decodes a medium.

        Raises:
            RowError: what `pipeline.data.media.decode` raises, or the decoder crashed or took too long.
            RuntimeError: the child process does not start.
        """
        if not self.limits.isolate_decoders:
            return decode(medium, self.limits)
        decoded = self._ask(Task.DECODE, medium)
        assert decoded is not None  # checked with the header
        return decoded

    def sound_track(self, medium: Medium) -> Audio | None:
        """The sound track of a video, None where it has none. Raises what `decode` does."""
        if not self.limits.isolate_decoders:
            return sound_track(medium, self.limits)
        return cast(Audio | None, self._ask(Task.SOUND_TRACK, medium))

    def _ask(self, task: Task, medium: Medium) -> DecodedMedium | None:
        check_bytes(medium, self.limits)
        with self._lock:
            if self._child is None or not self._child.alive():
                self.close()
                self._child = _Child(self.limits)
            try:
                return self._child.ask(task, medium)
            except RowError as error:
                if error.reason in (Reason.DECODER_CRASHED, Reason.DECODER_TOO_SLOW):
                    self.close()
                raise
            except BaseException:  # an interrupt between two frames: what comes next would be misread
                self.close()
                raise

    def close(self) -> None:
        """Ends the child process. The next medium starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end half of the modules are gone
            self.close()

    def __reduce__(self) -> tuple[type[Decoder], tuple[MediaLimits]]:
        return type(self), (self.limits,)


class _Misread(Exception):
    """The child sent what the protocol does not know."""


class _Child:
    """The process, at the other end of a socket: its timeouts bound every read and write."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.data.decoder_child", limits.model_dump_json()],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
            )
        self._deadline = time.monotonic() + START_S
        try:
            self._header()
        except (ConnectionError, _Misread, TimeoutError) as error:
            end = self._end()
            self.kill()
            raise RuntimeError(f"the decoder process does not start: {end or repr(error)}; see its output") from None

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def ask(self, task: Task, medium: Medium) -> DecodedMedium | None:
        self._deadline = time.monotonic() + self.limits.max_decode_s
        what = f"{medium.kind.value} of {len(medium.data)} bytes"
        request = {"task": task.value, "kind": medium.kind.value, "num_bytes": len(medium.data)}
        try:
            self._socket.settimeout(self._left())
            self._socket.sendall(header_frame(request) + medium.data)
            return self._answer(task, medium.kind)
        except TimeoutError:
            detail = f"{what}; data.limits.max_decode_s is {self.limits.max_decode_s:g}"
            raise RowError(Reason.DECODER_TOO_SLOW, detail) from None
        except ConnectionError:
            raise RowError(Reason.DECODER_CRASHED, f"{what}: {self._end() or 'the decoder hung up'}") from None
        except _Misread as error:
            raise RowError(Reason.DECODER_CRASHED, f"{what}: the decoder sent {error}") from None

    def _answer(self, task: Task, kind: MediaKind) -> DecodedMedium | None:
        header, limits = self._header(), self.limits
        reason, sent, rate = (header.get(name) for name in ("reason", "kind", "rate"))
        shape: Any = header.get("shape")
        if isinstance(reason, str) and reason in set(Reason):
            raise RowError(Reason(reason), str(header.get("detail"))[:MAX_DETAIL])
        if task is Task.SOUND_TRACK:
            if sent is None and reason is None:
                return None
            kind = MediaKind.AUDIO
        is_known = reason is None and sent == kind.value
        match kind, shape, rate:
            case MediaKind.IMAGE, [int() as height, int() as width, 3], None:
                fits = height * width <= limits.max_pixels
            case MediaKind.AUDIO, [int() as length], int() if 0 < rate <= MAX_SAMPLING_RATE:
                fits = length <= (limits.max_seconds + ROUNDING_S) * rate
            case MediaKind.VIDEO, [int() as length, int() as height, int() as width, 3], float() if 0 < rate < math.inf:
                fits = length <= limits.max_frames and height * width <= limits.max_pixels
            case _:
                fits = False
        if not (is_known and fits and min(shape) > 0):
            raise _Misread(f"{str(reason or sent)[:40]!r} of shape {str(shape)[:80]} at {str(rate)[:40]}")
        dtype = np.dtype(np.float32 if kind is MediaKind.AUDIO else np.uint8)
        # No array is larger than the address space that the child had for it.
        if (num_bytes := math.prod(shape) * dtype.itemsize) > limits.max_decode_mib * 2**20:
            raise _Misread(f"an array of {num_bytes} bytes")
        array: Any = np.frombuffer(self._read(num_bytes), dtype).reshape(shape)
        match kind:
            case MediaKind.IMAGE:
                return Image(pixels=array)
            case MediaKind.AUDIO:
                if not np.abs(array).max() <= 1:  # so it is, too, where one is no number
                    raise _Misread("samples beyond 1")
                return Audio(samples=array, sampling_rate=cast(int, rate))
            case MediaKind.VIDEO:
                return Video(frames=array, frames_per_second=cast(float, rate))

    def _header(self) -> dict[str, Any]:
        num_bytes = int.from_bytes(self._read(LENGTH_BYTES), "big")
        if num_bytes > MAX_HEADER_BYTES:
            raise _Misread(f"a header of {num_bytes} bytes")
        try:
            header: object = json.loads(self._read(num_bytes))
        except (ValueError, RecursionError):
            raise _Misread("a header that is no JSON") from None
        if not isinstance(header, dict):
            raise _Misread("a header that is no object")
        return cast("dict[str, Any]", header)

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(self._left())  # one deadline over all parts: a slow drip cannot renew it
            if (num_read := self._socket.recv_into(rest)) == 0:
                raise ConnectionResetError
            rest = rest[num_read:]
        return data

    def _left(self) -> float:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def _end(self) -> str:
        """How the process ended, in words; empty if it has not."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ""
        if code >= 0:
            return f"the decoder exited with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the decoder was killed by {name}"
