"""Policies to beat: chance, LinUCB and Thompson sampling on fixed features of what a decision sees.

A `Policy` gives the probabilities of its actions in N states. A bandit's states are `fixed_features`; what is learned
with the fusion model (`supervised`, `offline`) takes a table's inputs instead.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torchaudio.transforms
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.data.media import resample
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio

States = TypeVar("States", contravariant=True)
Features = NDArray[np.float32]

NUM_WORDS = 128
"""Buckets that the words of a text are hashed into."""
NUM_BANDS, NUM_TIMES = 16, 10
"""Mel bands of a sound, and equal parts of its length that they are averaged over."""
THUMBNAIL = 6
"""Side of a picture's averages."""
_RATE = 16_000


class Policy(Protocol[States]):
    """Chooses among K actions."""

    def probabilities(self, states: States) -> NDArray[np.float32]:
        """Float32 [N, K], rows sum to 1."""
        ...


class Bandit(Policy[Features], Protocol):
    """A policy over features [N, D] that learns from each decision."""

    def update(self, features: Features, action: int, reward: float) -> None:
        """Learns from one decision: features [D]."""
        ...


class Chance:
    """All actions alike. It learns nothing."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions

    def probabilities(self, states: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
        """1 / K."""
        return np.full((len(states), self.num_actions), 1 / self.num_actions, np.float32)

    def update(self, features: Features, action: int, reward: float) -> None:
        """Nothing."""


class LinUCB:
    """LinUCB with disjoint models (Li et al. 2010, arXiv 1003.0146, algorithm 1).

    For each action A = ridge I + sum x x^T, b = sum r x, theta = A^-1 b; it takes the largest
    theta^T x + alpha sqrt(x^T A^-1 x). A^-1 is kept by the Sherman-Morrison formula: D^2 operations an update.
    """

    def __init__(self, num_actions: int, num_features: int, *, alpha: float = 1.0, ridge: float = 1.0) -> None:
        """Knows nothing yet.

        Raises:
            ConfigError: alpha is below 0, or ridge is not above 0.
        """
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"alpha={alpha:g}: must be finite and at least 0, where 0 does not explore")
        if not 0 < ridge < math.inf:
            raise ConfigError(f"ridge={ridge:g}: must be above 0 and finite, or nothing can be inverted")
        self.alpha = alpha
        self.inverse = np.repeat(np.eye(num_features)[None] / ridge, num_actions, axis=0)
        """Float64 [K, D, D]: A^-1."""
        self.rewarded = np.zeros((num_actions, num_features))
        """Float64 [K, D]: b."""
        self.theta = np.zeros((num_actions, num_features))
        """Float64 [K, D]: A^-1 b."""

    def means(self, features: Features) -> NDArray[np.float64]:
        """Float64 [N, K]: theta^T x."""
        return np.asarray(features, np.float64) @ self.theta.T

    def widths(self, features: Features) -> NDArray[np.float64]:
        """Float64 [N, K]: sqrt(x^T A^-1 x)."""
        x = np.asarray(features, np.float64)
        return np.sqrt(np.einsum("nd,kde,ne->nk", x, self.inverse, x, optimize=True).clip(min=0))

    def probabilities(self, states: Features) -> NDArray[np.float32]:
        """1 for the action of the largest bound; equal ones share it."""
        bounds = self.means(states) + self.alpha * self.widths(states)
        best = bounds == bounds.max(axis=1, keepdims=True)
        return (best / best.sum(axis=1, keepdims=True)).astype(np.float32)

    def update(self, features: Features, action: int, reward: float) -> None:
        """Adds x x^T to A and r x to b of the action."""
        x = np.asarray(features, np.float64)
        along = self.inverse[action] @ x
        self.inverse[action] -= np.outer(along, along) / (1 + x @ along)
        self.rewarded[action] += reward * x
        self.theta[action] = self.inverse[action] @ self.rewarded[action]


class Thompson(LinUCB):
    """Thompson sampling with linear payoffs (Agrawal and Goyal 2013, arXiv 1209.3352): it takes the best action of a
    theta ~ N(A^-1 b, alpha^2 A^-1), drawn for each state. Its probabilities are shares of `num_draws`.
    """

    def __init__(
        self,
        num_actions: int,
        num_features: int,
        *,
        alpha: float = 0.3,
        ridge: float = 1.0,
        num_draws: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(num_actions, num_features, alpha=alpha, ridge=ridge)
        self.num_draws = num_draws
        self._rng = np.random.default_rng(seed)

    def probabilities(self, states: Features) -> NDArray[np.float32]:
        """With one draw, the default, 1 for the action that this draw prefers. For one state x, theta^T x is normal."""
        means, widths = self.means(states), self.alpha * self.widths(states)
        drawn = means + widths * self._rng.standard_normal((self.num_draws, *means.shape))
        chosen = drawn.argmax(axis=-1)
        return np.stack([(chosen == action).mean(axis=0) for action in range(means.shape[1])], 1).astype(np.float32)


def fixed_features(samples: Sequence[Sample]) -> Features:
    """What a linear model can start from, with nothing learned: float32 [N, D], rows of length 1.

    Hashed words of the text, log mel bands of equal parts of the sound, a thumbnail of the picture, the numbers of the
    samples, which modalities there are, and 1. An absent modality is all 0. Video is not looked at.
    """
    num_numbers = max((len(each.numbers or ()) for each in samples), default=0)
    rows = [
        np.concatenate(
            [
                [1.0, *(part is not None for part in (each.text, each.audio, each.image))],
                _words(each.text),
                _bands(each.audio),
                _thumbnail(each),
                np.asarray(each.numbers or (0.0,) * num_numbers),
            ]
        )
        for each in samples
    ]
    features = np.stack(rows)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _words(text: str | None) -> NDArray[np.float64]:
    counts = np.zeros(NUM_WORDS)
    for word in "".join(letter if letter.isalnum() else " " for letter in (text or "").casefold()).split():
        counts[zlib.crc32(word.encode()) % NUM_WORDS] += 1
    return _scaled(counts)


@cache
def _mel() -> Any:
    return torchaudio.transforms.MelSpectrogram(_RATE, n_fft=400, hop_length=160, n_mels=NUM_BANDS)


def _bands(audio: Audio | None) -> NDArray[np.float64]:
    if audio is None:
        return np.zeros(NUM_BANDS * NUM_TIMES)
    samples = torch.from_numpy(resample(audio, _RATE).samples)
    with torch.no_grad():
        bands = torch.log(_mel()(samples) + 1e-5).numpy().astype(np.float64)
    parts = np.array_split(bands, NUM_TIMES, axis=1)
    means = np.stack([part.mean(axis=1) if part.shape[1] else np.zeros(NUM_BANDS) for part in parts])
    return _scaled((means - means.mean()).ravel())


def _thumbnail(sample: Sample) -> NDArray[np.float64]:
    if sample.image is None:
        return np.zeros(THUMBNAIL * THUMBNAIL * 3)
    rows = np.array_split(sample.image.pixels.astype(np.float64), THUMBNAIL, axis=0)
    cells = [[cell.mean(axis=(0, 1)) for cell in np.array_split(row, THUMBNAIL, axis=1)] for row in rows]
    means = np.nan_to_num(np.array(cells)).ravel()
    return _scaled(means - means.mean())


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(values))
    return values / length if length else values
