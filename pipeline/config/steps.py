"""The steps of preprocessing: an ordered list in a recipe, one section a step, told apart by `step`.

    steps:
      - {step: text.normalise, form: nfc}
      - {step: image.resize, max_side: 1024}

Fields that begin with `min_` and `max_` are a pair and must be in order. Each section's docstring and those of its
fields are the help text. What runs them is `pipeline.data.steps`; `video.keep_sound` and `dedup.*` concern more than
one medium, and `jobs.prepare` acts on them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.augmentations import (
    AudioNoise,
    AudioReverb,
    AudioSpecAugment,
    AudioSpeed,
    ImageBlur,
    ImageColour,
    ImageCrop,
    ImageErase,
    ImageFlip,
)
from pipeline.config.step_bases import Picture, StepSection


class NormalForm(StrEnum):
    NFC = "nfc"
    NFD = "nfd"
    NFKC = "nfkc"
    NFKD = "nfkd"


class TextPart(StrEnum):
    MESSAGE = "message"
    ANSWER = "answer"


class TextNormalise(StepSection):
    """Brings text to one Unicode form (UAX 15) and one kind of line end."""

    step: Literal["text.normalise"] = "text.normalise"
    form: NormalForm = NormalForm.NFC
    """`nfc` and `nfd` keep every character's meaning; `nfkc` and `nfkd` also replace ligatures, full-width letters,
    superscripts and the like: x² becomes x2."""
    unify_line_ends: bool = True
    """Whether every line or page end (CR LF, CR, NEL, VT, FF, U+2028, U+2029) becomes a line feed."""
    strip_line_ends: bool = True
    """Whether blanks at the ends of lines, and at the end of the text, are dropped."""


class TextRemoveControls(StepSection):
    """Removes characters that nobody sees: controls but tab and line feed, bidirectional overrides and marks, invisible
    format and tag characters, private use, noncharacters and lone surrogates. Joiners stay in scripts and emoji that
    need them."""

    step: Literal["text.remove_controls"] = "text.remove_controls"


class TextLength(StepSection):
    """Refuses rows with a text that is too short or too long, in characters; tags of media do not count."""

    step: Literal["text.length"] = "text.length"
    of: TextPart = TextPart.MESSAGE
    """Which texts: every `message` of the prompt, or the `answer` (reference, demonstration, chosen, rejected)."""
    min_characters: int = Field(default=0, ge=0)
    """Shortest text. Shorter ones are refused as `text_too_short`."""
    max_characters: int | None = Field(default=None, gt=0)
    """Longest text. Longer ones are refused as `text_too_long`."""


class ImageResize(Picture):
    """Resizes pictures (Lanczos, antialiased), keeping the aspect ratio."""

    step: Literal["image.resize"] = "image.resize"
    max_side: int | None = Field(default=None, gt=0)
    """Longest side in pixels; larger pictures shrink."""
    max_pixels: int | None = Field(default=None, gt=0)
    """Most pixels; larger pictures shrink."""
    min_side: int | None = Field(default=None, gt=0)
    """Shortest side in pixels; smaller pictures grow, as far as the other bounds allow. Null: nothing ever grows."""

    @model_validator(mode="after")
    def _check(self) -> ImageResize:
        self.need_one_of("max_side", "max_pixels", "min_side")
        return self


class ImageBounds(Picture):
    """Refuses rows with pictures that are too small, too large or too narrow."""

    step: Literal["image.bounds"] = "image.bounds"
    min_side: int | None = Field(default=None, gt=0)
    """Shortest side in pixels. Smaller pictures are refused as `too_few_pixels`."""
    max_side: int | None = Field(default=None, gt=0)
    """Longest side in pixels. Larger pictures are refused as `too_many_pixels`."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Longest side divided by shortest side. Narrower pictures are refused as `bad_aspect_ratio`."""

    @model_validator(mode="after")
    def _check(self) -> ImageBounds:
        self.need_one_of("min_side", "max_side", "max_aspect_ratio")
        return self


class AudioResample(StepSection):
    """Brings sounds to one sampling rate (soxr, high quality)."""

    step: Literal["audio.resample"] = "audio.resample"
    sampling_rate: int = Field(default=16_000, ge=1_000, le=384_000)
    """In Hz."""


class AudioLoudness(StepSection):
    """Brings sounds to one loudness (ITU-R BS.1770), by a single gain. Silence stays as it is."""

    step: Literal["audio.loudness"] = "audio.loudness"
    target_lufs: float = Field(default=-23.0, ge=-60, le=0)
    """In LUFS, which are dB below full scale."""
    max_peak_db: float = Field(default=-1.0, le=0)
    """Highest sample, in dB against full scale: where the target would lift one above it, the sound stays quieter."""


class AudioTrim(StepSection):
    """Cuts silence off both ends. A sound that is silent throughout stays as it is."""

    step: Literal["audio.trim"] = "audio.trim"
    threshold_db: float = Field(default=40.0, gt=0)
    """What lies this far below the loudest 10 ms, in dB, is silence."""
    padding_s: float = Field(default=0.05, ge=0)
    """How much of the silence stays at each end, in seconds."""


class AudioDenoise(StepSection):
    """Lowers steady noise by spectral gating: each frequency is turned down while it stays near the noise level of that
    frequency, which the quietest frames tell."""

    step: Literal["audio.denoise"] = "audio.denoise"
    reduction_db: float = Field(default=12.0, gt=0)
    """How far noise is turned down, in dB."""
    quietest: float = Field(default=0.1, gt=0, le=1)
    """Share of the frames, the quietest, that are taken for noise alone."""
    num_deviations: float = Field(default=1.5, ge=0)
    """The gate opens at this many standard deviations above the mean noise level in dB."""


class AudioBounds(StepSection):
    """Refuses rows with sounds that are too short or too long."""

    step: Literal["audio.bounds"] = "audio.bounds"
    min_seconds: float | None = Field(default=None, gt=0)
    """Shorter sounds are refused as `sound_too_short`."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Longer sounds are refused as `too_long`."""

    @model_validator(mode="after")
    def _check(self) -> AudioBounds:
        self.need_one_of("min_seconds", "max_seconds")
        return self


class AudioMel(StepSection):
    """Keeps the logarithmic mel spectrogram beside the row, float32 [frames, mels], for models that want it."""

    step: Literal["audio.mel"] = "audio.mel"
    name: str = Field(default="mel", pattern=r"^[a-z][a-z0-9_]*$")
    """What the feature is called."""
    num_mels: int = Field(default=80, gt=0)
    """Mel bands."""
    window_s: float = Field(default=0.025, gt=0)
    """Length of a frame, in seconds."""
    hop_s: float = Field(default=0.01, gt=0)
    """From frame to frame, in seconds."""


class AudioMfcc(StepSection):
    """Keeps mel-frequency cepstral coefficients beside the row, float32 [frames, coefficients]."""

    step: Literal["audio.mfcc"] = "audio.mfcc"
    name: str = Field(default="mfcc", pattern=r"^[a-z][a-z0-9_]*$")
    """What the feature is called."""
    num_coefficients: int = Field(default=13, gt=0)
    """Coefficients; at most `num_mels`."""
    num_mels: int = Field(default=40, gt=0)
    """Mel bands."""
    window_s: float = Field(default=0.025, gt=0)
    """Length of a frame, in seconds."""
    hop_s: float = Field(default=0.01, gt=0)
    """From frame to frame, in seconds."""

    @model_validator(mode="after")
    def _check(self) -> AudioMfcc:
        if self.num_coefficients > self.num_mels:
            raise ValueError(f"num_coefficients={self.num_coefficients}: at most num_mels={self.num_mels}")
        return self


class VideoSample(StepSection):
    """Keeps frames at even distances, by rate or by number. Never adds any."""

    step: Literal["video.sample"] = "video.sample"
    frames_per_second: float | None = Field(default=None, gt=0)
    """Frames that are kept of each second."""
    num_frames: int | None = Field(default=None, gt=0)
    """Frames that are kept of each video."""

    @model_validator(mode="after")
    def _check(self) -> VideoSample:
        if (self.frames_per_second is None) == (self.num_frames is None):
            raise ValueError("set frames_per_second or num_frames, one of the two")
        return self


class VideoBounds(StepSection):
    """Refuses rows with videos that are too short or too long."""

    step: Literal["video.bounds"] = "video.bounds"
    min_seconds: float | None = Field(default=None, gt=0)
    """Shorter videos are refused as `video_too_short`."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Longer videos are refused as `too_long`."""
    min_frames: int | None = Field(default=None, gt=0)
    """Videos with fewer frames are refused as `video_too_short`."""
    max_frames: int | None = Field(default=None, gt=0)
    """Videos with more frames are refused as `too_many_frames`."""

    @model_validator(mode="after")
    def _check(self) -> VideoBounds:
        self.need_one_of("min_seconds", "max_seconds", "min_frames", "max_frames")
        return self


class VideoKeepSound(StepSection):
    """Keeps the sound track of every video as a sound of its own, right after the video."""

    step: Literal["video.keep_sound"] = "video.keep_sound"


class DedupExact(StepSection):
    """Refuses rows whose text, media and answer all equal those of an earlier row, but for case and blanks."""

    step: Literal["dedup.exact"] = "dedup.exact"


class DedupNearText(StepSection):
    """Refuses rows whose text is nearly that of an earlier row with the same media (MinHash, Broder 1997)."""

    step: Literal["dedup.near_text"] = "dedup.near_text"
    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Least share of shingles that two texts have in common (Jaccard) to be near duplicates."""
    shingle: int = Field(default=5, gt=0)
    """Characters in a shingle."""
    num_permutations: int = Field(default=128, ge=16)
    """Length of the signature of a text: more tell the share more exactly (± 1 / its square root)."""
    same_answer: bool = True
    """Whether only rows with equal answers are compared: "What is 3 + 4?" and "What is 3 + 5?" are nearly equal."""


class DedupNearImage(StepSection):
    """Refuses rows whose pictures look like those of an earlier row with the same text, answer and other media."""

    step: Literal["dedup.near_image"] = "dedup.near_image"
    max_distance: int = Field(default=4, ge=0, le=11)
    """Most bits of 63 in which the perceptual hashes of two pictures may differ."""


AnyStep = (
    TextNormalise
    | TextRemoveControls
    | TextLength
    | ImageResize
    | ImageBounds
    | ImageCrop
    | ImageFlip
    | ImageColour
    | ImageBlur
    | ImageErase
    | AudioResample
    | AudioLoudness
    | AudioTrim
    | AudioDenoise
    | AudioBounds
    | AudioNoise
    | AudioSpeed
    | AudioSpecAugment
    | AudioReverb
    | AudioMel
    | AudioMfcc
    | VideoSample
    | VideoBounds
    | VideoKeepSound
    | DedupExact
    | DedupNearText
    | DedupNearImage
)

STEPS: Mapping[str, type[StepSection]] = {
    section.model_fields["step"].default: section
    for section in cast("tuple[type[StepSection], ...]", get_args(AnyStep))
}
"""Every step by its name."""


def _check_name(value: object) -> object:
    if isinstance(value, StepSection):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no step; write {{step: NAME, ...}} with one of {', '.join(STEPS)}")
    name = str(cast("Mapping[str, Any]", value).get("step"))
    if name not in STEPS:
        close = difflib.get_close_matches(name, STEPS, n=1)
        cure = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"step={name}: no such step; {cure}known: {', '.join(STEPS)}")
    return value


def _check_once(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """What `jobs.prepare` acts on comes at most once, and no two features have one name."""
    seen: set[str] = set()
    for step in steps:
        if isinstance(step, AudioMel | AudioMfcc):
            name, cure = step.name, f"give this {step.step} another name"
        elif isinstance(step, VideoKeepSound | DedupExact | DedupNearText | DedupNearImage):
            name, cure = step.step, "drop one"
        else:
            continue
        if name in seen:
            raise ValueError(f"{name} comes twice; {cure}")
        seen.add(name)
    return steps


Step = Annotated[Annotated[AnyStep, Field(discriminator="step")], BeforeValidator(_check_name)]
"""One step of a recipe."""

Steps = Annotated[tuple[Step, ...], AfterValidator(_check_once)]
"""The steps of a recipe, in order."""
