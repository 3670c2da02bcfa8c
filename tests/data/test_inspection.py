"""What a file truly is: ordinary ones pass, those that are two things at once do not."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as pillow

from pipeline.config import Form, MediaLimits
from pipeline.data.ingest.readers import COLUMN_OF_SUFFIX
from pipeline.data.ingest.shards import SUFFIXES as FOLDER_SUFFIXES
from pipeline.data.inspection import FORMATS, check_file, format_of
from pipeline.data.media import content_key, decode, encode_png
from pipeline.data.schema import MEDIA_COLUMNS, Reason, RowError
from pipeline.records import Audio, MediaKind, Medium
from tests.data.files import image_file, ordinary, pixels, sound_file, sound_in, sounds, tone, video_file

LIMITS = MediaLimits()
PICTURE = pillow.fromarray(pixels(24, 32))
PNG, JPEG = encode_png(pixels(24, 32)), image_file(PICTURE, "JPEG")
ORDINARY = {
    "PNG": Medium(MediaKind.IMAGE, PNG),
    "JPEG": Medium(MediaKind.IMAGE, JPEG),
    "GIF": Medium(MediaKind.IMAGE, image_file(PICTURE, "GIF")),
    "WebP": Medium(MediaKind.IMAGE, image_file(PICTURE, "WEBP")),
    "BMP": Medium(MediaKind.IMAGE, image_file(PICTURE, "BMP")),
    "WAV": Medium(MediaKind.AUDIO, sound_file(tone())),
    "AIFF": Medium(MediaKind.AUDIO, sound_file(tone(), format="AIFF")),
    "Ogg": Medium(MediaKind.AUDIO, sound_file(tone(), format="OGG")),
    "MP4": Medium(MediaKind.VIDEO, video_file()),
    "Matroska": Medium(MediaKind.VIDEO, video_file("matroska", "ffv1")),
    "AVI": Medium(MediaKind.VIDEO, video_file("avi", "mpeg4")),
    "TIFF": Medium(MediaKind.IMAGE, image_file(PICTURE, "TIFF")),
    "FLAC": Medium(MediaKind.AUDIO, sound_file(tone(), format="FLAC")),
    "MP3": Medium(MediaKind.AUDIO, sound_file(tone(), format="MP3")),
}


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "hello")
    return buffer.getvalue()


def refused(medium: Medium) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(medium, LIMITS)
    return caught.value


def longer(medium: Medium, tail: bytes) -> Medium:
    return Medium(medium.kind, medium.data + tail)


def test_every_ordinary_file_is_decoded() -> None:
    seen: Counter[str] = Counter()
    for name, medium in ordinary():
        try:
            decode(medium, LIMITS)
        except RowError as error:
            pytest.fail(f"{name}: {error}")
        found = format_of(medium.data)
        assert found is not None and medium.kind in found.kinds, name
        seen[found.name] += 1
    assert set(seen) == {each.name for each in FORMATS if each.kinds} - {"WAV (big endian)"}
    assert seen.total() > 150


def test_the_built_in_media_pass(demo_data: Path) -> None:
    num_files = 0
    for row in pq.read_table(demo_data / "test.parquet").to_pylist():
        for kind, column in MEDIA_COLUMNS.items():
            for file in row[column]:
                check_file(Medium(kind, file["bytes"]))
                num_files += 1
    assert num_files > 10


@pytest.mark.parametrize("name", ORDINARY)
def test_what_lies_behind_the_end_of_a_file_is_never_decoded(name: str) -> None:
    medium = ORDINARY[name]
    for tail in (bytes(4_096), b"\r\n", b"\x07\x13 another file", medium.data[-64:]):
        try:
            found = decode(longer(medium, tail), LIMITS)
        except RowError as error:
            assert error.reason is Reason(f"corrupt_{medium.kind.value}")
        else:
            assert content_key(found) == content_key(decode(medium, LIMITS))


@pytest.mark.parametrize("name", ORDINARY)
def test_no_file_is_also_an_archive_or_a_page(name: str) -> None:
    medium = ORDINARY[name]
    for tail in (
        archive(),
        archive() + bytes(40_000),
        b"<?php system($_GET[0]); ?>".rjust(50),
        b"<!DOCTYPE html><script>alert(1)</script>",
    ):
        assert refused(longer(medium, tail)).reason is Reason.POLYGLOT


def test_an_archive_whose_letters_turn_up_by_chance_is_none() -> None:
    by_chance = b"PK\x05\x06" + np.random.default_rng(0).bytes(40)
    noise = sound_file(np.frombuffer(by_chance * 900, np.int16), subtype="PCM_16")
    assert b"PK\x05\x06" in noise
    decode(Medium(MediaKind.AUDIO, noise), LIMITS)
    exif = pillow.Exif()
    exif[0x010E] = by_chance.hex() + "PK\x05\x06"
    decode(Medium(MediaKind.IMAGE, image_file(PICTURE, "JPEG", exif=exif)), LIMITS)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("a PDF", JPEG[:20].replace(b"JFIF", b"JFIF") + b"\xff\xfe\x00\x12%PDF-1.7 0000000" + JPEG[20:]),
        ("holds", JPEG[:20] + b"\xff\xfe\x00\x1c<script>alert(1)</script> " + JPEG[20:]),
        ("an RAR archive", JPEG[:20] + b"\xff\xfe\x00\x0eRar!\x1a\x07\x01\x00xxxx" + JPEG[20:]),
        ("a tar archive", (JPEG[:20] + b"\xff\xfe\x02\x02" + bytes(512))[:257] + b"ustar" + bytes(274) + JPEG[20:]),
        ("an MP4", b"\xff\xd8\xff\xe0ftypisom" + JPEG[2:]),
    ],
)
def test_no_picture_is_also_something_else_from_its_beginning(what: str, data: bytes) -> None:
    error = refused(Medium(MediaKind.IMAGE, data))
    assert error.reason is Reason.POLYGLOT
    assert what in error.detail


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    "data",
    [
        SVG,
        b"\xef\xbb\xbf  <?xml version='1.0'?>\n<!-- a picture -->\n" + SVG,
        b"<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' ''>" + SVG,
        b"\xff\xfe" + SVG.decode().encode("utf-16-le"),
        gzip.compress(SVG),
    ],
    ids=["plain", "declared", "doctype", "utf-16", "gzip"],
)
def test_vector_pictures_are_refused_by_name(data: bytes) -> None:
    assert refused(Medium(MediaKind.IMAGE, data)).reason is Reason.SVG


def boxes(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of the MP4 family."""
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 4 + len(body)) + body + bytes(100)


@pytest.mark.parametrize(
    ("kind", "data", "name", "cure"),
    [
        (MediaKind.IMAGE, boxes(b"heic", b"mif1", b"heic"), "HEIC", "convert it to JPEG"),
        (MediaKind.IMAGE, boxes(b"mif1", b"heic"), "HEIC", "convert it to JPEG"),
        (MediaKind.IMAGE, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "convert it to PNG"),
        (MediaKind.IMAGE, b"\xff\x0a\xfa\x1f", "JPEG XL", "convert it to PNG"),
        (MediaKind.IMAGE, b"8BPS\0\x01", "Photoshop (PSD)", "convert it to PNG"),
        (MediaKind.IMAGE, b"%PDF-1.7\n", "PDF", "render its pages"),
        (MediaKind.IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript (EPS)", "render it to PNG"),
        (MediaKind.IMAGE, gzip.compress(PNG), "gzip", "unpack it"),
        (MediaKind.IMAGE, b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML", "fetch it again"),
        (MediaKind.IMAGE, b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML", "fetch it again"),
        (MediaKind.IMAGE, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (MediaKind.IMAGE, sound_file(tone()), "WAV", "the column for audios"),
        (MediaKind.IMAGE, video_file(), "MP4", "the column for videos or audios"),
        (MediaKind.AUDIO, b"#!AMR\n\x04", "AMR", "convert it to FLAC or WAV"),
        (MediaKind.AUDIO, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA", "convert it to FLAC or WAV"),
        (MediaKind.AUDIO, b"\x0b\x77\x36\xad", "AC3", "convert it to FLAC or WAV"),
        (MediaKind.AUDIO, b"\xff\xf1\x4c\x40", "AAC", "convert it to FLAC or WAV"),
        (MediaKind.AUDIO, PNG, "PNG", "the column for images"),
        (MediaKind.AUDIO, video_file("avi", "mpeg4"), "AVI", "the column for videos"),
        (MediaKind.VIDEO, PNG, "PNG", "the column for images"),
        (MediaKind.VIDEO, PNG, "PNG", "convert it to MP4"),
        (MediaKind.VIDEO, image_file(PICTURE, "GIF"), "GIF", "convert it to MP4 (ffmpeg -i FILE out.mp4) if it moves"),
        (MediaKind.VIDEO, image_file(PICTURE, "WEBP"), "WebP", "convert it to MP4"),
        (MediaKind.VIDEO, image_file(PICTURE, "AVIF"), "AVIF", "convert it to MP4"),
        (MediaKind.VIDEO, b"\0\0\0\x01\x67\x42\0\x1e", "H.264", "convert it to MP4"),
        (MediaKind.VIDEO, b"\0\0\0\x01\x40\x01\x0c", "H.265", "convert it to MP4"),
        (MediaKind.VIDEO, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "MXF", "convert it to MP4"),
        (MediaKind.VIDEO, b"YUV4MPEG2 W64 H48 F25:1\n", "Y4M", "convert it to MP4"),
        (MediaKind.VIDEO, b"#EXTM3U\n#EXT-X-VERSION:3\n", "playlist", "it names other files"),
        (MediaKind.IMAGE, image_file(PICTURE, "PPM"), "Netpbm", "convert it to PNG"),
        (MediaKind.IMAGE, b"icns\0\0\1\0", "ICNS", "convert it to PNG"),
        (MediaKind.IMAGE, b"qoif" + bytes(20), "QOI", "convert it to PNG"),
        (MediaKind.IMAGE, b"II*\0\x10\0\0\0CR\2\0", "camera raw", "convert it to PNG"),
        (MediaKind.IMAGE, PNG.replace(b"\r\n", b"\n"), "PNG", "fetch it again"),
        (MediaKind.IMAGE, b"\x89HDF\r\n\x1a\n", "HDF5", "save each picture"),
        (MediaKind.AUDIO, b"ID3\3\0\0\0\0\1\0" + bytes(128) + sound_in("adts"), "AAC", "convert it to FLAC or WAV"),
        (MediaKind.VIDEO, sound_in("ipod"), "M4A", "the column for audios"),
    ],
)
def test_a_file_of_a_format_that_is_not_taken_is_named_with_what_to_do(
    kind: MediaKind, data: bytes, name: str, cure: str
) -> None:
    error = refused(Medium(kind, data))
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert name in error.detail.split(": ")[0] and cure in error.detail


@pytest.mark.parametrize(
    ("kind", "data", "detail"),
    [
        (MediaKind.IMAGE, b"", "an empty file"),
        (MediaKind.AUDIO, bytes(4_096), "an empty file (of 4096 bytes"),
        (MediaKind.IMAGE, b'{"error": "not found"}', 'a text that begins with \'{"error": "not found"}\''),
        (MediaKind.VIDEO, b"ffconcat version 1.0", "a text that begins with 'ffconcat version 1.0'"),
        (MediaKind.AUDIO, b"\x07\x01\x02\x03" * 9, "no format that is known"),
        (MediaKind.AUDIO, ORDINARY["MP4"].data, "without a sound track"),
        (MediaKind.IMAGE, image_file(PICTURE, "AVIF")[:300], "its header is cut off"),
    ],
)
def test_a_file_of_no_format_is_told_from_one_that_is_damaged(kind: MediaKind, data: bytes, detail: str) -> None:
    error = refused(Medium(kind, data))
    assert error.reason is Reason(f"corrupt_{kind.value}")
    assert detail in error.detail


def test_every_ending_that_a_folder_is_read_by_is_of_a_format_that_is_decoded() -> None:
    read = {f".{ending}" for each in FORMATS if each.kinds for ending in each.suffixes}
    assert set(FOLDER_SUFFIXES[Form.FOLDER]) == read
    assert {".avif", ".m4a", ".webm", ".flac"} <= read and not {".heic", ".wma", ".aac"} & read
    assert {COLUMN_OF_SUFFIX[end] for end in ("m4a", "avif", "mov")} == {"audios", "images", "videos"}
    assert {COLUMN_OF_SUFFIX[end] for end in ["ts", "m2ts", "mts", "vob", "mpe", "qt", "3gpp", "ogv"]} == {"videos"}
    assert {COLUMN_OF_SUFFIX[end] for end in ["aifc", "mka", "wave", "snd"]} == {"audios"}
    assert COLUMN_OF_SUFFIX["jpe"] == "images"


def test_what_phones_append_to_a_photograph_is_let_through() -> None:
    video = video_file()
    motion = image_file(PICTURE, "JPEG", xmp=b"<x:xmpmeta xmlns:GCamera='' GCamera:MotionPhoto='1'/>")
    samsung = b"\0\0\x30\x0aMotionPhoto_Data" + video + b"SEFHk\0\0\0\x01\0\0\0" + bytes(12) + b"\x18\0\0\0SEFT"
    for data in (
        JPEG + JPEG,  # a gain map
        JPEG + bytes(512) + JPEG + bytes(32),
        motion + video,
        motion + JPEG + video + bytes(16),
        JPEG + samsung,
        JPEG + b"CANON OPTIONAL DATA\0" + bytes(range(256)),
    ):
        decode(Medium(MediaKind.IMAGE, data), LIMITS)
    assert refused(Medium(MediaKind.IMAGE, motion + video + archive())).reason is Reason.POLYGLOT


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_bombs_in_metadata_are_bounded() -> None:
    head, rest = PNG[:33], PNG[33:]
    bomb = zlib.compress(bytes(50_000_000), 9)
    for name, body in [(b"zTXt", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb), (b"iCCP", b"k\0\0" + bomb)]:
        medium = Medium(MediaKind.IMAGE, head + png_chunk(name, body) + rest)
        try:
            decode(medium, LIMITS)
        except RowError as error:
            assert error.reason is Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("name", ORDINARY)
def test_a_file_that_is_cut_off_anywhere_is_refused_with_a_reason_of_its_kind(name: str) -> None:
    medium = ORDINARY[name]
    for length in [*range(0, 64), *np.linspace(64, len(medium.data) - 1, 40).astype(int)]:
        try:
            decode(Medium(medium.kind, medium.data[:length]), LIMITS)
        except RowError as error:
            assert error.reason in (
                Reason(f"corrupt_{medium.kind.value}"),
                Reason.SOUND_TOO_SHORT,
                Reason.POLYGLOT,
            ), error


def test_a_sound_that_is_cut_off_is_not_taken_for_a_shorter_one() -> None:
    for name, data in sounds():
        if name.startswith("NIST"):  # which libsndfile reads as far as it goes
            continue
        for share in (0.3, 0.6, 0.8):
            with pytest.raises(RowError) as caught:
                decode(Medium(MediaKind.AUDIO, data[: int(share * len(data))]), LIMITS)
                pytest.fail(f"{share} of {name}")
            assert caught.value.reason is Reason.CORRUPT_AUDIO, f"{name}: {caught.value}"


def test_a_sound_whose_recorder_did_not_know_its_length_is_read_to_its_end() -> None:
    wav, flac = bytearray(sound_file(tone(16_000))), bytearray(sound_file(tone(16_000), format="FLAC"))
    place = wav.index(b"data")
    wav[4:8] = wav[place + 4 : place + 8] = b"\xff\xff\xff\xff"
    flac[21] &= 0xF0  # 36 bits of the number of samples
    flac[22:26] = bytes(4)
    for data in (wav, flac):
        sound = decode(Medium(MediaKind.AUDIO, bytes(data)), LIMITS)
        assert isinstance(sound, Audio) and len(sound.samples) == 16_000
        with pytest.raises(RowError) as caught:
            decode(Medium(MediaKind.AUDIO, bytes(data)), MediaLimits(max_seconds=0.5))
        assert caught.value.reason is Reason.TOO_LONG
