"""Small pictures and clips for the demo data: scanned digits, coloured shapes, shapes that move. All RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 24  # of scenes and clips, in pixels
DIGIT_SIDE = 16
NUM_FRAMES = 4
FRAMES_PER_SECOND = 4.0

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (45, 190, 70),
    "blue": (60, 95, 240),
    "yellow": (240, 215, 50),
}
SHAPES = ("square", "ring", "cross")
RELATIONS = ("above", "below", "left of", "right of")
DIRECTIONS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

MOST_SHAPES = 7  # in a crowd

_GRID = 3  # cells of a crowd along each side
_FINE = 4  # drawn at four times the size and averaged: smooth edges
_SCAN_SIDE = 14
_SHADE = 160  # of 255, from edge to edge
_STEP = 3  # pixels a frame


@dataclass(frozen=True, order=True)
class Shape:
    """A coloured shape with its centre (x, y) and radius, in pixels."""

    colour: str
    kind: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        """How answers call it, for example `red ring`."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Two shapes, `first` in a `relation` to `second`, over a grey `background` (0 to 255)."""

    first: Shape
    relation: str
    second: Shape
    background: int

    @property
    def source(self) -> str:
        """Identity of the picture: the same whichever shape is named first."""
        return f"scene:{sorted((self.first, self.second))} on {self.background}"


@dataclass(frozen=True)
class Motion:
    """A shape that starts at its centre and moves in a `direction`, over a grey `background`."""

    shape: Shape
    direction: str
    background: int

    @property
    def name(self) -> str:
        """How answers call it, for example `red ring moves left`."""
        return f"{self.shape.name} moves {self.direction}"

    @property
    def source(self) -> str:
        """Identity of the clip."""
        return f"motion:{self.shape} {self.direction} on {self.background}"


@dataclass(frozen=True)
class Portrait:
    """One large shape over a grey `background`."""

    shape: Shape
    background: int

    @property
    def source(self) -> str:
        """Identity of the picture."""
        return f"portrait:{self.shape} on {self.background}"


@dataclass(frozen=True)
class Crowd:
    """Equal shapes in some of the nine cells (0 to 8, row by row) of a picture, over a grey `background`."""

    colour: str
    kind: str
    cells: tuple[int, ...]
    background: int

    @property
    def source(self) -> str:
        """Identity of the picture."""
        return f"crowd:{self.colour} {self.kind} in {self.cells} on {self.background}"


@cache
def scanned_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's handwritten digits, scanned at 8x8: uint8 [N, 8, 8] in [0, 255], and labels int64 [N]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the handwritten digits need scikit-learn: pip install 'polyphony[demo]'") from error
    scans = cast(Any, load_digits())
    return (scans.images * (255 / 16)).round().astype(np.uint8), scans.target.astype(np.int64)


def draw_digit(scan: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A scan [8, 8] enlarged smoothly, at a random place, with random contrast: uint8 [16, 16, 3]."""
    large = Image.fromarray(scan).resize((_SCAN_SIDE, _SCAN_SIDE), Image.Resampling.BICUBIC)
    canvas = np.zeros((DIGIT_SIDE, DIGIT_SIDE), dtype=np.float32)
    top, left = rng.integers(0, DIGIT_SIDE - _SCAN_SIDE + 1, size=2)
    canvas[top : top + _SCAN_SIDE, left : left + _SCAN_SIDE] = np.asarray(large)
    grey = rng.uniform(0, 25) + canvas * rng.uniform(0.7, 0.9)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def random_scene(rng: np.random.Generator) -> Scene:
    """Two different shapes, clearly apart along one axis and nearly level along the other."""
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    names = [(colour, kind) for colour in COLOURS for kind in SHAPES]
    one, other = rng.choice(len(names), size=2, replace=False)
    near, far = int(rng.integers(5, 7)), int(rng.integers(17, 19))  # at least 11 apart, radii are 5: no overlap
    level = int(rng.integers(8, 16))
    beside = level + int(rng.integers(-2, 3))
    ahead, behind = ((near, level), (far, beside))
    if relation in ("above", "below"):
        ahead, behind = ((level, near), (beside, far))
    places = (ahead, behind) if relation in ("above", "left of") else (behind, ahead)
    first, second = (
        Shape(colour=names[name][0], kind=names[name][1], x=x, y=y, radius=5)
        for name, (x, y) in zip((one, other), places, strict=True)
    )
    return Scene(first=first, relation=relation, second=second, background=int(rng.integers(0, 30)))


def random_motion(rng: np.random.Generator) -> Motion:
    """A shape that stays inside the frame on its way."""
    direction = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    across = int(rng.integers(7, 17))
    start = int(rng.integers(7, 9))  # 9 pixels on it is at most at 17, and radii are at most 7
    along = start if sum(DIRECTIONS[direction]) > 0 else SIDE - 1 - start
    x, y = (along, across) if DIRECTIONS[direction][0] else (across, along)
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    kind = SHAPES[rng.integers(len(SHAPES))]
    shape = Shape(colour=colour, kind=kind, x=x, y=y, radius=int(rng.integers(6, 8)))
    return Motion(shape=shape, direction=direction, background=int(rng.integers(0, 30)))


def random_portrait(rng: np.random.Generator) -> Portrait:
    """A shape of any name that lies inside the picture."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    x, y = (int(place) for place in rng.integers(8, 17, size=2))
    shape = Shape(colour=colour, kind=SHAPES[rng.integers(len(SHAPES))], x=x, y=y, radius=int(rng.integers(6, 8)))
    return Portrait(shape=shape, background=int(rng.integers(0, 30)))


def random_crowd(rng: np.random.Generator) -> Crowd:
    """One to `MOST_SHAPES` shapes, each number as likely as the others."""
    num_shapes = int(rng.integers(1, MOST_SHAPES + 1))
    cells = rng.choice(_GRID**2, size=num_shapes, replace=False)
    return Crowd(
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        kind=SHAPES[rng.integers(len(SHAPES))],
        cells=tuple(sorted(cells.tolist())),
        background=int(rng.integers(0, 30)),
    )


def draw_scene(scene: Scene) -> NDArray[np.uint8]:
    """uint8 [24, 24, 3]."""
    return _draw((scene.first, scene.second), scene.background)


def draw_portrait(portrait: Portrait) -> NDArray[np.uint8]:
    """uint8 [24, 24, 3]."""
    return _draw((portrait.shape,), portrait.background)


def draw_crowd(crowd: Crowd) -> NDArray[np.uint8]:
    """uint8 [24, 24, 3]."""
    cell = SIDE // _GRID
    shapes = [
        Shape(crowd.colour, crowd.kind, x=at % _GRID * cell + cell // 2, y=at // _GRID * cell + cell // 2, radius=3)
        for at in crowd.cells
    ]
    return _draw(shapes, crowd.background)


def draw_motion(motion: Motion) -> NDArray[np.uint8]:
    """uint8 [4, 24, 24, 3]."""
    along_x, along_y = DIRECTIONS[motion.direction]
    shape = motion.shape
    frames = [
        Shape(shape.colour, shape.kind, shape.x + along_x * _STEP * t, shape.y + along_y * _STEP * t, shape.radius)
        for t in range(NUM_FRAMES)
    ]
    return np.stack([_draw((frame,), motion.background) for frame in frames])


def _draw(shapes: Sequence[Shape], background: int) -> NDArray[np.uint8]:
    image = Image.fromarray(_shaded(background))
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        x, y, radius = (_FINE * value for value in (shape.x, shape.y, shape.radius))
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        colour = COLOURS[shape.colour]
        match shape.kind:
            case "square":
                pen.rectangle((left, top, right, bottom), fill=colour)
            case "ring":
                pen.ellipse((left, top, right, bottom), outline=colour, width=radius // 2)
            case _:
                pen.rectangle((x - radius // 4, top, x + radius // 4, bottom), fill=colour)
                pen.rectangle((left, y - radius // 4, right, y + radius // 4), fill=colour)
    return np.asarray(image.reduce(_FINE), dtype=np.uint8)


def _shaded(background: int) -> NDArray[np.uint8]:
    """A backdrop that grows redder to the right and bluer to the bottom.

    Towers with rotary positions see what is in a patch long before they learn where it is: shading says where.
    """
    ramp = np.linspace(0, _SHADE, SIDE * _FINE)
    canvas = np.full((SIDE * _FINE, SIDE * _FINE, 3), background, dtype=np.float32)
    canvas[:, :, 0] += ramp[None, :]
    canvas[:, :, 2] += ramp[:, None]
    return canvas.astype(np.uint8)
