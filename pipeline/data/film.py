"""Films and the sound in containers, by FFmpeg: rate, start and length come from the timestamps of what is inside."""

from __future__ import annotations

import io
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import av
import av.stream
import numpy as np
from numpy.typing import NDArray

from pipeline.config import MediaLimits
from pipeline.data.bounds import (
    check_bytes,
    check_end,
    check_seconds,
    check_size,
    check_sound,
    check_upper,
    clipped,
    refusal,
)
from pipeline.data.inspection import check_file, format_of
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, Medium, Video

DEMUXERS = {
    "MP4": "mov", "M4A": "mov", "WebM": "matroska", "Matroska (MKV)": "matroska", "AVI": "avi", "FLV": "flv",
    "MPEG stream": "mpeg", "MPEG-TS": "mpegts", "Ogg": "ogg", "MP3": "mp3", "FLAC": "flac", "WAV": "wav",
    "WAV (64 bits)": "wav", "WAV (big endian)": "wav", "AIFF": "aiff", "AU": "au", "CAF": "caf",
}  # fmt: skip
"""By the name of a format, the demuxer of FFmpeg that opens it, and the only one that may. None opens other files."""

MAX_FRAME_RATE = 120.0
"""With `max_seconds` it bounds how many frames are decoded, however small a file makes them."""

_JOINED = "its clock begins again, as in files that were joined: write it anew (ffmpeg -i FILE out.mp4)"

_GAP_S = 0.1
"""Clocks of recorders run this far apart; what timestamps of a sound leave out beyond it was silence."""

_MP3_FRAME = re.compile(rb"\xff[\xe2-\xff]")
# In a silent frame before the others: how many there are and, by some encoders, samples at either end that are none.
_MP3_HEADER = re.compile(
    rb"\xff[\xe2-\xff]..\0{9,34}(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](.{4})(?:(?<=\x0f.{4}).{108}L.{20}(.{3}))?",
    re.DOTALL,
)


def decode_video(data: bytes, limits: MediaLimits) -> Video:
    """The first video stream at the mean rate of its timestamps, evenly thinned to at most `max_frames` frames.

    A frame stands for the moment at its place in an even row: where timestamps are uneven (screen recordings), it is
    the one that is shown then. So the record's one rate is right for every frame.
    Two passes over the bytes: one reads timestamps without decoding, one decodes and keeps only the frames wanted.
    """
    try:
        times, rate, ticks = _measure_video(data, limits)
        num_kept = min(len(times), limits.max_frames)
        moments = np.array([place * len(times) // num_kept for place in range(num_kept)])
        # In the middle of its span, a moment finds the same frame whatever the timestamps' jitter.
        wanted = np.searchsorted(times, (moments + 0.5) / rate, side="right") - 1
        frames = _decode_frames(data, wanted.tolist(), ticks, limits)
    except RowError:
        raise
    except Exception as error:
        raise refusal(error, Reason.CORRUPT_VIDEO, limits) from None
    return Video(frames=frames, frames_per_second=rate * num_kept / len(times))


def _open(data: bytes) -> Any:
    found = format_of(data)
    demuxer = DEMUXERS[found.name] if found else ""
    options = {"format_whitelist": demuxer, "protocol_whitelist": ""}
    return av.open(_Endless(data) if demuxer == "mp3" else io.BytesIO(data), format=demuxer, options=options)


class _Endless:
    """An MP3 without a size, by which FFmpeg would doubt its header, and with zeros behind it, which fill up a last
    frame that is cut off: its place then shows that it is."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data + bytes(4_096)).read


def _film_in(container: Any) -> Any | None:
    """The first video stream that is no cover of a sound."""
    cover = av.stream.Disposition.attached_pic
    return next((each for each in container.streams.video if not each.disposition & cover), None)


def _measure_video(data: bytes, limits: MediaLimits) -> tuple[NDArray[np.float64], float, list[int]]:
    """When each frame is shown, in seconds from the first on, ascending [F]; how many there are a second; and when by
    the clock of the file, empty where that clock is not to be trusted."""
    with _open(data) as container:
        stream = _film_in(container)
        if stream is None:
            raise RowError(Reason.CORRUPT_VIDEO, "no video stream (the cover of a sound is none)")
        width, height = int(stream.width), int(stream.height)
        if width <= 0 or height <= 0:
            raise RowError(Reason.CORRUPT_VIDEO, f"frames of {width}x{height}")
        check_size(width, height, limits)
        max_packets = math.ceil(limits.max_seconds * MAX_FRAME_RATE)
        stamps: list[tuple[int | None, int | None]] = []
        first = latest = None
        for packet in container.demux(stream):
            pts = packet.pts
            if packet.is_corrupt:
                raise RowError(Reason.CORRUPT_VIDEO, f"packet {len(stamps)} is damaged or cut off")
            if packet.size > 0 and pts is not None:
                if packet.is_keyframe and latest is not None and pts < latest:  # it is shown after all before it
                    raise RowError(Reason.CORRUPT_VIDEO, _JOINED)
                first = pts if first is None and packet.is_keyframe else first
                latest = pts if latest is None else max(latest, pts)
            if packet.size > 0 and not packet.is_discard:  # an edit list leaves some out
                stamps.append((pts, packet.dts))
            if len(stamps) > max_packets:
                raise RowError(Reason.TOO_MANY_FRAMES, f"over {max_packets} frames ({MAX_FRAME_RATE:g} a second)")
        # What is shown before the first key frame needs others, which a recording that begins between two lacks.
        stamps = [each for each in stamps if each[0] is None or first is None or each[0] >= first]
        if not stamps:
            raise RowError(Reason.CORRUPT_VIDEO, "no frames")
        _check_whole(stream, data, Reason.CORRUPT_VIDEO)
        times, rate, ticks = _timing(stamps, stream)
        check_seconds(len(times) / rate, limits)
        return times, rate, [] if container.format.name == "avi" else ticks


def _timing(stamps: list[tuple[int | None, int | None]], stream: Any) -> tuple[NDArray[np.float64], float, list[int]]:
    """As `_measure_video`, from the (pts, dts) of its packets.

    What the container says of its rate is a guess, or a setting of the recorder: it counts only where no timestamps
    are. Those of an AVI are made up from its dts; where frames are shown in another order than stored, some repeat.
    """
    shown, stored = ({stamp for stamp in column if stamp is not None} for column in zip(*stamps, strict=True))
    known = sorted(stored if len(stored) > len(shown) else shown)
    if len(known) < 2:
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        rate = rate if 0 < rate <= MAX_FRAME_RATE else 1.0  # above it, it is the clock's
        return np.arange(len(stamps)) / rate, rate, []
    span = float((known[-1] - known[0]) * stream.time_base)
    rate = (len(stamps) - 1) / span
    if len(known) < len(stamps):
        return np.arange(len(stamps)) / rate, rate, []
    times = (np.array(known, np.float64) - known[0]) * float(stream.time_base)
    return times, rate, known if len(shown) == len(known) else []


def _check_whole(stream: Any, data: bytes, reason: Reason) -> None:
    """Refuses a file that was cut off, its index, or its one segment, goes on behind its end; or ends in zeros."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    end = max(end, _segment_end(data)) if data.startswith(b"\x1a\x45\xdf\xa3") else end
    if end > len(data):
        raise RowError(reason, f"cut off: the header promises {end} bytes, the file holds {len(data)}")
    if data[4:8] != b"ftyp":  # an MP4 may end in room that is free
        check_end(data, reason)


def _segment_end(data: bytes) -> int:
    """Where the segment of a Matroska ends by its size; 0 where the recorder did not know."""
    at = data.find(b"\x18\x53\x80\x67", 0, 4_096) + 4
    width = 9 - data[at].bit_length() if at < len(data) else 9
    size = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return 0 if size == (1 << 7 * width) - 1 else at + width + size


def _decode_frames(data: bytes, wanted: list[int], ticks: list[int], limits: MediaLimits) -> NDArray[np.uint8]:
    """The frames at the ascending places `wanted`, which may repeat: uint8 [F, H, W, 3]."""
    frames = np.empty((0, 0, 0, 3), np.uint8)
    with _open(data) as container:
        stream = _film_in(container)
        assert stream is not None  # measured before
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        last = None
        for number, frame in enumerate(_shown(container.decode(stream), wanted, ticks)):
            if frame is last:
                frames[number] = frames[number - 1]
                continue
            last = frame
            check_size(frame.width, frame.height, limits)
            picture = cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24"))
            picture = np.rot90(picture, k=round(frame.rotation / 90))  # phones store the turn, not the pixels
            if number == 0:  # once and whole: a list and its stack would hold every frame twice
                frames = np.empty((len(wanted), *picture.shape), np.uint8)
            if picture.shape != frames.shape[1:]:
                detail = f"frame {wanted[number]} changes size to {frame.width}x{frame.height}"
                raise RowError(Reason.CORRUPT_VIDEO, detail)
            frames[number] = picture
    return frames


def _shown(decoded: Iterable[Any], wanted: Sequence[int], ticks: Sequence[int]) -> Iterator[Any]:
    """The frame that is shown at each of the ascending places `wanted`, by the clock where its `ticks` are known.

    One place may lack a frame of its own, and shows the one before it: VP8 stores frames that are never shown.
    """
    held, held_place, number = None, -2, 0
    for position, frame in enumerate(chain(decoded, (None,))):
        place: float = math.inf if frame is None else bisect_left(ticks, frame.pts) if ticks else position
        while number < len(wanted) and wanted[number] < place:
            if held is None or held.is_corrupt or wanted[number] > held_place + 1:
                raise RowError(Reason.CORRUPT_VIDEO, f"frame {wanted[number]} cannot be decoded")
            yield held
            number += 1
        if number == len(wanted):
            return
        held, held_place = frame, place


def sound_track(medium: Medium, limits: MediaLimits) -> Audio | None:
    """The first sound track of a video, at its own rate, its channels averaged; None where it has none.

    Where it begins after the first frame, silence comes before it: picture and sound keep their places.

    Raises:
        RowError: as for a sound of its own.
    """
    check_bytes(medium, limits)
    check_file(medium)
    try:
        with _open(medium.data) as container:
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
    film = _film_in(container)
    start = None if film is None or film.start_time is None else float(film.start_time * film.time_base)
    for packet in _packets(container, stream, data):
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
                planes = [np.frombuffer(cast(Any, each), np.float32, converted.samples) for each in converted.planes]
                blocks.append(np.sum(planes, axis=0) / np.float32(len(planes)) if planes[1:] else planes[0].copy())
    check_sound(num_samples, rate, 1, limits)
    return clipped(np.concatenate(blocks), rate)


def _packets(container: Any, stream: Any, data: bytes) -> Iterator[Any]:
    """The packets of the sound track of a file that is whole."""
    if container.format.name == "mp3":
        yield from _mp3_frames(container.demux(stream), data)
        return
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise RowError(Reason.CORRUPT_AUDIO, "a packet of the sound track is damaged or cut off")
        yield packet
    _check_whole(stream, data, Reason.CORRUPT_AUDIO)


def _mp3_frames(packets: Iterable[Any], data: bytes) -> Iterator[Any]:
    """The frames of an MP3 that is whole. Tags may stand between them, where files were joined, and anything behind."""
    strange = b""
    for packet in packets:
        if packet.size and not _MP3_FRAME.match(packet):
            strange = strange or bytes(packet)
            continue
        if packet.size and strange and not strange.startswith((b"ID3", b"TAG", b"APETAGEX")):
            raise RowError(Reason.CORRUPT_AUDIO, f"damaged: no frame of an MP3 before byte {packet.pos}")
        if packet.size and packet.pos + packet.size > len(data):
            raise RowError(Reason.CORRUPT_AUDIO, "an MP3 that is cut off in its last frame")
        strange = b"" if packet.size else strange
        yield packet


def _trimmed(sound: Audio, data: bytes) -> Audio:
    """An MP3 as long as its header says, where it has one; longer where others were joined to it.

    FFmpeg leaves out what is no sound at the beginning (the encoder's delay, and the decoder's), not that at the end.
    """
    if (header := _MP3_HEADER.search(data)) is None:
        return sound
    frame = 1_152 if sound.sampling_rate >= 32_000 else 576
    delay, padding = divmod(int.from_bytes(header[2] or b"", "big"), 4_096)
    promised, length = int.from_bytes(header[1], "big") * frame - delay - padding, len(sound.samples)
    if length < promised - frame:
        raise RowError(Reason.CORRUPT_AUDIO, f"an MP3 that is cut off: {promised} samples promised, {length} held")
    joined = length > promised + padding
    return sound if joined else Audio(samples=sound.samples[:promised], sampling_rate=sound.sampling_rate)


def decode_container(data: bytes, limits: MediaLimits) -> Audio:
    """The sound in a container, an MP3, and any file whose recorder did not know how long it would be."""
    with _open(data) as file:
        if not file.streams.audio:
            raise RowError(Reason.CORRUPT_AUDIO, "a film without a sound track")
        if file.format.name != "mp3":
            return _decode_track(file, data, limits)
        longer = limits.model_copy(update={"max_seconds": limits.max_seconds + 0.5})  # by what is then left out
        sound = _trimmed(_decode_track(file, data, longer), data)
        check_sound(len(sound.samples), sound.sampling_rate, 1, limits)
        return sound
