"""Media between file bytes and arrays, within bounds.

Every file is taken for hostile: its size is checked first, then what its header claims, and only then is it decoded,
by a decoder that was told which formats it may open. Whatever is refused raises `RowError` with a reason.
Nothing here opens a path or an address: bytes in, arrays out.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
import zlib
from fractions import Fraction
from typing import Any, cast

import av
import av.error
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageOps, UnidentifiedImageError

from pipeline.config import MediaLimits
from pipeline.data.inspection import check_file
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Video

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats only: what Pillow hands to other programs (EPS, for one) stays closed."""

VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg"
"""FFmpeg demuxers that read one file. Playlists (hls, concat) would open others."""

MAX_FRAME_RATE = 120.0
"""With `max_seconds` it bounds how many frames are decoded, however small a file makes them."""

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000
"""In Hz. With `max_seconds` it bounds how many samples are decoded; what lies outside is no sound of this world."""

_UNKNOWN_LENGTH = 2**50
_AUDIO_BLOCK = 65_536
_FULL_SCALE_16 = 257  # 65535 / 255


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


def check_bytes(medium: Medium, limits: MediaLimits) -> None:
    """Raises RowError where the encoded medium is too large."""
    if len(medium.data) > limits.max_bytes:
        detail = f"{medium.kind.value} of {len(medium.data)} bytes; data.limits.max_bytes is {limits.max_bytes}"
        raise RowError(Reason.TOO_MANY_BYTES, detail)


def _refusal(error: Exception, reason: Reason, limits: MediaLimits) -> RowError:
    """What a decoder raised, as a refusal: its own errors, and those of its bindings for numbers out of range."""
    if isinstance(error, av.error.FFmpegError):  # before MemoryError, which some are, for a size that is absurd
        return RowError(reason, f"{type(error).__name__}: {error.strerror}")
    if isinstance(error, MemoryError):
        return RowError(Reason.DECODER_CRASHED, f"out of memory; data.limits.max_decode_mib is {limits.max_decode_mib}")
    if isinstance(error, soundfile.LibsndfileError):
        return RowError(reason, error.error_string)
    return RowError(reason, f"{type(error).__name__}: {error}")


def decode_image(data: bytes, limits: MediaLimits) -> Image:
    """A picture as people see it: turned by its EXIF orientation, transparency over white; the first frame of many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bad metadata, which is left alone
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        try:
            with pillow.open(io.BytesIO(data), formats=IMAGE_FORMATS) as file:
                _check_size(file.width, file.height, limits)
                file.load()
                ImageOps.exif_transpose(file, in_place=True)
                return Image(pixels=_rgb(file))
        except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
            raise RowError(Reason.TOO_MANY_PIXELS, str(error)) from None
        except UnidentifiedImageError:
            raise RowError(Reason.CORRUPT_IMAGE, f"none of {', '.join(IMAGE_FORMATS)}") from None
        except RowError:
            raise
        except Exception as error:
            raise _refusal(error, Reason.CORRUPT_IMAGE, limits) from None


def _rgb(image: pillow.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips instead of scaling
        grey = np.clip(np.asarray(image).astype(np.int64) // _FULL_SCALE_16, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        canvas = pillow.new("RGBA", image.size, "white")
        image = pillow.alpha_composite(canvas, image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        detail = f"{width}x{height} = {width * height} pixels; data.limits.max_pixels is {limits.max_pixels}"
        raise RowError(Reason.TOO_MANY_PIXELS, detail)
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        detail = f"{width}x{height}; data.limits.max_aspect_ratio is {limits.max_aspect_ratio:g}"
        raise RowError(Reason.BAD_ASPECT_RATIO, detail)


def decode_audio(data: bytes, limits: MediaLimits) -> Audio:
    """A sound at its own rate, its channels averaged; read block by block, so that memory holds one channel."""
    try:
        with soundfile.SoundFile(_Bytes(data)) as file:
            if file.frames > _UNKNOWN_LENGTH:
                return _decode_unmeasured(data, limits)
            _check_sound(file.frames, file.samplerate, file.channels, limits)
            samples = _mono(file)
            expected = file.frames
            sampling_rate = file.samplerate
    except RowError:
        raise
    except Exception as error:
        raise _refusal(error, Reason.CORRUPT_AUDIO, limits) from None
    if len(samples) != expected:
        raise RowError(Reason.CORRUPT_AUDIO, f"the header promises {expected} samples, the file holds {len(samples)}")
    return _sound(samples, sampling_rate)


def _decode_unmeasured(data: bytes, limits: MediaLimits) -> Audio:
    """A FLAC whose recorder did not know how long it would be: libsndfile cannot tell where it ends, FFmpeg can."""
    with av.open(io.BytesIO(data), mode="r", options={"format_whitelist": "flac", "protocol_whitelist": ""}) as file:
        return _decode_track(file, file.streams.audio[0], limits)


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


def _sound(samples: NDArray[np.float32], sampling_rate: int) -> Audio:
    if not np.isfinite(samples).all():
        raise RowError(Reason.CORRUPT_AUDIO, "samples that are not finite")
    return Audio(samples=np.clip(samples, -1.0, 1.0), sampling_rate=sampling_rate)


def _check_sound(num_samples: int, sampling_rate: int, num_channels: int, limits: MediaLimits) -> None:
    _check_upper(num_samples, sampling_rate, num_channels, limits)
    seconds = num_samples / sampling_rate
    if seconds < limits.min_seconds:
        detail = f"{seconds:.3f} s; data.limits.min_seconds is {limits.min_seconds:g}"
        raise RowError(Reason.SOUND_TOO_SHORT, detail)


def _check_upper(num_samples: int, sampling_rate: int, num_channels: int, limits: MediaLimits) -> None:
    if num_channels > limits.max_channels:
        detail = f"{num_channels} channels; data.limits.max_channels is {limits.max_channels}"
        raise RowError(Reason.TOO_MANY_CHANNELS, detail)
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        raise RowError(Reason.CORRUPT_AUDIO, f"a sampling rate of {sampling_rate} Hz")
    _check_seconds(num_samples / sampling_rate, limits)


def _check_seconds(seconds: float, limits: MediaLimits) -> None:
    if seconds > limits.max_seconds:
        raise RowError(Reason.TOO_LONG, f"{seconds:.2f} s; data.limits.max_seconds is {limits.max_seconds:g}")


def resample(audio: Audio, sampling_rate: int) -> Audio:
    """The same sound at another rate in Hz (soxr, high quality); itself if it has that rate already."""
    if audio.sampling_rate == sampling_rate:
        return audio
    samples = soxr.resample(audio.samples, audio.sampling_rate, sampling_rate)
    return Audio(samples=np.asarray(samples, dtype=np.float32), sampling_rate=sampling_rate)


def decode_video(data: bytes, limits: MediaLimits) -> Video:
    """The first video stream, evenly thinned to at most `max_frames` frames; `frames_per_second` is thinned with it.

    Two passes over the bytes: one counts packets without decoding, one decodes and keeps only the frames wanted.
    """
    try:
        num_frames, rate = _measure_video(data, limits)
        num_kept = min(num_frames, limits.max_frames)
        wanted = [place * num_frames // num_kept for place in range(num_kept)]
        frames = _decode_frames(data, wanted, limits)
    except RowError:
        raise
    except Exception as error:
        raise _refusal(error, Reason.CORRUPT_VIDEO, limits) from None
    return Video(frames=frames, frames_per_second=rate * num_kept / num_frames)


def _open_video(data: bytes) -> Any:
    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": ""}
    container = av.open(io.BytesIO(data), mode="r", options=options)
    if not container.streams.video:
        container.close()
        raise RowError(Reason.CORRUPT_VIDEO, "no video stream")
    return container


def _measure_video(data: bytes, limits: MediaLimits) -> tuple[int, float]:
    """Number of frames and frames per second, from headers and packets alone."""
    with _open_video(data) as container:
        stream = container.streams.video[0]
        width, height = int(stream.width), int(stream.height)
        if width <= 0 or height <= 0:
            raise RowError(Reason.CORRUPT_VIDEO, f"frames of {width}x{height}")
        _check_size(width, height, limits)
        _check_seconds(float((container.duration or 0) / av.time_base), limits)
        max_packets = math.ceil(limits.max_seconds * MAX_FRAME_RATE)
        num_frames = last = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise RowError(Reason.CORRUPT_VIDEO, f"packet {num_frames} is damaged or cut off")
            last = max(last, packet.pts or packet.dts or 0)
            num_frames += packet.size > 0 and not packet.is_discard
            if num_frames > max_packets:
                raise RowError(Reason.TOO_MANY_FRAMES, f"over {max_packets} frames ({MAX_FRAME_RATE:g} a second)")
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if num_frames == 0 or rate <= 0:
            raise RowError(Reason.CORRUPT_VIDEO, f"{num_frames} frames at {rate:g} a second")
        # An AVI counts the places at which it shows the frame before for longer, too.
        num_places = round(float((last - (stream.start_time or 0)) * stream.time_base) * rate) + 1
        if stream.frames > max(num_frames, num_places):
            raise RowError(
                Reason.CORRUPT_VIDEO, f"the header promises {stream.frames} frames, the file holds {num_frames}"
            )
        _check_seconds(num_frames / rate, limits)
        return num_frames, rate


def _decode_frames(data: bytes, wanted: list[int], limits: MediaLimits) -> NDArray[np.uint8]:
    """The frames at the ascending positions `wanted`: uint8 [F, H, W, 3]."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    num_kept = 0
    with _open_video(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        for position, frame in enumerate(container.decode(stream)):
            if num_kept == len(wanted):
                break
            if position != wanted[num_kept]:
                continue
            _check_size(frame.width, frame.height, limits)
            picture = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24"))
            picture = np.rot90(picture, k=round(frame.rotation / 90))  # phones store the turn, not the pixels
            if num_kept == 0:  # once and whole: a list and its stack would hold every frame twice
                frames = np.empty((len(wanted), *picture.shape), np.uint8)
            if picture.shape != frames.shape[1:]:
                raise RowError(Reason.CORRUPT_VIDEO, f"frame {position} changes size to {frame.width}x{frame.height}")
            frames[num_kept] = picture
            num_kept += 1
    if num_kept < len(wanted):
        raise RowError(Reason.CORRUPT_VIDEO, f"frame {wanted[num_kept]} cannot be decoded")
    return frames


def sound_track(medium: Medium, limits: MediaLimits) -> Audio | None:
    """The first sound track of a video, at its own rate, its channels averaged; None where it has none.

    Raises:
        RowError: as for a sound of its own.
    """
    check_bytes(medium, limits)
    check_file(medium)
    try:
        with _open_video(medium.data) as container:
            if not container.streams.audio:
                return None
            return _decode_track(container, container.streams.audio[0], limits)
    except RowError:
        raise
    except Exception as error:
        raise _refusal(error, Reason.CORRUPT_AUDIO, limits) from None


def _decode_track(container: Any, stream: Any, limits: MediaLimits) -> Audio:
    stream.codec_context.thread_count = 1
    to_float = av.AudioResampler(format="fltp")
    blocks: list[NDArray[np.float32]] = []
    num_samples, rate = 0, int(stream.rate or 0)
    for frame in container.decode(stream):
        if frame.sample_rate != rate:
            raise RowError(Reason.CORRUPT_AUDIO, f"sound track: the rate changes from {rate} to {frame.sample_rate} Hz")
        num_samples += frame.samples
        _check_upper(num_samples, rate, frame.layout.nb_channels, limits)
        for converted in to_float.resample(frame):
            blocks.append(cast(NDArray[np.float32], converted.to_ndarray()).mean(axis=0, dtype=np.float32))
    _check_sound(num_samples, rate, 1, limits)
    return _sound(np.concatenate(blocks), rate)


def content_key(decoded: DecodedMedium) -> str:
    """sha256 (hex) of a decoded medium: kind, shape, rate and bytes. The same content has the same key in any file."""
    match decoded:
        case Image(pixels=array):
            head = f"image {array.shape}"
        case Audio(samples=array, sampling_rate=rate):
            head = f"audio {array.shape} {rate}"
        case Video(frames=array, frames_per_second=rate):
            head = f"video {array.shape} {rate!r}"
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
    # Photographs repeat nothing but runs: to look for these alone takes half the time, and the files are no larger.
    # Drawings and pages of text would grow tenfold; many of their pixels are like the one beside.
    is_drawn = np.count_nonzero(pixels[:, 1:] == pixels[:, :-1]) > pixels.size / 3
    strategy = zlib.Z_FILTERED if is_drawn else zlib.Z_RLE
    pillow.fromarray(pixels).save(buffer, format="PNG", compress_level=4, compress_type=strategy)
    return buffer.getvalue()


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
