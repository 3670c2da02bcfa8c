"""Decoding in a process of its own, so that a decoder that crashes, hangs or eats memory costs one row, not the job.

The parent trusts nothing that comes back: kind, shape, rate and size are checked against the bounds before a byte of
the array is read, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
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

_CHUNK_BYTES = 2**20


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


class _Gone(Exception):
    """The child closed its end of a pipe."""


class _Misread(Exception):
    """The child sent what the protocol does not know."""


class _Child:
    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.data.decoder_child", limits.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        for stream in (self._requests, self._answers):
            os.set_blocking(stream, False)
            _widen(stream)
        try:
            self._header(time.monotonic() + START_S)
        except (_Gone, _Misread, TimeoutError) as error:
            self.kill()
            raise RuntimeError(
                f"the decoder process does not start: {self._end() or error!r}; see its output"
            ) from None

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def ask(self, task: Task, medium: Medium) -> DecodedMedium | None:
        deadline = time.monotonic() + self.limits.max_decode_s
        what = f"{medium.kind.value} of {len(medium.data)} bytes"
        header = {"task": task.value, "kind": medium.kind.value, "num_bytes": len(medium.data)}
        try:
            self._send(header_frame(header), deadline)
            self._send(medium.data, deadline)
            return self._receive(medium.kind if task is Task.DECODE else MediaKind.AUDIO, task, deadline)
        except TimeoutError:
            detail = f"{what}; data.limits.max_decode_s is {self.limits.max_decode_s:g}"
            raise RowError(Reason.DECODER_TOO_SLOW, detail) from None
        except _Gone:
            raise RowError(Reason.DECODER_CRASHED, f"{what}: {self._end() or 'the decoder hung up'}") from None
        except _Misread as error:
            raise RowError(Reason.DECODER_CRASHED, f"{what}: the decoder sent {error}") from None

    def _receive(self, kind: MediaKind, task: Task, deadline: float) -> DecodedMedium | None:
        header = self._header(deadline)
        if "reason" in header:
            raise _refusal(header)
        if header.get("kind") is None and task is Task.SOUND_TRACK:
            return None
        if header.get("kind") != kind.value:
            raise _Misread(f"the kind {str(header.get('kind'))[:40]!r} for {kind.value!r}")
        shape, rate = _shape(header), header.get("rate")
        match kind:
            case MediaKind.IMAGE:
                _expect(len(shape) == 3 and shape[2] == 3, f"pixels {shape}")
                _expect(shape[0] * shape[1] <= self.limits.max_pixels, f"pixels {shape}")
                return Image(pixels=self._array(shape, np.uint8, deadline))
            case MediaKind.AUDIO:
                _expect(len(shape) == 1 and type(rate) is int and 0 < rate <= MAX_SAMPLING_RATE, f"{shape} at {rate}")
                _expect(
                    shape[0] <= (self.limits.max_seconds + ROUNDING_S) * cast(int, rate),
                    f"samples {shape} at {rate} Hz",
                )
                samples = self._array(shape, np.float32, deadline)
                _expect(bool(np.abs(samples).max() <= 1), "samples beyond 1")  # false where one is no number
                return Audio(samples=samples, sampling_rate=cast(int, rate))
            case MediaKind.VIDEO:
                _expect(len(shape) == 4 and shape[3] == 3, f"frames {shape}")
                _expect(shape[0] <= self.limits.max_frames, f"frames {shape}")
                _expect(shape[1] * shape[2] <= self.limits.max_pixels, f"frames {shape}")
                _expect(type(rate) is float and 0 < rate < math.inf, f"{rate} frames a second")
                return Video(frames=self._array(shape, np.uint8, deadline), frames_per_second=cast(float, rate))

    def _array(self, shape: tuple[int, ...], dtype: type[Any], deadline: float) -> np.ndarray[Any, Any]:
        # No array is larger than the address space that the child had for it.
        _expect(math.prod(shape) * np.dtype(dtype).itemsize <= self.limits.max_decode_mib * 2**20, f"shape {shape}")
        array = np.empty(shape, dtype)
        self._fill(array.data.cast("B"), deadline)
        return array

    def _header(self, deadline: float) -> dict[str, Any]:
        length = bytearray(LENGTH_BYTES)
        self._fill(memoryview(length), deadline)
        num_bytes = int.from_bytes(length, "big")
        _expect(num_bytes <= MAX_HEADER_BYTES, f"a header of {num_bytes} bytes")
        encoded = bytearray(num_bytes)
        self._fill(memoryview(encoded), deadline)
        try:
            header: object = json.loads(encoded)
        except (ValueError, RecursionError):
            raise _Misread("a header that is no JSON") from None
        _expect(isinstance(header, dict), "a header that is no object")
        return cast("dict[str, Any]", header)

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._requests, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests, rest[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _Gone from None

    def _fill(self, rest: memoryview, deadline: float) -> None:
        while rest:
            _wait(self._answers, select.POLLIN, deadline)
            try:
                num_read = os.readv(self._answers, [rest])
            except BlockingIOError:
                continue
            if num_read == 0:
                raise _Gone
            rest = rest[num_read:]

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


def _widen(pipe: int) -> None:
    """A larger buffer: arrays of many megabytes pass in fewer turns."""
    import fcntl

    with suppress(AttributeError, OSError):  # not on every system, nor for every user
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)


def _wait(stream: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(stream, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        raise TimeoutError


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise _Misread(otherwise)


def _shape(header: Mapping[str, Any]) -> tuple[int, ...]:
    shape = header.get("shape")
    _expect(isinstance(shape, list) and 0 < len(shape) <= 4, "no shape")
    sides = cast("list[Any]", shape)
    _expect(all(type(side) is int and 0 < side < 2**40 for side in sides), "a shape of other things than sizes")
    return tuple(sides)


def _refusal(header: Mapping[str, Any]) -> RowError:
    reason = header["reason"]
    _expect(isinstance(reason, str) and reason in set(Reason), f"the reason {str(reason)[:40]!r}")
    return RowError(Reason(reason), str(header.get("detail"))[:MAX_DETAIL])
