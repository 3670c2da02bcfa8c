"""Diagnoses: scikit-learn's breast cancer table (569 cases), some findings of each drawn as a nucleus, others in words.

Wolberg, Street and Mangasarian measured the nuclei of cells from fine needle aspirates, and know what the tumour was.
Size and dents of a case's worst nuclei are drawn here, its texture, smoothness, symmetry and compactness are written:
pictures alone tell 91 of 100 cases, words alone 79, both 96 (logistic regression on the numbers behind them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.demo.drawing import SIDE

DIAGNOSES = ("malignant", "benign")  # as the table numbers them
LEVELS = ("low", "normal", "high")
DRAWN = ("worst radius", "worst concave points")
WRITTEN: Mapping[str, str] = {
    "texture": "worst texture",
    "smoothness": "worst smoothness",
    "symmetry": "worst symmetry",
    "compactness": "worst compactness",
}
"""What a finding is called, and its column."""

_FINE = 8  # drawn at eight times the size and averaged
_NUM_DENTS = 5
_RADII = (3.5, 9.0)  # in pixels, of the smallest and the largest nuclei
_DEEPEST = 0.45  # dent, as a share of the radius
_COMMON = (0.02, 0.98)  # quantiles between which measurements are drawn true to scale
_TISSUE, _NUCLEUS = (235, 190, 210), (95, 40, 120)  # eosin is pink, haematoxylin purple


@dataclass(frozen=True)
class Case:
    """A case: `radius` in pixels and `dents` (0 to 1, of the deepest) of its nucleus, findings by name, diagnosis."""

    radius: float
    dents: float
    findings: Mapping[str, str]
    diagnosis: str


@cache
def cases() -> tuple[Case, ...]:
    """All cases, in the order of the table.

    Raises:
        ImportError: scikit-learn is missing.
    """
    table, columns = _measured()
    size, dents = (_scaled(columns[name]) for name in DRAWN)
    levels = {name: _levels(columns[column]) for name, column in WRITTEN.items()}
    return tuple(
        Case(
            radius=float(_RADII[0] + size[number] * (_RADII[1] - _RADII[0])),
            dents=float(dents[number]),
            findings={name: LEVELS[of[number]] for name, of in levels.items()},
            diagnosis=DIAGNOSES[target],
        )
        for number, target in enumerate(table.target)
    )


def measurements(names: Sequence[str]) -> NDArray[np.float64]:
    """Columns of the table, float64 [cases, names], in the units that Wolberg, Street and Mangasarian give.

    Raises:
        ImportError: scikit-learn is missing.
    """
    columns = _measured()[1]
    return np.stack([columns[name] for name in names], axis=1)


def draw_nucleus(case: Case, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The nucleus turned at random, at a random place, in light or dark stain: uint8 [24, 24, 3].

    Its outline is r(angle) = radius * (1 - depth * (1 + cos(5 * angle)) / 2) with a depth of at most `_DEEPEST`.
    """
    slack = max(0.0, SIDE / 2 - 1 - case.radius)
    centre = SIDE / 2 + rng.uniform(-slack, slack, size=2)
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    dents = case.dents * _DEEPEST * (1 + np.cos(_NUM_DENTS * angles + rng.uniform(0, 2 * np.pi))) / 2
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (case.radius * (1 - dents))[:, None] + centre
    light = rng.uniform(0.85, 1.0)
    tissue, nucleus = (tuple(int(light * value) for value in colour) for colour in (_TISSUE, _NUCLEUS))
    image = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), tissue)
    ImageDraw.Draw(image).polygon([(x, y) for x, y in (outline * _FINE).tolist()], fill=nucleus)
    return np.asarray(image.reduce(_FINE), dtype=np.uint8)


@cache
def _measured() -> tuple[Any, Mapping[str, NDArray[np.float64]]]:
    """scikit-learn's table, and its columns by name."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise ImportError("the medical table needs scikit-learn: pip install 'polyphony[demo]'") from error
    table = cast(Any, load_breast_cancer())
    return table, {str(name): table.data[:, place] for place, name in enumerate(table.feature_names)}


def _scaled(column: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.quantile(column, _COMMON)
    return np.clip((column - low) / (high - low), 0, 1)


def _levels(column: NDArray[np.float64]) -> NDArray[np.int64]:
    """0 for the lowest third of the cases, 1 for the middle one, 2 for the highest."""
    return np.searchsorted(np.quantile(column, [1 / 3, 2 / 3]), column)
