"""The process in which media are decoded: reads files from its standard input, writes arrays to its standard output.

A frame is four bytes (big endian), the length of a JSON header, then the header, then as many bytes as it says. The
process holds no credentials and no handles of its parent, writes no files, and ends when its parent does.
It imports the decoders and nothing heavier: it starts in about a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as pillow

from pipeline.config import MediaLimits
from pipeline.data.film import sound_track
from pipeline.data.media import decode, flat
from pipeline.data.schema import RowError
from pipeline.records import MediaKind, Medium

LENGTH_BYTES = 4
MAX_HEADER_BYTES = 2**16
MAX_DETAIL = 2_000
"""Characters of a refusal's detail: file names and tags in it are a stranger's."""

_BUFFER_BYTES = 2**17
"""A picture of a common size, and what is said of it, go in one piece."""
_GRACE_S = 5.0
_PR_SET_NO_NEW_PRIVS = 38


class Task(StrEnum):
    """What is asked for."""

    DECODE = "decode"
    SOUND_TRACK = "sound_track"


def header_frame(header: Mapping[str, Any]) -> bytes:
    """A header with its length before it."""
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded


def main(limits: MediaLimits) -> None:
    """Answers request after request until the parent closes the pipe.

    While one is answered an alarm runs that ends the process whatever it does, a little after the parent would have:
    the parent may be gone. Linux could tell (PR_SET_PDEATHSIG), but takes the end of the thread that started this
    process for the end of the parent.
    """
    _stand_apart()
    requests, answers = os.fdopen(os.dup(0), "rb", _BUFFER_BYTES), os.fdopen(os.dup(1), "wb", _BUFFER_BYTES)
    pillow.init()
    _confine(limits)
    answers.write(header_frame({"ready": True}))
    answers.flush()
    # What decoders print must not lie between frames, nor in the log: it is a stranger's text.
    with open(os.devnull, "r+b") as nowhere:
        for stream in (0, 1, 2):
            os.dup2(nowhere.fileno(), stream)
    while len(length := requests.read(LENGTH_BYTES)) == LENGTH_BYTES:
        request = json.loads(requests.read(int.from_bytes(length, "big")))
        medium = Medium(MediaKind(request["kind"]), requests.read(request["num_bytes"]))
        signal.setitimer(signal.ITIMER_REAL, limits.max_decode_s + _GRACE_S)
        _answer(Task(request["task"]), medium, limits, answers)
        answers.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stand_apart() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe when it is interrupted
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _confine(limits: MediaLimits) -> None:
    bounds = {
        resource.RLIMIT_AS: limits.max_decode_mib * 2**20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # pipes are no files
    }
    for kind, bound in bounds.items():
        with suppress(ValueError, OSError):  # the machine's own limit is lower, or it knows none of this kind
            resource.setrlimit(kind, (bound, bound))


def _answer(task: Task, medium: Medium, limits: MediaLimits, answers: BinaryIO) -> None:
    try:
        made = decode(medium, limits) if task is Task.DECODE else sound_track(medium, limits)
    except RowError as error:
        answers.write(header_frame({"reason": error.reason.value, "detail": error.detail[:MAX_DETAIL]}))
        return
    if made is None:
        answers.write(header_frame({"kind": None}))
        return
    kind, array, rate = flat(made)
    answers.write(header_frame({"kind": kind.value, "shape": array.shape, "rate": rate}))
    answers.write(np.ascontiguousarray(array).data.cast("B"))


if __name__ == "__main__":
    main(MediaLimits.model_validate_json(sys.argv[1]))
