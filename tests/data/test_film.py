"""Films: rate, start and length are what the timestamps say, whatever the container claims."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image as pillow

from pipeline.config import MediaLimits
from pipeline.data.film import sound_track
from pipeline.data.media import decode
from pipeline.data.schema import Reason, RowError
from pipeline.records import Audio, MediaKind, Medium, Video
from tests.data.files import film, image_file, sound_in, video_file, without_default_duration

ONE_A_SECOND = range(0, 10_000, 1_000)
UNEVEN = [*range(0, 1_000, 100), *range(1_000, 11_000, 1_000)]
"""Ten frames in the first second, then ten in ten: 19 steps in 10 seconds."""


def shown(data: bytes, **limits: float) -> Video:
    video = decode(Medium(MediaKind.VIDEO, data), MediaLimits.model_validate(limits))
    assert isinstance(video, Video)
    return video


def numbers(video: Video) -> list[int]:
    """Which frame of `film` each one is."""
    return np.round(video.frames.mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


@pytest.mark.parametrize(
    ("container", "codec"),
    [("webm", "libvpx"), ("matroska", "libx264"), ("mp4", "libx264"), ("flv", "libx264"), ("mpegts", "libx264")],
)
def test_a_film_of_one_frame_a_second_has_that_rate_whatever_its_header_says(container: str, codec: str) -> None:
    video = shown(film(ONE_A_SECOND, container, codec))
    assert video.frames_per_second == pytest.approx(1.0)
    assert numbers(video) == list(range(10))


@pytest.mark.parametrize("first_s", [0, 5])
def test_a_browsers_recording_without_duration_has_the_rate_of_its_timestamps(first_s: int) -> None:
    times = [1_000 * first_s + 66 * number + 10 * (number % 2) for number in range(31)]
    data = without_default_duration(film(times, "webm", "libvpx"))
    assert shown(data).frames_per_second == pytest.approx(1 / 0.066)
    assert numbers(shown(data)) == list(range(31)), "jitter neither drops nor repeats a frame"


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_frames_of_an_uneven_film_stand_for_the_moments_at_even_steps(container: str) -> None:
    """20 frames at 19 steps in 10 s: the middle of the k-th span is (k + .5) / 1.9 s."""
    video = shown(film(UNEVEN, container))
    assert video.frames_per_second == pytest.approx(1.9)
    moments = (np.arange(20) + 0.5) / 1.9
    assert numbers(video) == [int(10 * at) if at < 1 else 9 + min(10, int(at)) for at in moments]
    thinned = shown(film(UNEVEN, container), max_frames=5)
    assert numbers(thinned) == [2, 11, 13, 15, 17], "0.26, 2.37, 4.47, 6.58, 8.68 s"
    assert thinned.frames_per_second == pytest.approx(1.9 / 4)


@pytest.mark.parametrize("options", [{}, {"bf": "0"}])
def test_an_edit_list_leaves_out_what_it_cuts_off(options: dict[str, str]) -> None:
    video = shown(film(range(-500, 1_500, 100), options=options))
    assert video.frames_per_second == pytest.approx(10.0)
    assert numbers(video) == list(range(5, 20))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_is_timed_by_its_frames_and_not_by_its_ticks(codec: str) -> None:
    """Its clock ticks a thousand times a second, which its header calls the rate."""
    video = shown(film(range(0, 2_000, 100), "avi", codec))
    assert video.frames_per_second == pytest.approx(10.0)
    assert len(video.frames) == 20


def test_a_film_is_too_long_by_its_timestamps_and_not_by_a_rounding() -> None:
    slow = film(ONE_A_SECOND, "webm", "libvpx")
    with pytest.raises(RowError) as caught:
        shown(slow, max_seconds=9.9)
    assert caught.value.reason is Reason.TOO_LONG
    shown(slow, max_seconds=10)
    third = film([round(1_000 * number / 3) for number in range(30)], "webm", "libvpx")  # ends at 9.667 s, not 9.6667
    assert len(shown(third, max_seconds=10).frames) == 30


def track(data: bytes) -> Audio:
    sound = sound_track(Medium(MediaKind.VIDEO, data), MediaLimits())
    assert sound is not None
    return sound


def silences_s(sound: Audio) -> list[float]:
    """Lengths of the silences, in seconds, to 0.1 s."""
    step = sound.sampling_rate // 100
    loudest = np.abs(sound.samples[: len(sound.samples) // step * step]).reshape(-1, step).max(axis=1)
    runs = "".join("x" if each < 1e-2 else " " for each in loudest).split()
    return [round(len(run) / 100, 1) for run in runs if len(run) > 5]


@pytest.mark.parametrize(("container", "codec"), [("webm", "libvpx"), ("mp4", "libx264"), ("mpegts", "libx264")])
@pytest.mark.parametrize(
    ("heard", "silences", "seconds"),
    [
        (range(0, 2_000, 20), [], 2.0),
        (range(500, 2_000, 20), [0.5], 2.0),
        ([*range(0, 600, 20), *range(1_400, 2_000, 20)], [0.8], 2.0),
    ],
    ids=["from the start", "later", "with a pause"],
)
def test_a_sound_track_keeps_its_place_beside_the_picture(
    container: str, codec: str, heard: list[int], silences: list[float], seconds: float
) -> None:
    sound = track(film(range(0, 2_000, 100), container, codec, sound=heard))
    assert len(sound.samples) / sound.sampling_rate == pytest.approx(seconds, abs=0.1)
    assert silences_s(sound) == silences


@pytest.mark.parametrize("container", ["ipod", "mp4", "matroska", "webm"])
def test_the_sound_in_a_container_is_read_to_its_end_and_within_bounds(container: str) -> None:
    medium = Medium(MediaKind.AUDIO, sound_in(container, "libopus" if container == "webm" else "aac"))
    sound = decode(medium, MediaLimits())
    assert isinstance(sound, Audio)
    assert sound.sampling_rate == 48_000
    assert len(sound.samples) / 48_000 == pytest.approx(1.0, abs=0.03)
    assert float(np.sqrt(np.mean(np.square(sound.samples)))) == pytest.approx(8_000 / 32_768 / np.sqrt(2), rel=0.05)
    for limits, reason in ((MediaLimits(max_seconds=0.9), Reason.TOO_LONG), (MediaLimits(max_bytes=99), None)):
        with pytest.raises(RowError) as caught:
            decode(medium, limits)
        assert caught.value.reason is (reason or Reason.TOO_MANY_BYTES)


def refused(data: bytes) -> RowError:
    with pytest.raises(RowError) as caught:
        shown(data)
    return caught.value


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts", "avi"])
def test_a_recording_that_begins_between_two_key_frames_is_shown_from_the_next_one_on(container: str) -> None:
    data = film(range(0, 4_500, 100), container, options={"g": "15", "bf": "0", "sc_threshold": "0"}, begin=5)
    video = shown(data)
    assert video.frames_per_second == pytest.approx(10.0)
    assert numbers(video) == list(range(15, 45))
    assert numbers(shown(data, max_frames=5)) == [15, 21, 27, 33, 39], "evenly over what can be seen"


@pytest.mark.parametrize(("container", "codec"), [("matroska", "libx264"), ("webm", "libvpx"), ("mpeg", "mpeg1video")])
def test_a_film_whose_clock_begins_again_is_refused_with_what_to_do(container: str, codec: str) -> None:
    data = video_file(container, codec) if container == "mpeg" else film(range(0, 1_000, 40), container, codec)
    shown(data)
    error = refused(data + data)
    assert error.reason is Reason.CORRUPT_VIDEO
    assert "clock begins again" in error.detail and "ffmpeg" in error.detail


FILMS = [("matroska", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("flv", "libx264"), ("mp4", "libx264")]


@pytest.mark.parametrize(("container", "codec"), FILMS)
def test_a_film_whose_rest_is_zeros_is_refused_and_not_shortened(container: str, codec: str) -> None:
    data = film(range(0, 2_000, 100), container, codec, noise=60, options={"b": "400k"})
    assert len(shown(data).frames) == 20
    half = len(data) // 2
    assert refused(data[:half] + bytes(20_000)).reason is Reason.CORRUPT_VIDEO


@pytest.mark.parametrize(("container", "codec"), [("matroska", "libx264"), ("webm", "libvpx")])
def test_a_live_film_whose_recorder_knew_no_size_is_read_to_its_end(container: str, codec: str) -> None:
    data = film(range(0, 2_000, 100), container, codec, writing={"live": "1"}, noise=60)
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in data
    assert len(shown(data).frames) == 20


def test_files_of_films_end_where_they_say_whatever_lies_behind() -> None:
    for container, codec in FILMS:
        data = film(range(0, 1_000, 100), container, codec)
        if container != "flv":  # which says nothing of its end
            assert len(shown(data + b"\x81 a tag" * 9).frames) == 10, container


def song_with_a_cover() -> bytes:
    cover, written = image_file(pillow.new("RGB", (64, 64), "red"), "JPEG"), io.BytesIO()
    with av.open(written, "w", format="mp4") as file:
        track = cast(Any, file.add_stream("aac", rate=48_000, layout="mono"))
        picture = cast(Any, file.add_stream("mjpeg"))
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = Disposition.attached_pic
        track.codec_context.open()
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 90_000)
        file.mux(packet)
        for number in range(47):
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 48_000, 1_024 * number
            file.mux(track.encode(piece))
        file.mux(track.encode())
    return written.getvalue()


def test_a_song_with_a_cover_is_a_sound_and_no_film() -> None:
    assert "cover" in refused(song_with_a_cover()).detail
    sound = decode(Medium(MediaKind.AUDIO, song_with_a_cover()), MediaLimits())
    assert isinstance(sound, Audio) and len(sound.samples) / 48_000 == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("container", "codec"), [("webm", "libvpx"), ("mpegts", "mpeg2video"), ("mp4", "libx264")])
def test_a_film_of_one_frame_has_no_rate_of_its_clock(container: str, codec: str) -> None:
    data = (
        video_file(container, codec, num_frames=1, size=(16, 16))
        if codec == "mpeg2video"
        else film([0], container, codec)
    )
    video = shown(without_default_duration(data) if container == "webm" else data)
    assert len(video.frames) == 1 and 0 < video.frames_per_second < 31
