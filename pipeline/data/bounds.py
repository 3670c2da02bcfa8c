"""Bounds that every decoder keeps, and how their refusals read."""

from __future__ import annotations

import av.error
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.config import MediaLimits
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, Medium

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000
"""In Hz. With `max_seconds` it bounds how many samples are decoded; what lies outside is no sound of this world."""

_MAX_PEAK = 100.0
"""Of a sound in floats: 40 dB over full scale. Mixes that are too loud are below it, whole numbers above."""

ROUNDING_S = 0.002
"""Containers round timestamps to a millisecond, other rates round to a sample: no bound on seconds is sharper."""

_TAIL_BYTES = 2**14


def check_end(data: bytes, reason: Reason) -> None:
    """Raises RowError where a compressed file was cut off (an Ogg, in its last page), or its rest was never written: a
    download takes room before it comes."""
    last = data.rfind(b"OggS") if data.startswith(b"OggS") else -1
    if last >= 0:
        segments = data[last + 27 : last + 27 + data[last + 26]] if last + 27 <= len(data) else b""
        if not segments or last + 27 + len(segments) + sum(segments) > len(data):
            raise RowError(reason, "an Ogg that is cut off in its last page")
    if len(data) > _TAIL_BYTES and not any(data[-_TAIL_BYTES:]):
        raise RowError(reason, f"the file ends in {len(data) - len(data.rstrip(bytes(1)))} zeros: fetch it again")


def check_bytes(medium: Medium, limits: MediaLimits) -> None:
    """Raises RowError where the encoded medium is too large."""
    if len(medium.data) > limits.max_bytes:
        detail = f"{medium.kind.value} of {len(medium.data)} bytes; data.limits.max_bytes is {limits.max_bytes}"
        raise RowError(Reason.TOO_MANY_BYTES, detail)


def refusal(error: Exception, reason: Reason, limits: MediaLimits) -> RowError:
    """What a decoder raised, as a refusal: its own errors, and those of its bindings for numbers out of range."""
    if isinstance(error, av.error.FFmpegError):  # before MemoryError, which some are, for a size that is absurd
        return RowError(reason, f"{type(error).__name__}: {error.strerror}")
    if isinstance(error, MemoryError):
        return RowError(Reason.DECODER_CRASHED, f"out of memory; data.limits.max_decode_mib is {limits.max_decode_mib}")
    if isinstance(error, soundfile.LibsndfileError):
        return RowError(reason, error.error_string)
    return RowError(reason, f"{type(error).__name__}: {error}")


def check_size(width: int, height: int, limits: MediaLimits) -> None:
    """Raises RowError where a picture or a frame is too large or too long, in pixels."""
    if width * height > limits.max_pixels:
        detail = f"{width}x{height} = {width * height} pixels; data.limits.max_pixels is {limits.max_pixels}"
        raise RowError(Reason.TOO_MANY_PIXELS, detail)
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        detail = f"{width}x{height}; data.limits.max_aspect_ratio is {limits.max_aspect_ratio:g}"
        raise RowError(Reason.BAD_ASPECT_RATIO, detail)


def check_sound(num_samples: int, sampling_rate: int, num_channels: int, limits: MediaLimits) -> None:
    """Raises RowError where a sound is out of bounds, too short ones included."""
    check_upper(num_samples, sampling_rate, num_channels, limits)
    seconds = num_samples / sampling_rate
    if seconds < limits.min_seconds - ROUNDING_S:
        detail = f"{seconds:.3f} s; data.limits.min_seconds is {limits.min_seconds:g}"
        raise RowError(Reason.SOUND_TOO_SHORT, detail)


def check_upper(num_samples: int, sampling_rate: int, num_channels: int, limits: MediaLimits) -> None:
    """Raises RowError where what was read of a sound is over a bound already; rates in Hz."""
    if num_channels > limits.max_channels:
        detail = f"{num_channels} channels; data.limits.max_channels is {limits.max_channels}"
        raise RowError(Reason.TOO_MANY_CHANNELS, detail)
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        raise RowError(Reason.CORRUPT_AUDIO, f"a sampling rate of {sampling_rate} Hz")
    check_seconds(num_samples / sampling_rate, limits)


def check_seconds(seconds: float, limits: MediaLimits) -> None:
    """Raises RowError where a sound or a video is too long."""
    if seconds > limits.max_seconds + ROUNDING_S:
        raise RowError(Reason.TOO_LONG, f"{seconds:.2f} s; data.limits.max_seconds is {limits.max_seconds:g}")


def clipped(samples: NDArray[np.float32], sampling_rate: int) -> Audio:
    """A sound of samples float32 [S], those beyond full scale clipped.

    Raises RowError where one is no number, or so large that its scale must be that of whole numbers.
    """
    if not (peak := float(np.abs(samples).max())) <= _MAX_PEAK:  # so it is, too, where one is no number
        detail = f"samples up to {peak:g}, where full scale is 1: divide them, those of 16 bits by 32768"
        raise RowError(Reason.CORRUPT_AUDIO, detail if np.isfinite(peak) else "samples that are not finite")
    return Audio(samples=np.clip(samples, -1.0, 1.0), sampling_rate=sampling_rate)
