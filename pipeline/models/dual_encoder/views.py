"""Pictures and sounds altered a little: what they show and say stays. Which alteration comes is a matter of a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.fusion import Modality

MOST_SHIFT = 1 / 12
"""Of a picture's side, each way."""
BRIGHTNESS = (0.75, 1.15)
PICTURE_NOISE = 0.05
LOUDNESS = (0.5, 1.2)
SOUND_NOISE = 0.02
MOST_DELAY = 1 / 40
"""Of a sound's longest time."""


def altered(modality: Modality, rows: Tensor, seeds: Sequence[int]) -> Tensor:
    """A view of each row; text and what has no view of its own come as they are.

    Pictures float32 [B, 3, H, W] (or videos [B, F, 3, H, W], all frames alike) in [-1, 1]: moved, darker or brighter,
    noisier. Sounds float32 [B, S]: begun later, softer or louder, noisier where there is sound.

    seeds: one a row, so that a row's view does not depend on what batch it comes in.
    """
    makers = {Modality.IMAGE: _picture, Modality.VIDEO: _picture, Modality.AUDIO: _sound}
    if modality not in makers:
        return rows
    views = [makers[modality](row, torch.Generator().manual_seed(seed)) for row, seed in zip(rows, seeds, strict=True)]
    return torch.stack(views)


def _uniform(low: float, high: float, random: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def _picture(pixels: Tensor, random: torch.Generator) -> Tensor:
    most = max(1, round(MOST_SHIFT * pixels.shape[-1]))
    down, right = (int(each) for each in torch.randint(-most, most + 1, (2,), generator=random))
    height, width = pixels.shape[-2:]
    # Edges repeat where the picture has moved away.
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    moved = pixels[..., rows, :][..., columns]
    lit = (moved + 1) * _uniform(*BRIGHTNESS, random) - 1
    return (lit + PICTURE_NOISE * torch.randn(lit.shape, generator=random)).clamp(-1, 1)


def _sound(samples: Tensor, random: torch.Generator) -> Tensor:
    delay = int(torch.randint(0, max(1, int(MOST_DELAY * len(samples))), (), generator=random))
    heard = torch.nonzero(samples)[-1:].flatten()
    # The silence at the end is padding; sound is not pushed out of it.
    delay = min(delay, len(samples) - 1 - int(heard)) if len(heard) else 0
    moved = torch.cat([samples.new_zeros(delay), samples[: len(samples) - delay]])
    noise = _uniform(0.0, SOUND_NOISE, random) * torch.randn(len(samples), generator=random)
    return moved * _uniform(*LOUDNESS, random) + noise * (moved != 0)
