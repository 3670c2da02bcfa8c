"""Films and the sound in containers, by FFmpeg: rate, start and length come from the timestamps of what is inside."""

from __future__ import annotations

import io
import math
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.config import MediaLimits
from pipeline.data.bounds import check_bytes, check_seconds, check_size, check_sound, check_upper, clipped, refusal
from pipeline.data.inspection import check_file
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, Medium, Video

VIDEO_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg"
"""FFmpeg demuxers that read one file. Playlists (hls, concat) would open others."""

MAX_FRAME_RATE = 120.0
"""With `max_seconds` it bounds how many frames are decoded, however small a file makes them."""

_GAP_S = 0.1
"""Clocks of recorders run this far apart; what timestamps of a sound leave out beyond it was silence."""


def decode_video(data: bytes, limits: MediaLimits) -> Video:
    """The first video stream at the mean rate of its timestamps, evenly thinned to at most `max_frames` frames.

    A frame stands for the moment at its place in an even row: where timestamps are uneven (screen recordings), it is
    the one that is shown then. So the record's one rate is right for every frame.
    Two passes over the bytes: one reads timestamps without decoding, one decodes and keeps only the frames wanted.
    """
    try:
        times, rate = _measure_video(data, limits)
        num_kept = min(len(times), limits.max_frames)
        moments = np.array([place * len(times) // num_kept for place in range(num_kept)])
        # In the middle of its span, a moment finds the same frame whatever the timestamps' jitter.
        wanted = np.searchsorted(times, (moments + 0.5) / rate, side="right") - 1
        frames = _decode_frames(data, wanted.tolist(), limits)
    except RowError:
        raise
    except Exception as error:
        raise refusal(error, Reason.CORRUPT_VIDEO, limits) from None
    return Video(frames=frames, frames_per_second=rate * num_kept / len(times))


def _open_video(data: bytes) -> Any:
    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": ""}
    container = av.open(io.BytesIO(data), mode="r", options=options)
    if not container.streams.video:
        container.close()
        raise RowError(Reason.CORRUPT_VIDEO, "no video stream")
    return container


def _measure_video(data: bytes, limits: MediaLimits) -> tuple[NDArray[np.float64], float]:
    """When each frame is shown, in seconds from the first on, ascending [F]; and how many there are a second."""
    with _open_video(data) as container:
        stream = container.streams.video[0]
        width, height = int(stream.width), int(stream.height)
        if width <= 0 or height <= 0:
            raise RowError(Reason.CORRUPT_VIDEO, f"frames of {width}x{height}")
        check_size(width, height, limits)
        max_packets = math.ceil(limits.max_seconds * MAX_FRAME_RATE)
        stamps: list[tuple[int | None, int | None]] = []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise RowError(Reason.CORRUPT_VIDEO, f"packet {len(stamps)} is damaged or cut off")
            if packet.size > 0 and not packet.is_discard:  # an edit list leaves some out
                stamps.append((packet.pts, packet.dts))
            if len(stamps) > max_packets:
                raise RowError(Reason.TOO_MANY_FRAMES, f"over {max_packets} frames ({MAX_FRAME_RATE:g} a second)")
        if not stamps:
            raise RowError(Reason.CORRUPT_VIDEO, "no frames")
        _check_whole(stream, data, Reason.CORRUPT_VIDEO)
        times, rate = _timing(stamps, stream)
        check_seconds(len(times) / rate, limits)
        return times, rate


def _timing(stamps: list[tuple[int | None, int | None]], stream: Any) -> tuple[NDArray[np.float64], float]:
    """Times as of `_measure_video`, from the (pts, dts) of its packets.

    What the container says of its rate is a guess, or a setting of the recorder: it counts only where no timestamps
    are. Those of an AVI are made up from its dts; where frames are shown in another order than stored, some repeat.
    """
    shown, stored = ({stamp for stamp in column if stamp is not None} for column in zip(*stamps, strict=True))
    known = sorted(stored if len(stored) > len(shown) else shown)
    if len(known) < 2:
        rate = float(stream.average_rate or stream.guessed_rate or 0) or 1.0
        return np.arange(len(stamps)) / rate, rate
    span = float((known[-1] - known[0]) * stream.time_base)
    rate = (len(stamps) - 1) / span
    if len(known) < len(stamps):
        return np.arange(len(stamps)) / rate, rate
    return (np.array(known, np.float64) - known[0]) * float(stream.time_base), rate


def _check_whole(stream: Any, data: bytes, reason: Reason) -> None:
    """Refuses a file that was cut off: its index, or its one segment, goes on behind its end."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    end = max(end, _segment_end(data)) if data.startswith(b"\x1a\x45\xdf\xa3") else end
    if end > len(data):
        raise RowError(reason, f"cut off: the header promises {end} bytes, the file holds {len(data)}")


def _segment_end(data: bytes) -> int:
    """Where the segment of a Matroska ends by its size; 0 where the recorder did not know."""
    at = data.find(b"\x18\x53\x80\x67", 0, 4_096) + 4
    width = 9 - data[at].bit_length() if at < len(data) else 9
    size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return 0 if size == (1 << 7 * width) - 1 else at + width + size


def _decode_frames(data: bytes, wanted: list[int], limits: MediaLimits) -> NDArray[np.uint8]:
    """The frames at the ascending positions `wanted`, which may repeat: uint8 [F, H, W, 3]."""
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
            check_size(frame.width, frame.height, limits)
            picture = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24"))
            picture = np.rot90(picture, k=round(frame.rotation / 90))  # phones store the turn, not the pixels
            if num_kept == 0:  # once and whole: a list and its stack would hold every frame twice
                frames = np.empty((len(wanted), *picture.shape), np.uint8)
            if picture.shape != frames.shape[1:]:
                raise RowError(Reason.CORRUPT_VIDEO, f"frame {position} changes size to {frame.width}x{frame.height}")
            while num_kept < len(wanted) and wanted[num_kept] == position:
                frames[num_kept] = picture
                num_kept += 1
    if num_kept < len(wanted):
        raise RowError(Reason.CORRUPT_VIDEO, f"frame {wanted[num_kept]} cannot be decoded")
    return frames


def sound_track(medium: Medium, limits: MediaLimits) -> Audio | None:
    """The first sound track of a video, at its own rate, its channels averaged; None where it has none.

    Where it begins after the first frame, silence comes before it: picture and sound keep their places.

    Raises:
        RowError: as for a sound of its own.
    """
    check_bytes(medium, limits)
    check_file(medium)
    try:
        with _open_video(medium.data) as container:
            if not container.streams.audio:
                return None
            return _decode_track(container, medium.data, limits)
    except RowError:
        raise
    except Exception as error:
        raise refusal(error, Reason.CORRUPT_AUDIO, limits) from None


def _decode_track(container: Any, data: bytes, limits: MediaLimits) -> Audio:
    """The first sound track, as long as its timestamps say: what they leave out is silence."""
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    to_float = av.AudioResampler(format="fltp")
    blocks: list[NDArray[np.float32]] = []
    num_samples, rate = 0, int(stream.rate or 0)
    start = _start(container.streams.video[0]) if container.streams.video else None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise RowError(Reason.CORRUPT_AUDIO, "a packet of the sound track is damaged or cut off")
        for frame in packet.decode():
            if frame.sample_rate != rate:
                detail = f"sound track: the rate changes from {rate} to {frame.sample_rate} Hz"
                raise RowError(Reason.CORRUPT_AUDIO, detail)
            if frame.time is not None:
                if num_samples == 0:  # one that begins before the first frame keeps its beginning
                    start = frame.time if start is None else min(start, frame.time)
                left_out = round((frame.time - (start or 0.0)) * rate) - num_samples
                if left_out > _GAP_S * rate:
                    num_samples += left_out
                    check_upper(num_samples, rate, frame.layout.nb_channels, limits)
                    blocks.append(np.zeros(left_out, np.float32))
            num_samples += frame.samples
            check_upper(num_samples, rate, frame.layout.nb_channels, limits)
            for converted in to_float.resample(frame):
                blocks.append(cast(NDArray[np.float32], converted.to_ndarray()).mean(axis=0, dtype=np.float32))
    _check_whole(stream, data, Reason.CORRUPT_AUDIO)
    check_sound(num_samples, rate, 1, limits)
    return clipped(np.concatenate(blocks), rate)


def _start(stream: Any) -> float | None:
    """When a stream begins, in seconds of the container's clock."""
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def decode_container(data: bytes, limits: MediaLimits) -> Audio:
    """The sound in an MP4 or a Matroska. And a FLAC whose recorder did not know how long it would be: libsndfile cannot
    tell where it ends, FFmpeg can."""
    options = {"format_whitelist": "flac,mov,matroska", "protocol_whitelist": ""}
    with av.open(io.BytesIO(data), mode="r", options=options) as file:
        if not file.streams.audio:
            raise RowError(Reason.CORRUPT_AUDIO, "a film without a sound track")
        return _decode_track(file, data, limits)
