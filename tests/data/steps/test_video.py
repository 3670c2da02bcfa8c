"""Videos: fewer frames at even distances, at a rate that keeps the duration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.data.schema import Reason, RowError
from pipeline.data.steps import video as steps
from pipeline.records import Video


def numbered(num_frames: int, rate: float) -> Video:
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return Video(frames=np.broadcast_to(frames, (num_frames, 4, 4, 3)), frames_per_second=rate)


def numbers(video: Video) -> list[int]:
    return video.frames[:, 0, 0, 0].tolist()


def test_by_number_frames_lie_evenly_and_the_rate_falls_with_them() -> None:
    four = steps.sample(numbered(12, 6.0), frames_per_second=None, num_frames=4)
    assert numbers(four) == [0, 3, 6, 9]
    assert four.frames_per_second == 2.0
    five = steps.sample(numbered(12, 6.0), frames_per_second=None, num_frames=5)
    assert numbers(five) == [0, 2, 4, 7, 9]
    assert five.frames_per_second == pytest.approx(2.5)


def test_by_rate_every_second_keeps_as_many_frames_and_the_duration_stays() -> None:
    slow = steps.sample(numbered(30, 10.0), frames_per_second=2.0, num_frames=None)
    assert numbers(slow) == [0, 5, 10, 15, 20, 25]
    assert slow.frames_per_second == 2.0
    odd = steps.sample(numbered(10, 3.0), frames_per_second=2.0, num_frames=None)
    assert len(odd.frames) / odd.frames_per_second == pytest.approx(10 / 3)


def test_a_video_with_fewer_frames_comes_back_itself_and_one_frame_is_left_at_least() -> None:
    video = numbered(5, 2.0)
    assert steps.sample(video, frames_per_second=2.0, num_frames=None) is video
    assert steps.sample(video, frames_per_second=None, num_frames=5) is video
    assert numbers(steps.sample(video, frames_per_second=0.01, num_frames=None)) == [0]


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ({"min_seconds": 2.6}, Reason.VIDEO_TOO_SHORT),
        ({"max_seconds": 2.4}, Reason.TOO_LONG),
        ({"min_frames": 6}, Reason.VIDEO_TOO_SHORT),
        ({"max_frames": 4}, Reason.TOO_MANY_FRAMES),
    ],
)
def test_videos_out_of_bounds_are_refused_and_those_at_the_bounds_are_not(
    bound: dict[str, Any], reason: Reason
) -> None:
    video = numbered(5, 2.0)
    none: dict[str, Any] = dict.fromkeys(("min_seconds", "max_seconds", "min_frames", "max_frames"))
    with pytest.raises(RowError) as caught:
        steps.bounds(video, **(none | bound))
    assert caught.value.reason is reason
    measured = numbered(30, 29 / 9.667)  # of timestamps in whole milliseconds
    assert steps.bounds(measured, min_seconds=10.0, max_seconds=10.0, min_frames=None, max_frames=None) is measured
    assert steps.bounds(video, min_seconds=2.5, max_seconds=2.5, min_frames=5, max_frames=5) is video
