"""Ordinary files of every format that is taken, as the usual libraries write them."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.records import MediaKind, Medium

SIDES = ((1, 1), (7, 5), (48, 64))


def pixels(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise with a gradient over it, so that it neither vanishes nor explodes when it is compressed."""
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    return (noise + np.linspace(0, 190, width)[None, :, None]).astype(np.uint8)


def image_file(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def sound_file(samples: Any, rate: int = 16_000, format: str = "WAV", **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, **options)
    return buffer.getvalue()


def tone(num_samples: int = 8_000, num_channels: int = 1) -> NDArray[np.float64]:
    return np.repeat(0.5 * np.sin(np.arange(num_samples) / 10)[:, None], num_channels, axis=1)


def video_file(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    num_frames: int = 6,
    size: tuple[int, int] = (48, 64),
    sound: str | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video of `size` (height, width) at 5 frames a second, with a sound track in the codec `sound` if named."""
    with (
        tempfile.NamedTemporaryFile() as written,
        av.open(written.name, mode="w", format=container, options=options or {}) as file,
    ):
        rate = 25 if codec == "mpeg1video" else 5
        stream = cast(Any, file.add_stream(codec, rate=rate, options={"threads": "1"}))
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track = cast(Any, file.add_stream(sound, rate=48_000, layout="mono")) if sound else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(pixels(*size, seed=number), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if track is not None:
            count = track.codec_context.frame_size or 1_024
            for number in range(48_000 * num_frames // rate // count):
                wave = (8_000 * np.sin(np.arange(number * count, (number + 1) * count) / 20)).astype(np.int16)
                piece = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
                piece.sample_rate, piece.pts = 48_000, number * count
                file.mux(track.encode(piece))
            file.mux(track.encode())
        file.close()
        return Path(written.name).read_bytes()


def film(
    milliseconds: Sequence[int],
    container: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 30,
    sound: Sequence[int] = (),
    options: dict[str, str] | None = None,
    writing: dict[str, str] | None = None,
    noise: float = 0,
    begin: int = 0,
) -> bytes:
    """A video that says `rate` and shows frame n, of brightness 5 n (modulo 256), at `milliseconds[n]`.

    sound: when each 20 ms of its track (a tone; Opus or AAC) are heard, in milliseconds.
    noise: how much the pixels of a frame differ.
    begin: how many packets are left out at the beginning.
    """
    rng = np.random.default_rng(0)
    with (
        tempfile.NamedTemporaryFile() as written,
        av.open(written.name, mode="w", format=container, options=writing or {}) as file,
    ):
        stream = cast(Any, file.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})}))
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1_000)
        name = "libopus" if container in ("webm", "matroska") else "aac"
        track = cast(Any, file.add_stream(name, rate=48_000, layout="mono")) if sound else None
        packets: list[Any] = []
        for number, milli in enumerate(milliseconds):
            picture = np.clip(5 * number % 256 + noise * rng.normal(size=(48, 64, 3)), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = milli, Fraction(1, 1_000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for milli in sound:
            wave = (8_000 * np.sin(np.arange(48 * milli, 48 * milli + 960) / 20)).astype(np.int16)
            piece = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48_000, 48 * milli, Fraction(1, 48_000)
            packets += track.encode(piece) if track is not None else []
        if track is not None:
            packets += track.encode()
        for packet in packets[begin:]:
            file.mux(packet)
        file.close()
        return Path(written.name).read_bytes()


def without_default_duration(webm: bytes) -> bytes:
    """As browsers write it: the time that a frame takes becomes a void element of the same length."""
    at = webm.index(b"\x23\xe3\x83")
    size = 4 + (webm[at + 3] & 0x7F)
    return webm[:at] + b"\xec" + bytes([0x80 | size - 2]) + bytes(size - 2) + webm[at + size :]


def sound_in(
    container: str, codec: str = "aac", options: dict[str, str] | None = None, coding: dict[str, str] | None = None
) -> bytes:
    """About a second of a tone of 48 kHz in a container."""
    with (
        tempfile.NamedTemporaryFile() as written,
        av.open(written.name, mode="w", format=container, options=options or {}) as file,
    ):
        track = cast(Any, file.add_stream(codec, rate=48_000, layout="mono", options=coding or {}))
        size = track.codec_context.frame_size or 1_024
        for at in range(0, 48_000 // size * size, size):
            wave = (8_000 * np.sin(np.arange(at, at + size) / 20)).astype(np.int16)
            piece = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            piece.sample_rate, piece.pts = 48_000, at
            file.mux(track.encode(piece))
        file.mux(track.encode())
        file.close()
        return Path(written.name).read_bytes()


def images() -> Iterator[tuple[str, bytes]]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0131] = 3, "a photograph of <a> cat", "Editor 1.0"
    for height, width in SIDES:
        colour = Image.fromarray(pixels(height, width))
        name = f"{height}x{width}"
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image = colour.convert("L").convert("I").convert("I;16") if mode == "I;16" else colour.convert(mode)
            yield f"PNG {mode} {name}", image_file(image)
        for mode, format in itertools.product(("1", "L", "P", "RGB", "RGBA"), ("BMP", "TIFF")):
            yield f"{format} {mode} {name}", image_file(colour.convert(mode), format)
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "words " * 300, zip=True)
        text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>")
        yield f"PNG with metadata {name}", image_file(colour, pnginfo=text, icc_profile=profile, exif=exif)
        yield f"PNG clear palette {name}", image_file(colour.convert("P"), transparency=3)
        more = [Image.fromarray(pixels(height, width, seed)) for seed in range(1, 4)]
        for format in ("PNG", "GIF", "WEBP", "TIFF"):
            yield f"{format} of 4 frames {name}", image_file(colour, format, save_all=True, append_images=more)
        yield f"MPO {name}", image_file(colour, "MPO", save_all=True, append_images=more)
        for options in ({"quality": 30}, {"quality": 95, "progressive": True}, {"comment": b"hello", "exif": exif}):
            yield f"JPEG {sorted(options)} {name}", image_file(colour, "JPEG", icc_profile=profile, **options)
        yield f"JPEG CMYK {name}", image_file(colour.convert("CMYK"), "JPEG")
        yield f"JPEG grey {name}", image_file(colour.convert("L"), "JPEG", restart_marker_blocks=1)
        if min(height, width) > 1:  # its encoder takes no single row
            yield f"AVIF {name}", image_file(colour.convert("RGBA"), "AVIF", exif=exif)
        yield f"GIF {name}", image_file(colour, "GIF")
        yield f"GIF clear {name}", image_file(colour.convert("P"), "GIF", transparency=0, comment=b"hello")
        for options in ({}, {"lossless": True}, {"exif": exif, "icc_profile": profile, "xmp": b"<x:xmpmeta/>"}):
            yield f"WebP {sorted(options)} {name}", image_file(colour.convert("RGBA"), "WEBP", **options)
        for compression in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
            yield f"TIFF {compression} {name}", image_file(colour, "TIFF", compression=compression, software="Editor 1")
        yield f"TIFF big {name}", image_file(colour, "TIFF", big_tiff=True)


def sounds() -> Iterator[tuple[str, bytes]]:
    for format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "NIST"):
        for rate, num_channels in ((8_000, 1), (48_000, 2)):
            yield f"{format} {rate} {num_channels}", sound_file(tone(rate, num_channels), rate, format)
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"):
        yield f"WAV {subtype}", sound_file(tone(), subtype=subtype)
    yield "Opus", sound_file(tone(48_000), 48_000, "OGG", subtype="OPUS")
    mp3 = sound_file(tone(16_000), 16_000, "MP3")
    id3v1 = b"TAG" + b"A title".ljust(30) + b"An artist".ljust(30) + b"An album".ljust(65)
    item = b"Title\0" + b"a title of some length, longer than any run of print by chance"
    items = (len(item) - 6).to_bytes(4, "little") + bytes(4) + item
    footer = (
        b"APETAGEX" + (2_000).to_bytes(4, "little") + (len(items) + 32).to_bytes(4, "little") + bytes([1]) + bytes(15)
    )
    yield "MP3 with ID3v1", mp3 + id3v1
    yield "MP3 with APE and ID3v1", mp3 + items + footer + id3v1
    yield "MP3 with ID3v2", b"ID3\x03\0\0\0\0\x02\0" + b"TIT2\0\0\0\x08\0\0\0a title" + bytes(238) + mp3
    yield "FLAC with ID3v1", sound_file(tone(), format="FLAC") + id3v1
    wav = sound_file(tone())
    yield "WAV of a recorder that cannot seek", wav[:4] + b"\xff\xff\xff\xff" + wav[8:]
    yield "WAV with a tag appended", wav + b"id3 \x08\0\0\0a  title"

    for container, codec in (("ipod", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("matroska", "flac")):
        yield f"{codec} in {container}", sound_in(container, codec)


def videos() -> Iterator[tuple[str, bytes]]:
    for container, codec, sound in [
        ("mp4", "libx264", None),
        ("mp4", "libx264", "aac"),
        ("mp4", "mpeg4", "aac"),
        ("mov", "libx264", "pcm_s16le"),
        ("matroska", "libx264", "flac"),
        ("matroska", "ffv1", None),
        ("webm", "libvpx", "libopus"),
        ("webm", "libvpx-vp9", None),
        ("avi", "mpeg4", "libmp3lame"),
        ("avi", "mjpeg", None),
        ("mpegts", "libx264", "aac"),
        ("mpeg", "mpeg1video", "mp2"),
        ("flv", "libx264", "aac"),
    ]:
        yield f"{container} {codec} {sound}", video_file(container, codec, sound=sound)
    for flags in ("faststart", "frag_keyframe+empty_moov"):
        yield f"mp4 {flags}", video_file(options={"movflags": flags}, sound="aac")
    yield "mp4 padded", video_file() + bytes(512)


def ordinary() -> Iterator[tuple[str, Medium]]:
    for kind, made in [(MediaKind.IMAGE, images()), (MediaKind.AUDIO, sounds()), (MediaKind.VIDEO, videos())]:
        for name, data in made:
            yield name, Medium(kind, data)
