"""Steps on videos. Decoding has thinned them to `data.limits.max_frames` already; these go further.

What is left as it is comes back as the same object.
"""

from __future__ import annotations

from pipeline.data.bounds import ROUNDING_S
from pipeline.data.schema import Reason, RowError
from pipeline.records import Video


def sample(video: Video, *, frames_per_second: float | None, num_frames: int | None) -> Video:
    """At most so many frames, at even distances from the first on; `frames_per_second` falls with their number.

    Args:
        frames_per_second: wanted rate, or None.
        num_frames: wanted number, or None. The video keeps its duration either way.
    """
    num_given = len(video.frames)
    num_kept = num_given
    if frames_per_second is not None:
        num_kept = max(1, round(num_given * frames_per_second / video.frames_per_second))
    if num_frames is not None:
        num_kept = min(num_kept, num_frames)
    if num_kept >= num_given:
        return video
    kept = [place * num_given // num_kept for place in range(num_kept)]
    return Video(frames=video.frames[kept], frames_per_second=video.frames_per_second * num_kept / num_given)


def bounds(
    video: Video,
    *,
    min_seconds: float | None,
    max_seconds: float | None,
    min_frames: int | None,
    max_frames: int | None,
) -> Video:
    """The video itself, if its duration and its number of frames are within bounds.

    Raises:
        RowError: video_too_short, too_long or too_many_frames.
    """
    num_frames = len(video.frames)
    seconds = num_frames / video.frames_per_second
    if min_seconds is not None and seconds < min_seconds - ROUNDING_S:
        raise RowError(Reason.VIDEO_TOO_SHORT, f"{seconds:.2f} s; min_seconds is {min_seconds:g}")
    if max_seconds is not None and seconds > max_seconds + ROUNDING_S:
        raise RowError(Reason.TOO_LONG, f"{seconds:.2f} s; max_seconds is {max_seconds:g}")
    if min_frames is not None and num_frames < min_frames:
        raise RowError(Reason.VIDEO_TOO_SHORT, f"{num_frames} frames; min_frames is {min_frames}")
    if max_frames is not None and num_frames > max_frames:
        raise RowError(Reason.TOO_MANY_FRAMES, f"{num_frames} frames; max_frames is {max_frames}")
    return video
