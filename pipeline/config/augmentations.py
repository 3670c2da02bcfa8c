"""The steps of preprocessing that change media at random, on the training split only."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from pipeline.config.step_bases import Augmentation, Picture


class EraseFill(StrEnum):
    NOISE = "noise"
    MEAN = "mean"


class NoiseColour(StrEnum):
    WHITE = "white"
    PINK = "pink"


class ImageCrop(Augmentation, Picture):
    """Cuts out a part at random and brings it back to the picture's size (Szegedy et al., arXiv 1409.4842)."""

    step: Literal["image.crop"] = "image.crop"
    min_area: float = Field(default=0.5, gt=0, le=1)
    """Smallest share of the picture's area that is kept."""
    max_stretch: float = Field(default=4 / 3, ge=1)
    """Most that width against height may change."""


class ImageFlip(Augmentation, Picture):
    """Mirrors pictures. Not for data that tells left from right, or that holds writing."""

    step: Literal["image.flip"] = "image.flip"
    vertical: bool = False
    """Whether top and bottom change places, instead of left and right."""


class ImageColour(Augmentation, Picture):
    """Changes brightness, contrast, saturation and hue at random."""

    step: Literal["image.colour"] = "image.colour"
    brightness: float = Field(default=0.2, ge=0, le=1)
    """The factor is drawn from 1 ± this."""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """The factor is drawn from 1 ± this."""
    saturation: float = Field(default=0.2, ge=0, le=1)
    """The factor is drawn from 1 ± this."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """The shift is drawn from ± this, as a share of the colour circle."""


class ImageBlur(Augmentation, Picture):
    """Blurs pictures by a Gaussian."""

    step: Literal["image.blur"] = "image.blur"
    min_sigma: float = Field(default=0.1, gt=0)
    """Smallest standard deviation, in pixels."""
    max_sigma: float = Field(default=2.0, gt=0)
    """Largest standard deviation, in pixels."""


class ImageErase(Augmentation, Picture):
    """Erases a rectangle at random (Zhong et al., arXiv 1708.04896)."""

    step: Literal["image.erase"] = "image.erase"
    min_area: float = Field(default=0.02, gt=0, lt=1)
    """Smallest share of the picture's area."""
    max_area: float = Field(default=0.2, gt=0, lt=1)
    """Largest share of the picture's area."""
    max_aspect_ratio: float = Field(default=3.3, ge=1)
    """Longest side of the rectangle divided by its shortest."""
    fill: EraseFill = EraseFill.NOISE
    """`noise`: random pixels; `mean`: the picture's mean colour."""


class AudioNoise(Augmentation):
    """Adds noise."""

    step: Literal["audio.noise"] = "audio.noise"
    min_snr_db: float = 10.0
    """Lowest ratio of the sound's power to that of the noise, in dB."""
    max_snr_db: float = 30.0
    """Highest ratio."""
    colour: NoiseColour = NoiseColour.WHITE
    """`white`: equal power at every frequency; `pink`: power falls by 3 dB an octave."""


class AudioSpeed(Augmentation):
    """Plays sounds faster or slower; pitch and duration change together (Ko et al., Interspeech 2015)."""

    step: Literal["audio.speed"] = "audio.speed"
    min_factor: float = Field(default=0.9, ge=0.25)
    """Slowest, as a factor of the speed."""
    max_factor: float = Field(default=1.1, le=4)
    """Fastest, as a factor of the speed."""


class AudioSpecAugment(Augmentation):
    """Silences bands of time and of frequency (SpecAugment, Park et al., arXiv 1904.08779), without warping time."""

    step: Literal["audio.spec_augment"] = "audio.spec_augment"
    num_frequency_masks: int = Field(default=2, ge=0)
    """Number of frequency bands."""
    max_mel_fraction: float = Field(default=0.2, gt=0, le=1)
    """Widest band of frequencies, as a share of the mel scale up to half the sampling rate."""
    num_time_masks: int = Field(default=2, ge=0)
    """Number of spans of time."""
    max_mask_s: float = Field(default=0.5, gt=0)
    """Longest span, in seconds."""
    max_time_fraction: float = Field(default=0.2, gt=0, le=1)
    """Longest span as a share of the sound; the lower of the two bounds holds."""


class AudioReverb(Augmentation):
    """Puts sounds into a room: a synthetic response, noise that decays exponentially. Duration and energy stay."""

    step: Literal["audio.reverb"] = "audio.reverb"
    min_rt60_s: float = Field(default=0.2, gt=0)
    """Shortest time in which the room's response falls by 60 dB, in seconds."""
    max_rt60_s: float = Field(default=0.8, gt=0, le=10)
    """Longest such time."""
    min_direct_db: float = 0.0
    """Lowest ratio of the direct sound's energy to that of the room, in dB."""
    max_direct_db: float = 10.0
    """Highest such ratio."""
