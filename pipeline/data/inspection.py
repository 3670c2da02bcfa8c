"""What a file truly is, before any decoder sees it: by the mark at its beginning, whatever its name says.

A file must be of a format that is taken for its kind; what is of another is named, with what to do. And it must be
nothing else at the same time: a picture that is also an archive, a page or a program is harmless here and dangerous
where it is unpacked or shown next. Only marks are looked for, where readers of those formats look. What lies behind the
end of a file (padding, tags, the film of a motion photo) reaches no decoder, and is nobody's concern.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from pipeline.data.schema import Reason, RowError
from pipeline.records import MediaKind, Medium

EDGE_BYTES = 4_096
"""How far from either end markup is looked for: browsers and servers look less far."""

_IMAGE, _AUDIO, _VIDEO = MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO
_CURES = {
    _IMAGE: "convert it to PNG or JPEG",
    _AUDIO: "convert it to FLAC or WAV (ffmpeg -i FILE out.flac)",
    _VIDEO: "convert it to MP4 (ffmpeg -i FILE out.mp4)",
}

_MOVING = ("GIF", "PNG", "WebP", "AVIF")
"""Pictures that may move."""


@dataclass(frozen=True)
class Format:
    """A format by the mark at its beginning, the kinds of media that it is taken for, and usual ends of its names."""

    name: str
    mark: re.Pattern[bytes]
    kinds: tuple[MediaKind, ...] = ()
    suffixes: tuple[str, ...] = ()
    cure: str = ""
    """What to do with a file of a format that is taken for nothing, where converting is not it."""


def _format(name: str, mark: bytes, kinds: tuple[MediaKind, ...] = (), suffixes: str = "", cure: str = "") -> Format:
    return Format(name, re.compile(mark, re.DOTALL), kinds, tuple(suffixes.split()), cure)


FORMATS = (
    _format("PNG", rb"\x89PNG\r\n\x1a\n", (_IMAGE,), "png"),
    _format("JPEG", rb"\xff\xd8\xff", (_IMAGE,), "jpg jpeg jfif jpe"),
    _format("WebP", rb"RIFF.{4}WEBP", (_IMAGE,), "webp"),
    _format("GIF", rb"GIF8[79]a", (_IMAGE,), "gif"),
    _format("BMP", rb"BM", (_IMAGE,), "bmp"),
    _format("camera raw (CR2)", rb"II\*\0.{4}CR", cure=_CURES[_IMAGE]),
    _format("TIFF", rb"II[*+]\0|MM\0[*+]", (_IMAGE,), "tif tiff"),
    _format("AVIF", rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,12}?avi[fs])", (_IMAGE,), "avif"),
    _format("WAV", rb"RIFF.{4}WAVE", (_AUDIO,), "wav wave"),
    _format("FLAC", rb"fLaC", (_AUDIO,), "flac"),
    _format("MP3", rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]", (_AUDIO,), "mp3"),
    _format("Ogg", rb"OggS", (_AUDIO, _VIDEO), "ogg oga opus ogv"),
    _format("M4A", rb".{4}ftyp(M4[AB] |F4A )", (_AUDIO,), "m4a m4b"),
    _format("WAV (64 bits)", rb"RF64.{4}WAVE|riff\x2e\x91\xcf\x11", (_AUDIO,), "rf64 w64"),
    _format("WAV (big endian)", rb"RIFX.{4}WAVE", (_AUDIO,), "rifx"),
    _format("AIFF", rb"FORM.{4}AIF[FC]", (_AUDIO,), "aiff aif aifc"),
    _format("AU", rb"\.snd", (_AUDIO,), "au snd"),
    _format("CAF", rb"caff\0\x01", (_AUDIO,), "caf"),
    _format("NIST Sphere", rb"NIST_1A\n", (_AUDIO,), "sph"),
    _format("HEIC", rb".{4}ftyp(hei[cxms]|hev[cxms]|m[is]f1)", cure="convert it to JPEG (heif-convert; phones can)"),
    _format("Canon raw (CR3)", rb".{4}ftypcrx "),
    _format("MP4", rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|styp|moof)", (_VIDEO, _AUDIO), "mp4 mov m4v 3gp 3gpp qt"),
    _format("WebM", rb"\x1a\x45\xdf\xa3.{0,64}?webm", (_VIDEO, _AUDIO), "webm"),
    _format("Matroska (MKV)", rb"\x1a\x45\xdf\xa3", (_VIDEO, _AUDIO), "mkv mka"),
    _format("AVI", rb"RIFF.{4}AVI ", (_VIDEO,), "avi"),
    _format("FLV", rb"FLV\x01", (_VIDEO,), "flv"),
    _format("MPEG stream", rb"\0\0\x01\xba", (_VIDEO,), "mpg mpeg mpe vob"),
    _format("MPEG-TS", rb"(.{4})?\x47.{187,191}\x47", (_VIDEO,), "ts mts m2ts"),
    # Taken for nothing, but known by name.
    _format("PNG broken by a transfer in text mode", rb"\x89PNG(\n|\r\r)", cure="fetch it again"),
    _format("Netpbm (PPM, PGM)", rb"P[1-7]\s"),
    _format("Apple icon (ICNS)", rb"icns"),
    _format("QOI", rb"qoif"),
    _format("raw MPEG, H.264 or H.265", rb"\0\0\0?\x01([\xb3\x27\x47\x67]|\x09[\x10\x30\xf0]|[\x40\x42\x46]\x01)"),
    _format("MXF", rb"\x06\x0e\x2b\x34"),
    _format("raw video (Y4M)", rb"YUV4MPEG2 "),
    _format("IVF", rb"DKIF"),
    _format("playlist (M3U)", rb"#EXTM3U", cure="it names other files: fetch those (ffmpeg -i ADDRESS out.mp4)"),
    _format("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    _format("JPEG 2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
    _format("Photoshop (PSD)", rb"8BPS"),
    _format("Windows icon (ICO)", rb"\0\0[\x01\x02]\0[^\0]\0"),
    _format("OpenEXR", rb"\x76\x2f\x31\x01"),
    _format("DICOM", rb".{128}DICM"),
    _format("PDF", rb"%PDF-", cure="render its pages to PNG"),
    _format("PostScript (EPS)", rb"%!PS|\xc5\xd0\xd3\xc6", cure="render it to PNG"),
    _format("WMA or WMV (ASF)", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    _format("AMR", rb"#!AMR"),
    _format("AC3", rb"\x0b\x77"),
    _format("AAC (ADTS)", rb"\xff[\xf0\xf1\xf8\xf9]"),
    _format("MIDI", rb"MThd", cure="it holds notes, no sound: render it"),
    _format("Monkey's Audio (APE)", rb"MAC "),
    _format("WavPack", rb"wvpk"),
    _format("RealMedia", rb"\.RMF|\.ra\xfd"),
    _format("gzip", rb"\x1f\x8b", cure="unpack it (gunzip)"),
    _format("bzip2", rb"BZh[1-9]", cure="unpack it (bunzip2)"),
    _format("XZ", rb"\xfd7zXZ\0", cure="unpack it (unxz)"),
    _format("Zstandard", rb"\x28\xb5\x2f\xfd", cure="unpack it (unzstd)"),
    _format("ZIP archive", rb"PK[\x03\x05\x07]", cure="unpack it"),
    _format("RAR archive", rb"Rar!\x1a\x07", cure="unpack it"),
    _format("7z archive", rb"7z\xbc\xaf\x27\x1c", cure="unpack it"),
    _format("HDF5", rb"\x89HDF", cure="save each picture or sound in it as a file"),
    _format("NumPy array", rb"\x93NUMPY", cure="save it as a picture or a sound"),
    _format("Git LFS pointer", rb"version https://git-lfs\.", cure="it stands for the file: git lfs pull"),
)
"""In the order in which marks are tried."""

_KIND_OF_SUFFIX = {end: each.kinds[0] for each in FORMATS for end in each.suffixes} | {"ogv": _VIDEO, "mka": _AUDIO}
SUFFIXES = {kind: tuple(end for end, its in _KIND_OF_SUFFIX.items() if its is kind) for kind in MediaKind}
"""How names of files end that are taken for a kind, if nothing but the name says which."""

_MARKUP = re.compile(
    rb"<(\?php|script[\s>]|html[\s>]|!doctype\s+html|body[\s>]|iframe[\s>]|svg[\s>]|xsl:stylesheet[\s>])", re.IGNORECASE
)
_FOREIGN = (
    # name, mark, positions at which readers look for it
    ("a PDF", b"%PDF-", 0, 1_024),
    ("a tar archive", b"ustar", 257, 262),
    ("a DICOM file", b"DICM", 128, 132),
    ("an RAR archive", b"Rar!\x1a\x07", 0, 2**20),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c", 0, 2**20),
    ("a CD image", b"CD001", 32_769, 32_774),
)


def format_of(data: bytes) -> Format | None:
    """The format of a file by its mark, which may stand behind an ID3 tag; None where no mark is known."""
    behind = 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(data[6:10]))
    places = (behind, 0) if data.startswith(b"ID3") else (0,)
    return next((each for place in places for each in FORMATS if each.mark.match(data, place)), None)


def check_file(medium: Medium) -> None:
    """Checks that a file is of a format that is taken for its kind, and nothing else besides.

    Raises:
        RowError: `svg`, `polyglot`, `unsupported_format`, or corrupt: of no format that is known.
    """
    found = format_of(medium.data)
    if found is None or medium.kind not in found.kinds:
        raise _refusal(medium.data, found, medium.kind)
    _check_foreign(medium.data, found)


def _refusal(data: bytes, found: Format | None, kind: MediaKind) -> RowError:
    head = _text_head(data)
    if re.search(rb"<svg[\s>]|<!doctype\s+svg", head, re.IGNORECASE):
        return RowError(Reason.SVG, "a vector picture is a program that draws; render it first")
    taken = f"taken are {', '.join(each.name for each in FORMATS if kind in each.kinds)}"
    if found is not None:
        if kind is _VIDEO and found.name in _MOVING:
            cure = f"{_CURES[_VIDEO]} if it moves; if not, use the column for images"
        elif found.kinds:
            cure = f"if it belongs there, use the column for {' or '.join(f'{other}s' for other in found.kinds)}"
        else:
            cure = found.cure or _CURES[kind]
        return RowError(Reason.UNSUPPORTED_FORMAT, f"{found.name}, where {kind.value} is asked for: {cure}; {taken}")
    if not data.strip(b"\0"):
        return RowError(Reason.corrupt(kind), f"an empty file (of {len(data)} bytes, all of them zero); {taken}")
    if head.lstrip()[:1] == b"<":
        detail = "markup (HTML or XML), as servers send it to say that there is no such file: fetch it again"
        return RowError(Reason.UNSUPPORTED_FORMAT, f"{detail}; {taken}")
    if re.fullmatch(rb"[^\0-\x08\x0e-\x1f\x7f]+", head) and re.search(rb"[ -~]{4}", head):
        begin = head[:40].decode(errors="replace")
        return RowError(
            Reason.corrupt(kind), f"a text that begins with {begin!r}, and no format that is known; {taken}"
        )
    return RowError(Reason.corrupt(kind), f"no format that is known; {taken}")


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
    if data[4:8] == b"ftyp" and b"ftyp" not in found.mark.pattern:
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
