"""What a file truly is, before any decoder sees it: of one format that we take, and of no other at the same time.

A picture that is also an archive, a page or a program is harmless here and dangerous where it is shown or stored next.
So a file must begin with the mark of a format that we take, hold no mark of another kind of file where readers look for
it, and end where its format ends. What real devices append is let through:

- padding: zeros, 0xFF, white space (cards and servers round sizes up);
- behind a JPEG: more JPEGs (gain maps, stereo and burst pictures), the MP4 of a motion photo whose metadata names it,
  the trailers of Samsung and Canon;
- behind sounds: ID3v1, APE and Lyrics3 tags; behind an MP4: the trailer of 360-degree cameras.

Formats whose files do not know their length (FLAC, MP3, TIFF, MPEG streams) are searched for marks only.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from pipeline.data.file_ends import (
    MAX_PARTS,
    TooManyParts,
    au_end,
    bmp_end,
    boxes_end,
    caf_end,
    ebml_end,
    gif_end,
    jpeg_end,
    ogg_end,
    png_end,
    rf64_end,
    riff_end,
)
from pipeline.data.schema import Reason, RowError
from pipeline.records import MediaKind, Medium

CORRUPT = {
    MediaKind.IMAGE: Reason.CORRUPT_IMAGE,
    MediaKind.AUDIO: Reason.CORRUPT_AUDIO,
    MediaKind.VIDEO: Reason.CORRUPT_VIDEO,
}
"""Why a file of a kind is refused that cannot be decoded."""

EDGE_BYTES = 4_096
"""How far from either end markup is looked for: browsers and servers look less far."""


@dataclass(frozen=True)
class Format:
    """A format by the mark at its beginning; `end` as in `pipeline.data.file_ends`."""

    name: str
    kind: MediaKind
    mark: re.Pattern[bytes]
    end: Callable[[bytes], int | None] | None = None
    is_coded: bool = False
    """Whether nothing in the format could end in a line of text."""


def _mark(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


FORMATS = (
    Format("PNG", MediaKind.IMAGE, _mark(rb"\x89PNG\r\n\x1a\n"), png_end),
    Format("JPEG", MediaKind.IMAGE, _mark(rb"\xff\xd8\xff"), jpeg_end),
    Format("GIF", MediaKind.IMAGE, _mark(rb"GIF8[79]a"), gif_end),
    Format("WebP", MediaKind.IMAGE, _mark(rb"RIFF.{4}WEBP"), riff_end),
    Format("BMP", MediaKind.IMAGE, _mark(rb"BM"), bmp_end),
    Format("TIFF", MediaKind.IMAGE, _mark(rb"II[*+]\0|MM\0[*+]")),
    Format("WAV", MediaKind.AUDIO, _mark(rb"RIFF.{4}WAVE"), riff_end),
    Format("WAV (64 bits)", MediaKind.AUDIO, _mark(rb"RF64.{4}WAVE|riff\x2e\x91\xcf\x11"), rf64_end),
    Format("WAV (big endian)", MediaKind.AUDIO, _mark(rb"RIFX.{4}WAVE"), riff_end),
    Format("FLAC", MediaKind.AUDIO, _mark(rb"fLaC"), is_coded=True),
    Format("Ogg", MediaKind.AUDIO, _mark(rb"OggS"), ogg_end),
    Format("MP3", MediaKind.AUDIO, _mark(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]"), is_coded=True),
    Format("AIFF", MediaKind.AUDIO, _mark(rb"FORM.{4}AIF[FC]"), riff_end),
    Format("AU", MediaKind.AUDIO, _mark(rb"\.snd"), au_end),
    Format("NIST Sphere", MediaKind.AUDIO, _mark(rb"NIST_1A\n")),
    Format("CAF", MediaKind.AUDIO, _mark(rb"caff\0\x01"), caf_end),
    Format("MP4", MediaKind.VIDEO, _mark(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|styp|moof)"), boxes_end),
    Format("Matroska", MediaKind.VIDEO, _mark(rb"\x1a\x45\xdf\xa3"), ebml_end),
    Format("AVI", MediaKind.VIDEO, _mark(rb"RIFF.{4}AVI "), riff_end),
    Format("FLV", MediaKind.VIDEO, _mark(rb"FLV\x01")),
    Format("Ogg", MediaKind.VIDEO, _mark(rb"OggS"), ogg_end),
    Format("MPEG stream", MediaKind.VIDEO, _mark(rb"\0\0\x01[\xb3\xba]|(.{4})?\x47.{187,191}\x47"), is_coded=True),
)

_MARKUP = re.compile(
    rb"<(\?php|script[\s>]|html[\s>]|!doctype\s+html|body[\s>]|iframe[\s>]|svg[\s>]|xsl:stylesheet[\s>])", re.IGNORECASE
)
_PADDING = re.compile(rb"(?:[\0 \t\r\n]|\xff(?!\xd8))*")
_PRINTABLE = re.compile(rb"[ -~\t\r\n]{48}")
_FOREIGN = (
    # name, mark, positions at which readers look for it
    ("a PDF", b"%PDF-", 0, 1_024),
    ("a tar archive", b"ustar", 257, 262),
    ("a DICOM file", b"DICM", 128, 132),
    ("an RAR archive", b"Rar!\x1a\x07", 0, 2**20),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c", 0, 2**20),
    ("a CD image", b"CD001", 32_769, 32_774),
)
_CAMERA_360 = b"8db42d694ccc418790edff439fe026bf"


def check_file(medium: Medium) -> None:
    """Looks at a file's beginning, its end and what lies between them where other readers look.

    Raises:
        RowError: `svg`, `polyglot`, or corrupt: of no format that is taken for its kind.
    """
    data, kind = medium.data, medium.kind
    found = next((each for each in FORMATS if each.kind is kind and each.mark.match(data)), None)
    if found is None:
        raise _unknown(data, kind)
    _check_foreign(data, found)
    if found.end is not None:
        try:
            end = found.end(data)
        except TooManyParts:
            raise RowError(CORRUPT[kind], f"a {found.name} of over {MAX_PARTS} parts") from None
        if end is None and kind is MediaKind.AUDIO:  # whose decoders take what there is
            raise RowError(CORRUPT[kind], f"a {found.name} that is cut off or damaged")
        if end is not None and not _is_harmless(data, end, found):
            raise RowError(Reason.POLYGLOT, f"{len(data) - end} bytes behind the end of a {found.name}")
    elif found.is_coded and _ends_in_text(_without_tags(data)):
        raise RowError(Reason.POLYGLOT, f"text behind the end of a {found.name}")


def _unknown(data: bytes, kind: MediaKind) -> RowError:
    head = _text_head(data)
    if re.search(rb"<svg[\s>]|<!doctype\s+svg", head, re.IGNORECASE):
        return RowError(Reason.SVG, "a vector picture is a program that draws; render it first")
    if head.lstrip()[:1] == b"<":
        return RowError(CORRUPT[kind], "markup")
    other = next((each.name for each in FORMATS if each.mark.match(data)), None)
    names = ", ".join(dict.fromkeys(each.name for each in FORMATS if each.kind is kind))
    return RowError(CORRUPT[kind], f"{other or 'no format that is known'}: none of {names}")


def _text_head(data: bytes) -> bytes:
    """The beginning as text without byte order mark, unpacked where it is gzip (SVGZ) and narrowed where UTF-16."""
    head = data[:EDGE_BYTES]
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, EDGE_BYTES)
        except zlib.error:
            return b""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.replace(b"\0", b"")[2:]
    return head.removeprefix(b"\xef\xbb\xbf")


def _check_foreign(data: bytes, found: Format) -> None:
    for name, mark, first, last in _FOREIGN:
        if data.find(mark, first, last) >= 0:
            raise RowError(Reason.POLYGLOT, f"a {found.name} that is also {name}")
    if found.kind is not MediaKind.VIDEO and data[4:8] == b"ftyp":
        raise RowError(Reason.POLYGLOT, f"a {found.name} that is also an MP4")
    if _holds_zip(data):
        raise RowError(Reason.POLYGLOT, f"a {found.name} that is also a ZIP archive")
    markup = _MARKUP.search(data[:EDGE_BYTES]) or _MARKUP.search(data[-EDGE_BYTES:])
    if markup:
        raise RowError(Reason.POLYGLOT, f"a {found.name} that holds {markup[0].decode(errors='replace')!r}")


def _holds_zip(data: bytes) -> bool:
    """Whether an archive's end record lies where ZIP readers look, with a directory before it.

    The four letters alone turn up by chance once in 65,000 files.
    """
    place = len(data)
    while (place := data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557), place)) >= 0:
        if place + 22 <= len(data):
            size = struct.unpack_from("<I", data, place + 12)[0]
            if data[place - size : place - size + 4] == b"PK\x01\x02":
                return True
    return False


def _ends_in_text(data: bytes) -> bool:
    return bool(_PRINTABLE.fullmatch(data[-48:])) and len(set(data[-48:])) > 12  # encoders fill up with a letter or two


def _is_harmless(data: bytes, end: int, found: Format) -> bool:
    end = _after_padding(data, end)
    if found.name == "JPEG":
        end = _after_more_pictures(data, end)
        tail = data[end:]
        if tail.startswith(b"CANON OPTIONAL DATA\0") or (tail.endswith(b"SEFT") and b"SEFH" in tail[-65_536:]):
            return True
    if found.kind is MediaKind.AUDIO:
        return end >= len(_without_tags(data))
    return end == len(data) or (found.name == "MP4" and data.endswith(_CAMERA_360))


def _after_padding(data: bytes, place: int) -> int:
    return cast("re.Match[bytes]", _PADDING.match(data, place)).end()


def _after_more_pictures(data: bytes, place: int) -> int:
    """After further JPEGs, and after the MP4 of a motion photo that the first picture's metadata announces."""
    announced = any(word in data[:65_536] for word in (b"MotionPhoto", b"MicroVideo"))
    for _ in range(64):
        if data.startswith(b"\xff\xd8\xff", place):
            end = jpeg_end(data, place)
        elif announced and (name := data.find(b"ftyp", place, place + 8)) >= 4:  # its size may pass for padding
            end = boxes_end(data, name - 4)
        else:
            break
        if end is None:
            break
        place = _after_padding(data, end)
    return place


def _without_tags(data: bytes) -> bytes:
    """A sound without the tags that players and shops append."""
    for _ in range(4):
        if data[-128:-125] == b"TAG":
            data = data[:-128]
        elif data[-32:-24] == b"APETAGEX":
            size = struct.unpack_from("<I", data, len(data) - 20)[0]
            data = data[: max(0, len(data) - size - 32)]  # with its header, if it has one
        elif data.endswith((b"LYRICS200", b"LYRICSEND")):
            data = data[: max(0, data.rfind(b"LYRICSBEGIN"))]
        else:
            break
    return data
