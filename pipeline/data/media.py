"""Media between file bytes and arrays, within bounds.

Every file is taken for hostile: its size is checked first, then what its header claims, and only then is it decoded,
by a decoder that was told which formats it may open. Whatever is refused raises `RowError` with a reason.
Nothing here opens a path or an address: bytes in, arrays out.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ImageOps, UnidentifiedImageError
from PIL import Image as pillow
from PIL.PngImagePlugin import putchunk

from pipeline.config import MediaLimits
from pipeline.data.bounds import check_bytes, check_end, check_size, check_sound, clipped, refusal
from pipeline.data.film import decode_container, decode_video
from pipeline.data.inspection import check_file, format_of
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Video

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one a worker, as everywhere

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Raster formats only: what Pillow hands to other programs (EPS, for one) stays closed."""

READ_BY_FFMPEG = ("MP3", "M4A", "MP4", "WebM", "Matroska (MKV)")
"""Of sounds. libsndfile reads the other formats; of an MP3 without a header it would guess where it ends."""

_UNKNOWN_LENGTH = 2**50
_AUDIO_BLOCK = 65_536
_FULL_SCALE_16 = 257  # 65535 / 255
# What libsndfile notes of a header that promises more than the file holds, in WAV, AIFF, AU, RF64 and W64.
_CUT_OFF = re.compile(r"(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)")
_ENDLESS = 0x7F000000
"""From here on a size stands for one that the recorder did not know."""
# Sizes that a recorder left open, and libsndfile takes at their word; the match ends where the samples begin.
_OPEN_SIZE = re.compile(
    rb"RIFF.{4}WAVE.{0,512}?data(\0{4})|FORM.{4}AIF[FC].{0,512}?SSND(\0\0\0\x08)|\.snd.{4}(\0{4}|\x7f.{3}).{12}"
    rb"|caff.{0,8192}?data(\xff{8})",
    re.DOTALL,
)


def decode(medium: Medium, limits: MediaLimits) -> DecodedMedium:
    """Decodes a medium within `limits`.

    Raises:
        RowError: too many bytes, pixels, seconds, channels or frames, a bad aspect ratio, or a corrupt file.
    """
    check_bytes(medium, limits)
    check_file(medium)
    match medium.kind:
        case MediaKind.IMAGE:
            return decode_image(medium.data, limits)
        case MediaKind.AUDIO:
            return decode_audio(medium.data, limits)
        case MediaKind.VIDEO:
            return decode_video(medium.data, limits)


def decode_image(data: bytes, limits: MediaLimits) -> Image:
    """A picture as people see it: turned by its EXIF orientation, transparency over white; the first frame of many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bad metadata, which is left alone
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        try:
            with pillow.open(source := io.BytesIO(data), formats=IMAGE_FORMATS) as file:
                check_size(file.width, file.height, limits)
                if file.format == "JPEG" and data.find(b"\xff\xd9", source.tell()) < 0:  # what is left is made grey
                    raise RowError(Reason.CORRUPT_IMAGE, "cut off: a JPEG without its end mark")
                file.load()
                ImageOps.exif_transpose(file, in_place=True)
                return Image(pixels=_rgb(file))
        except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
            raise RowError(Reason.TOO_MANY_PIXELS, str(error)) from None
        except UnidentifiedImageError:
            raise RowError(Reason.CORRUPT_IMAGE, "its header is cut off or damaged") from None
        except RowError:
            raise
        except Exception as error:
            raise refusal(error, Reason.CORRUPT_IMAGE, limits) from None


def _rgb(image: pillow.Image) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips instead of scaling
        grey, is_float = np.asarray(image), image.mode == "F"
        if image.mode == "I" or (is_float and not 0 <= grey.min() <= grey.max() <= 1):
            detail = f"numbers from {grey.min():g} to {grey.max():g}, whose black and white nobody knows"
            raise RowError(Reason.UNSUPPORTED_FORMAT, f"{detail}: save it with 8 or 16 bits, or as floats from 0 to 1")
        grey = (np.rint(grey * 255) if is_float else grey // _FULL_SCALE_16).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        canvas = pillow.new("RGBA", image.size, "white")
        image = pillow.alpha_composite(canvas, image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def decode_audio(data: bytes, limits: MediaLimits) -> Audio:
    """A sound at its own rate, its channels averaged; read block by block, so that memory holds one channel."""
    found = format_of(data)
    try:
        if found is not None and (found.name in READ_BY_FFMPEG or (found.name == "Ogg" and _is_other_ogg(data))):
            return decode_container(data, limits)
        with soundfile.SoundFile(_Bytes(_with_size(data))) as file:
            if file.frames > _UNKNOWN_LENGTH or file.subtype.startswith("MPEG"):
                return decode_container(data, limits)
            _check_whole(file, data)
            check_sound(file.frames, file.samplerate, file.channels, limits)
            samples = _mono(file)
            expected = file.frames
            sampling_rate = file.samplerate
    except RowError:
        raise
    except Exception as error:
        raise refusal(error, Reason.CORRUPT_AUDIO, limits) from None
    if len(samples) != expected:
        raise RowError(Reason.CORRUPT_AUDIO, f"the header promises {expected} samples, the file holds {len(samples)}")
    return clipped(samples, sampling_rate)


def _is_other_ogg(data: bytes) -> bool:
    """Whether an Ogg holds what libsndfile does not read: FLAC, or more than one stream."""
    return data[28:33] == b"\x7fFLAC" or len(re.findall(rb"OggS\0[\2\3\6\7]", data)) > 1


def _check_whole(file: soundfile.SoundFile, data: bytes) -> None:
    """Refuses what libsndfile takes for a shorter sound: a file that was cut off."""
    for promised, held in _CUT_OFF.findall(file.extra_info):
        if int(held) < int(promised) < _ENDLESS:
            raise RowError(
                Reason.CORRUPT_AUDIO, f"cut off: the header promises {promised} bytes, the file holds {held}"
            )
    if file.format == "OGG":
        check_end(data, Reason.CORRUPT_AUDIO)


def _with_size(data: bytes) -> bytes:
    """A sound whose recorder was killed, or wrote to a pipe, with the size that its samples have: to the file's end."""
    if not (found := _OPEN_SIZE.match(data)):
        return data
    at, end = found.span(found.lastindex or 0)
    size = (len(data) - found.end()).to_bytes(end - at, "little" if data[:1] == b"R" else "big")
    return data[:at] + size + data[end:]


class _Bytes(io.BytesIO):
    """A file whose `seek` raises nothing: an error would be printed, and lost, in libsndfile's callback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = (0, self.tell(), len(self.getbuffer()))[whence]
        return super().seek(max(0, start + offset))


def _mono(file: soundfile.SoundFile) -> NDArray[np.float32]:
    blocks: list[NDArray[np.float32]] = []
    while len(block := file.read(_AUDIO_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1, dtype=np.float32))
    return np.concatenate(blocks)


def resample(audio: Audio, sampling_rate: int) -> Audio:
    """The same sound at another rate in Hz (soxr, high quality); itself if it has that rate already."""
    if audio.sampling_rate == sampling_rate:
        return audio
    samples = soxr.resample(audio.samples, audio.sampling_rate, sampling_rate)
    return Audio(samples=np.asarray(samples, dtype=np.float32), sampling_rate=sampling_rate)


def flat(decoded: DecodedMedium) -> tuple[MediaKind, NDArray[Any], float | None]:
    """Kind, array and rate of a decoded medium."""
    match decoded:
        case Image(pixels=array):
            return MediaKind.IMAGE, array, None
        case Audio(samples=array, sampling_rate=rate):
            return MediaKind.AUDIO, array, rate
        case Video(frames=array, frames_per_second=rate):
            return MediaKind.VIDEO, array, rate


def content_key(decoded: DecodedMedium) -> str:
    """sha256 (hex) of a decoded medium: kind, shape, rate and bytes. The same content has the same key in any file."""
    kind, array, rate = flat(decoded)
    head = f"{kind.value} {array.shape}" + ("" if rate is None else f" {rate!r}")
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def blank(decoded: DecodedMedium) -> DecodedMedium:
    """The same shape and rate, all black or silent: what a model that neither sees nor hears would get."""
    match decoded:
        case Image(pixels=pixels):
            return Image(pixels=np.zeros_like(pixels))
        case Audio(samples=samples, sampling_rate=rate):
            return Audio(samples=np.zeros_like(samples), sampling_rate=rate)
        case Video(frames=frames, frames_per_second=rate):
            return Video(frames=np.zeros_like(frames), frames_per_second=rate)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of `pixels` uint8 [H, W, 3] or [H, W]."""
    buffer = io.BytesIO()
    # Many pixels of drawings and pages of text are like the one beside: what is done for photographs would make their
    # files ten times as large.
    if pixels.ndim == 2 or np.count_nonzero(pixels[:, 1:] == pixels[:, :-1]) > pixels.size / 3:
        pillow.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    else:
        _write_photograph(buffer, pixels)
    return buffer.getvalue()


def _write_photograph(file: io.BytesIO, pixels: NDArray[np.uint8]) -> None:
    """A PNG of noisy pixels uint8 [H, W, 3] in half of Pillow's time, and no larger.

    Pillow tries all five filters on every row, of which the fourth (Paeth's) is the best of nearly all rows here; and
    what it leaves repeats nothing but runs.
    """
    height, width, _ = pixels.shape
    around = np.zeros((height + 1, width + 1, 3), np.int16)
    around[1:, 1:] = pixels
    left, above, corner = around[1:, :-1], around[:-1, 1:], around[:-1, :-1]
    to_left, to_above, to_corner = np.abs(above - corner), np.abs(left - corner), np.abs(left + above - 2 * corner)
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    rows = np.full((height, 1 + 3 * width), 4, np.uint8)  # each begins with the number of its filter
    rows[:, 1:] = (pixels - nearest).astype(np.uint8).reshape(height, -1)
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    file.write(b"\x89PNG\r\n\x1a\n")
    putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    putchunk(file, b"IDAT", deflate.compress(rows.data), deflate.flush())
    putchunk(file, b"IEND")


def encode_wav(audio: Audio) -> bytes:
    """A WAV file, 16-bit PCM, mono."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.samples, audio.sampling_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def encode_video(frames: NDArray[np.uint8], frames_per_second: float) -> bytes:
    """An MP4 file (H.264, yuv420p) of `frames` uint8 [F, H, W, 3] that every browser plays.

    Chroma has half the resolution: odd sides grow by one repeated row or column.
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    rate = Fraction(frames_per_second).limit_denominator(1000)
    with av.open(buffer, mode="w", format="mp4") as container:
        # One thread, no look-ahead, no SIMD (x264's reads memory that nobody wrote): equal frames give equal bytes.
        options = {"preset": "veryfast", "crf": "12", "bf": "0", "threads": "1", "x264-params": "asm=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
