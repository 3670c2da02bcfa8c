"""Preprocessing: the steps of a recipe on texts, media and features of a row.

A step is a section of the recipe (`pipeline.config.steps`) and a pure function here (`text`, `image`, `audio`,
`video`), whose parameters are the section's fields. This module brings the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import augmentations
from pipeline.config import steps as sections
from pipeline.config.step_bases import Augmentation, Picture, StepSection
from pipeline.config.steps import Step, TextPart
from pipeline.data.schema import Reason, RowError, split_content
from pipeline.data.steps import audio as sounds
from pipeline.data.steps import image as pictures
from pipeline.data.steps import text as texts
from pipeline.data.steps import video as clips
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Video

_ON_TEXT: Mapping[type[StepSection], Callable[..., str]] = {
    sections.TextNormalise: texts.normalise,
    sections.TextRemoveControls: texts.remove_controls,
    sections.TextLength: texts.length,
}
_ON_IMAGE: Mapping[type[StepSection], Callable[..., Image]] = {
    sections.ImageResize: pictures.resize,
    sections.ImageBounds: pictures.bounds,
    augmentations.ImageCrop: pictures.crop,
    augmentations.ImageFlip: pictures.flip,
    augmentations.ImageColour: pictures.colour,
    augmentations.ImageBlur: pictures.blur,
    augmentations.ImageErase: pictures.erase,
}
_ON_AUDIO: Mapping[type[StepSection], Callable[..., Audio]] = {
    sections.AudioResample: sounds.resample,
    sections.AudioLoudness: sounds.loudness,
    sections.AudioTrim: sounds.trim,
    sections.AudioDenoise: sounds.denoise,
    sections.AudioBounds: sounds.bounds,
    augmentations.AudioNoise: sounds.noise,
    augmentations.AudioSpeed: sounds.speed,
    augmentations.AudioSpecAugment: sounds.spec_augment,
    augmentations.AudioReverb: sounds.reverb,
}
_ON_VIDEO: Mapping[type[StepSection], Callable[..., Video]] = {
    sections.VideoSample: clips.sample,
    sections.VideoBounds: clips.bounds,
}
_FEATURES_OF_AUDIO: Mapping[type[StepSection], Callable[..., NDArray[np.float32]]] = {
    sections.AudioMel: sounds.mel,
    sections.AudioMfcc: sounds.mfcc,
}

_WITHOUT_DRAWS = frozenset({augmentations.ImageFlip})
"""Augmentations in which nothing is left to chance but whether they happen."""

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
        function = _ON_TEXT.get(type(step))
        if function is not None and getattr(step, "of", part) == part:
            text = function(text, **_parameters(step))
    if _tags(text) != _tags(given):
        raise RowError(Reason.PLACEHOLDER_MISMATCH, f"the text steps changed which tags stand in {given[:80]!r}")
    return text


def apply_medium(
    steps: Sequence[Step], decoded: DecodedMedium, *, rng: np.random.Generator, is_training: bool
) -> DecodedMedium:
    """A medium after all steps for its kind, in order; the very same object where none changed it.

    Each augmentation draws from a generator of its own, made of one draw from `rng`, the step's name and how often the
    name came before: other steps, wherever they stand, change none of its draws.

    Args:
        rng: drawn from once.
        is_training: whether the row is of the training split; augmentations leave others alone.

    Raises:
        RowError: the medium is out of bounds.
    """
    base = int(rng.integers(2**63))
    num_seen: dict[str, int] = {}
    for step in steps:
        if not isinstance(step, Augmentation):
            decoded = _apply(step, decoded, seed=None)
            continue
        num_seen[step.step] = num_seen.get(step.step, 0) + 1
        seed = (base, num_seen[step.step], *step.step.encode())
        if is_training and np.random.default_rng(seed).random() < step.probability:
            decoded = _apply(step, decoded, seed=(*seed, 0))
    return decoded


def apply_features(steps: Sequence[Step], decoded: DecodedMedium) -> dict[str, NDArray[np.float32]]:
    """The features that the steps ask for of a medium that has been through `apply_medium`: name -> float32 [T, F]."""
    if not isinstance(decoded, Audio):
        return {}
    return {
        step.name: _FEATURES_OF_AUDIO[type(step)](decoded, **_parameters(step))
        for step in steps
        if isinstance(step, sections.AudioMel | sections.AudioMfcc)
    }


def _apply(step: StepSection, decoded: DecodedMedium, *, seed: Sequence[int] | None) -> DecodedMedium:
    """One step on one medium; every function gets a fresh generator from `seed`, where it draws at all."""

    def draws() -> dict[str, Any]:
        return {} if seed is None or type(step) in _WITHOUT_DRAWS else {"rng": np.random.default_rng(seed)}

    match decoded:
        case Image():
            function = _ON_IMAGE.get(type(step))
        case Audio():
            function = _ON_AUDIO.get(type(step))
        case Video():
            function = _ON_VIDEO.get(type(step))
            if isinstance(step, Picture) and step.videos:
                on_frame = _ON_IMAGE[type(step)]
                parameters = _parameters(step)
                return _each_frame(decoded, lambda frame: on_frame(frame, **parameters, **draws()))
    return decoded if function is None else function(decoded, **_parameters(step), **draws())


def _each_frame(video: Video, function: Callable[[Image], Image]) -> Video:
    frames = [Image(pixels=pixels) for pixels in video.frames]
    changed = [function(frame) for frame in frames]
    if all(after is before for after, before in zip(changed, frames, strict=True)):
        return video
    return Video(frames=np.stack([frame.pixels for frame in changed]), frames_per_second=video.frames_per_second)


def _parameters(step: StepSection) -> dict[str, Any]:
    return {name: getattr(step, name) for name in type(step).model_fields if name not in _NO_PARAMETERS}


def _tags(text: str) -> list[MediaKind]:
    return [part for part in split_content(text) if isinstance(part, MediaKind)]
