"""Where a file of a known format ends, by its own structure, without decoding anything.

Each function takes the whole file and gives the position after its last byte, or None where the structure is cut off or
damaged: the decoder will say so. Walks are bounded, so that a file of many tiny parts costs no more than a second.
"""

from __future__ import annotations

import re
import struct

from pipeline.data.schema import Reason, RowError

MAX_PARTS = 2**18
"""Chunks, sub-blocks or pages of a file. At 64 MiB, those of real encoders are larger than this allows by far."""

MAX_IMAGE_FRAMES = 10_000
"""Of a moving picture. Only the first is decoded, but pages that show the file play them all."""


class TooManyParts(ValueError):
    """A file of more than `MAX_PARTS` parts."""


# After fill bytes the last 0xFF counts; a pattern that took them all would cost their number squared.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ENDLESS = 0x7FFFFF00
"""From here on a size stands for one that the recorder did not know."""
_JPEG_BARE = {0x01, *range(0xD0, 0xD8)}
_BOX_TYPE = re.compile(rb"[ -~\xa9][ -~]{3}")
_KNOWN_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"meta"}
_CHUNK_ID = re.compile(rb"[ -~]{4}")
_EBML_LIKE = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec")  # header, segment, void


def png_end(data: bytes) -> int | None:
    """After the chunk IEND; APNG frames are counted."""
    place = 8
    for _ in range(MAX_PARTS):
        if place + 12 > len(data):
            return None
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"acTL" and length >= 8:
            _check_frames(struct.unpack_from(">I", data, place + 8)[0])
        place += 12 + length
        if name == b"IEND":
            return place if place <= len(data) else None
    raise TooManyParts


def jpeg_end(data: bytes, start: int = 0) -> int | None:
    """After the marker EOI of the picture that begins at `start`."""
    place = start + 2
    for _ in range(MAX_PARTS):
        marker = _JPEG_MARKER.search(data, place)
        if marker is None:
            return None
        place, code = marker.end(), data[marker.end() - 1]
        if code == 0xD9:
            return place
        if code not in _JPEG_BARE:
            if place + 2 > len(data):
                return None
            place += struct.unpack_from(">H", data, place)[0]
    raise TooManyParts


def gif_end(data: bytes) -> int | None:
    """After the trailer; frames are counted."""
    if len(data) < 13:
        return None
    place = 13 + _colours(data[10])
    num_frames = num_parts = 0
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return place + 1
        if kind == 0x2C and place + 10 < len(data):
            num_frames += 1
            _check_frames(num_frames)
            place += 11 + _colours(data[place + 9])
        elif kind == 0x21:
            place += 2
        else:
            return None
        while place < len(data) and (length := data[place]):
            place += 1 + length
            num_parts += 1
            if num_parts > 4 * MAX_PARTS:  # of at most 255 bytes each
                raise TooManyParts
        place += 1
    return None


def _colours(flags: int) -> int:
    """Bytes of the colour table that GIF's flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def riff_end(data: bytes) -> int | None:
    """After the last chunk of a WAV, an AVI, a WebP or an AIFF; frames of a WebP are counted.

    Recorders that cannot seek leave the size at 0 or -1; tag editors append chunks and forget it. Both count as inside.
    """
    order = ">" if data[:4] in (b"FORM", b"RIFX") else "<"
    size = struct.unpack_from(order + "I", data, 4)[0] if len(data) >= 8 else 0
    end = 8 + size + size % 2
    if size in (0, 0xFFFFFFFF) or end >= len(data):
        end = len(data)
    if _samples_are_cut(data, order):
        return None
    if data[8:12] == b"WEBP":
        _check_frames(_count_chunks(data, end, b"ANMF"))
        return end
    for _ in range(MAX_PARTS):
        if end + 8 > len(data) or not _CHUNK_ID.match(data, end):
            return end
        length = struct.unpack_from(order + "I", data, end + 4)[0]
        if end + 8 + length > len(data):
            return end
        end += 8 + length + length % 2
    raise TooManyParts


def _samples_are_cut(data: bytes, order: str) -> bool:
    """Whether a WAV or an AIFF announces more samples than there are. Its decoder would not mind."""
    place = 12
    for _ in range(MAX_PARTS):
        if place + 8 > len(data):
            return False
        name, length = struct.unpack_from(order + "4sI", data, place)
        if name in (b"data", b"SSND"):
            return place + 8 + length > len(data) and length < _ENDLESS
        place += 8 + length + length % 2
    raise TooManyParts


def rf64_end(data: bytes) -> int | None:
    """Where the chunk ds64 says, or the header of a W64."""
    place, before = (20, 8) if data[:4] == b"RF64" else (16, 0)
    if len(data) < place + 8:
        return None
    size = struct.unpack_from("<Q", data, place)[0]
    end = len(data) if size in (0, 2**64 - 1) else before + size
    return end if end <= len(data) else None


def caf_end(data: bytes) -> int | None:
    """After the last chunk; samples of a length of -1 end the file."""
    place = 8
    for _ in range(MAX_PARTS):
        if place + 12 > len(data) or not _CHUNK_ID.match(data, place):
            return place if place <= len(data) else None
        size = struct.unpack_from(">q", data, place + 4)[0]
        if size < 0:
            return len(data) if size == -1 else None
        place += 12 + size
    raise TooManyParts


def au_end(data: bytes) -> int | None:
    """After the samples."""
    if len(data) < 24:
        return None
    offset, size = struct.unpack_from(">II", data, 4)
    end = len(data) if size >= _ENDLESS else offset + size
    return end if end <= len(data) else None


def _count_chunks(data: bytes, end: int, wanted: bytes) -> int:
    place = 12
    found = 0
    for _ in range(MAX_PARTS):
        if place + 8 > end:
            return found
        name, length = struct.unpack_from("<4sI", data, place)
        found += name == wanted
        place += 8 + length + length % 2
    raise TooManyParts


def bmp_end(data: bytes) -> int | None:
    """After the rows, or after the colour profile behind them. The size in the header is often wrong."""
    if len(data) < 54 or struct.unpack_from("<I", data, 14)[0] < 40:  # of OS/2
        return None
    offset, header, width, height, _, bits, compression, size = struct.unpack_from("<IIiiHHII", data, 10)
    if compression in (0, 3, 6):
        size = (abs(width) * bits + 31) // 32 * 4 * abs(height)
    end = offset + size
    if header >= 124 and len(data) >= 14 + 124:
        profile, length = struct.unpack_from("<II", data, 14 + 112)
        end = max(end, 14 + profile + length)
    return end if end <= len(data) else None


def boxes_end(data: bytes, start: int = 0) -> int | None:
    """After the last box of an MP4, a MOV or their kin."""
    place = start
    for _ in range(MAX_PARTS):
        if place + 8 > len(data):
            return place if place == len(data) else None
        size, name = struct.unpack_from(">I4s", data, place)
        if not _BOX_TYPE.match(name):
            return place
        if size == 1 and place + 16 <= len(data):
            size = struct.unpack_from(">Q", data, place + 8)[0]
        if size == 0:
            return len(data)
        if size < 8 or place + size > len(data):
            return None if name in _KNOWN_BOXES else place
        place += size
    raise TooManyParts


def ogg_end(data: bytes) -> int | None:
    """After the last page."""
    place = 0
    for _ in range(MAX_PARTS):
        if not data.startswith(b"OggS", place):
            return place if data.find(b"OggS", place) < 0 else None
        if place + 27 > len(data):
            return None
        num_segments = data[place + 26]
        segments = data[place + 27 : place + 27 + num_segments]
        place += 27 + num_segments + sum(segments)
        if place > len(data):
            return None
    raise TooManyParts


def ebml_end(data: bytes) -> int | None:
    """After the last top element of a Matroska or a WebM; a live recording's segment has no size, and ends the file."""
    place = 0
    for _ in range(MAX_PARTS):
        if not data.startswith(_EBML_LIKE, place):
            return place
        place += 1 if data[place] == 0xEC else 4
        if place >= len(data) or data[place] == 0:
            return None
        width = 9 - data[place].bit_length()
        size = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
        if size == (1 << 7 * width) - 1:
            return len(data)
        place += width + size
        if place > len(data):
            return None
    raise TooManyParts


def _check_frames(num_frames: int) -> None:
    if num_frames > MAX_IMAGE_FRAMES:
        raise RowError(Reason.TOO_MANY_FRAMES, f"a moving picture of over {MAX_IMAGE_FRAMES} frames")
