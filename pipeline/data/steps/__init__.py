"""Preprocessing: the steps of a recipe on texts, media and features of a row.

A step is a section of the recipe (`pipeline.config.steps`) and a pure function of its name here: `image.resize` is
`resize` in `image`. The function's parameters are the section's fields. This module brings the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.step_bases import Augmentation, Picture
from pipeline.config.steps import AudioMel, AudioMfcc, Step, TextPart
from pipeline.data.media import flat
from pipeline.data.schema import Reason, RowError, split_content
from pipeline.data.steps import audio as sounds
from pipeline.data.steps import image as pictures
from pipeline.data.steps import text as texts
from pipeline.data.steps import video as clips
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Video

_FUNCTIONS = {"text": texts, "image": pictures, "audio": sounds, "video": clips}
"""What holds the steps of a kind, each under its own name."""

_Features = AudioMel | AudioMfcc
"""Steps that leave a medium as it is."""

_NO_PARAMETERS = frozenset({"step", "of", "videos", "probability", "name"})
"""Fields that say when a step runs and what its result is called."""


def apply_text(steps: Sequence[Step], text: str, *, part: TextPart = TextPart.MESSAGE) -> str:
    """A text after all text steps, in order.

    Args:
        part: what the text is; `text.length` has bounds for one of them.

    Raises:
        RowError: the text is out of bounds; or a tag of a medium came or went (compatibility forms turn a full-width
            `<image>` into a tag, as does dropping an unseen character within one).
    """
    given = text
    for step in steps:
        function = _function(step, "text")
        if function is not None and getattr(step, "of", part) == part:
            text = function(text, **_parameters(step))
    if _tags(text) != _tags(given):
        raise RowError(Reason.PLACEHOLDER_MISMATCH, f"the text steps changed which tags stand in {given[:80]!r}")
    return text


def apply_medium(
    steps: Sequence[Step], decoded: DecodedMedium, *, seed: Sequence[int], is_training: bool
) -> DecodedMedium:
    """A medium after all steps for its kind, in order; the very same object where none changed it.

    Each augmentation draws from a generator of its own, made of one draw from that of `seed`, the step's name and how
    often the name came before: other steps, wherever they stand, change none of its draws.

    Args:
        is_training: whether the row is of the training split; augmentations leave others alone.

    Raises:
        RowError: the medium is out of bounds.
    """
    base: int | None = None
    num_seen: dict[str, int] = {}
    for step in steps:
        if not isinstance(step, Augmentation):
            decoded = _apply(step, decoded, seed=None)
            continue
        num_seen[step.step] = num_seen.get(step.step, 0) + 1
        if not is_training:
            continue
        base = int(np.random.default_rng(seed).integers(2**63)) if base is None else base
        own = (base, num_seen[step.step], *step.step.encode())
        if np.random.default_rng(own).random() < step.probability:
            decoded = _apply(step, decoded, seed=(*own, 0))
    return decoded


def apply_features(steps: Sequence[Step], decoded: DecodedMedium) -> dict[str, NDArray[np.float32]]:
    """The features that the steps ask for of a medium that has been through `apply_medium`: name -> float32 [T, F]."""
    if not isinstance(decoded, Audio):
        return {}
    return {
        step.name: getattr(sounds, step.step.partition(".")[2])(decoded, **_parameters(step))
        for step in steps
        if isinstance(step, _Features)
    }


def _function(step: Step, kind: str) -> Callable[..., Any] | None:
    """What a step does to a text or a medium; None where that is none of its business."""
    of, _, name = step.step.partition(".")
    return getattr(_FUNCTIONS[of], name, None) if of == kind and not isinstance(step, _Features) else None


def _apply(step: Step, decoded: DecodedMedium, *, seed: Sequence[int] | None) -> DecodedMedium:
    """One step on one medium; every function gets a fresh generator from `seed`, where it draws at all."""

    kind = flat(decoded)[0]
    on_frames = kind is MediaKind.VIDEO and isinstance(step, Picture) and step.videos
    function = _function(step, "image" if on_frames else kind.value)
    if function is None:
        return decoded

    def changed(medium: DecodedMedium) -> Any:
        draws = {"rng": np.random.default_rng(seed)} if "rng" in function.__annotations__ else {}
        return function(medium, **_parameters(step), **draws)

    return _each_frame(decoded, changed) if on_frames and isinstance(decoded, Video) else changed(decoded)


def _each_frame(video: Video, function: Callable[[Image], Image]) -> Video:
    frames = [Image(pixels=pixels) for pixels in video.frames]
    changed = [function(frame) for frame in frames]
    if all(after is before for after, before in zip(changed, frames, strict=True)):
        return video
    return Video(frames=np.stack([frame.pixels for frame in changed]), frames_per_second=video.frames_per_second)


def _parameters(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in type(step).model_fields if name not in _NO_PARAMETERS}


def _tags(text: str) -> list[MediaKind]:
    return [part for part in split_content(text) if isinstance(part, MediaKind)]
