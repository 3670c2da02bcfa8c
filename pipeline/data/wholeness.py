"""Whether a file is whole, by a walk over its parts.

Decoders pass over a hole in silence: they look for the next part behind it, and the film or the sound is shorter. On
the walk each part must begin where the one before it ends.
"""

from __future__ import annotations

import re
import zlib

from pipeline.data.inspection import format_of
from pipeline.data.schema import Reason, RowError

ENDLESS = 0x7F000000
"""From here on a size of 32 bits stands for one that the recorder did not know."""

_MAX_PARTS = 2**20
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_whole(data: bytes, reason: Reason) -> None:
    """Refuses an Ogg, a Matroska, an AVI or an FLV that was cut off, or that has a hole; others are not looked at."""
    found = format_of(data)
    if found is None or found.name not in _STEPS:
        return
    step, at, end = _STEPS[found.name], 0, 0
    try:
        for _ in range(_MAX_PARTS):
            # Behind its end a file may go on with another of its own; with anything else, it is padding or a tag.
            if at >= len(data) or (at >= end and not data.startswith(data[:4], at)):
                break
            behind, promised = step(data, at)
            if behind == at:
                break
            at, end = behind, max(end, promised)
    except IndexError:
        at = len(data) + 1
    if max(at, end) > len(data):
        raise RowError(reason, f"cut off: at least {max(at, end)} bytes are promised, the file holds {len(data)}")
    if at < end:
        raise RowError(reason, f"damaged: at byte {at} of {len(data)} nothing that can be read begins")


# Each: where the part at a place ends (the place itself: there is none), and how far the file goes on at least.


def _ogg(data: bytes, at: int) -> tuple[int, int]:
    if not data.startswith(b"OggS", at):
        return at, at
    body = at + 27 + data[at + 26]
    behind = body + sum(data[at + 27 : body])
    page = data[at : at + 22] + bytes(4) + data[at + 26 : behind]
    checksum = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF  # Ogg's begins with the other bit
    if behind <= len(data) and f"{checksum:032b}"[::-1] != f"{int.from_bytes(data[at + 22 : at + 26], 'little'):032b}":
        return at, at
    return behind, behind + (not data[at + 5] & 4)  # the flag of the last page


def _matroska(data: bytes, at: int) -> tuple[int, int]:
    place = at + 9 - data[at].bit_length()
    width = 9 - data[place].bit_length()
    if place > at + 4 or width > 8:
        return at, at
    name, body = data[at:place], place + width
    size = int.from_bytes(data[place:body], "big") & ((1 << 7 * width) - 1)
    behind = len(data) if size == (1 << 7 * width) - 1 else body + size
    if name in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):  # a segment and its clusters are walked through
        return body, behind if name[0] == 0x18 else body
    return behind, behind + (name == b"\x1a\x45\xdf\xa3")


def _avi(data: bytes, at: int) -> tuple[int, int]:
    name, size, form = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little"), data[at + 8 : at + 12]
    behind = at + 8 + size
    behind += size % 2 and behind < len(data)
    if name == b"RIFF" or form in (b"movi", b"rec "):
        return at + 12, behind if 0 < size < ENDLESS else len(data)
    return (behind, behind) if re.fullmatch(rb"[ -~]{4}", name) else (at, at)


def _flv(data: bytes, at: int) -> tuple[int, int]:
    if at == 0:
        return 13, len(data)
    return (at + 15 + int.from_bytes(data[at + 1 : at + 4], "big") if data[at] & 31 in (8, 9, 18) else at), 0


_STEPS = {"Ogg": _ogg, "WebM": _matroska, "Matroska (MKV)": _matroska, "AVI": _avi, "FLV": _flv}
