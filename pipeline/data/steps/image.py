"""Steps on pictures, with Pillow. Decoding has turned them by their EXIF orientation and made them RGB already.

What is left as it is comes back as the same object.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageEnhance, ImageFilter

from pipeline.config.augmentations import EraseFill
from pipeline.data.schema import Reason, RowError
from pipeline.records import Image

_LANCZOS = pillow.Resampling.LANCZOS


def _of(picture: pillow.Image) -> Image:
    return Image(pixels=np.array(picture, dtype=np.uint8))


def resize(image: Image, *, max_side: int | None, max_pixels: int | None, min_side: int | None) -> Image:
    """The picture within bounds, in pixels, its aspect ratio kept to the nearest pixel. Lanczos, antialiased.

    It grows only where its shortest side is below `min_side`, and never over `max_side` and `max_pixels`.
    """
    height, width = image.pixels.shape[:2]
    shortest, longest = sorted((height, width))
    scale = max(1.0, (min_side or 0) / shortest)
    if max_side is not None:
        scale = min(scale, max_side / longest)
    if max_pixels is not None:
        scale = min(scale, math.sqrt(max_pixels / (height * width)))
    sides = max(1, round(shortest * scale)), max(1, round(longest * scale))
    if max_pixels is not None and sides[0] * sides[1] > max_pixels:  # by rounding up; or one side cannot shrink more
        shortest = max(1, math.floor(shortest * scale))
        sides = shortest, min(max(1, math.floor(longest * scale)), max_pixels // shortest)
    shortest, longest = sides
    size = (longest, shortest) if width > height else (shortest, longest)
    if size == (width, height):
        return image
    return _of(pillow.fromarray(image.pixels).resize(size, _LANCZOS))


def bounds(image: Image, *, min_side: int | None, max_side: int | None, max_aspect_ratio: float | None) -> Image:
    """The picture itself, if its sides (in pixels) and their ratio are within bounds.

    Raises:
        RowError: too_few_pixels, too_many_pixels or bad_aspect_ratio.
    """
    height, width = image.pixels.shape[:2]
    shortest, longest = sorted((height, width))
    if min_side is not None and shortest < min_side:
        raise RowError(Reason.TOO_FEW_PIXELS, f"{width}x{height}; min_side is {min_side}")
    if max_side is not None and longest > max_side:
        raise RowError(Reason.TOO_MANY_PIXELS, f"{width}x{height}; max_side is {max_side}")
    if max_aspect_ratio is not None and longest > max_aspect_ratio * shortest:
        raise RowError(Reason.BAD_ASPECT_RATIO, f"{width}x{height}; max_aspect_ratio is {max_aspect_ratio:g}")
    return image


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def crop(image: Image, *, min_area: float, max_stretch: float, rng: np.random.Generator) -> Image:
    """A part of the picture, brought back to the picture's size (Szegedy et al., arXiv 1409.4842).

    Its share of the area is uniform in [min_area, 1]. Its aspect ratio is the picture's times a factor that is
    log-uniform in [1 / max_stretch, max_stretch], as far as a part of that area can have it.
    """
    height, width = image.pixels.shape[:2]
    area = rng.uniform(min_area, 1.0)
    most = min(max_stretch, 1 / area)
    stretch = _log_uniform(rng, 1 / most, most)
    part_width, part_height = width * math.sqrt(area * stretch), height * math.sqrt(area / stretch)
    left, top = rng.uniform(0, width - part_width), rng.uniform(0, height - part_height)
    box = (left, top, min(width, left + part_width), min(height, top + part_height))
    return _of(pillow.fromarray(image.pixels).resize((width, height), _LANCZOS, box=box))


def flip(image: Image, *, vertical: bool) -> Image:
    """The picture mirrored: left and right change places, or top and bottom. Twice gives the picture back."""
    return Image(pixels=np.ascontiguousarray(np.flip(image.pixels, axis=0 if vertical else 1)))


def colour(
    image: Image, *, brightness: float, contrast: float, saturation: float, hue: float, rng: np.random.Generator
) -> Image:
    """The picture with other colours. Each factor is uniform in [1 - x, 1 + x], the hue's shift in [-hue, hue].

    Brightness: times the factor. Contrast and saturation: away from, or towards, the mean grey of the picture and the
    grey of each pixel. Hue: turned by a share of the colour circle, in steps of 1/256.
    """
    factors = [rng.uniform(1 - spread, 1 + spread) for spread in (brightness, contrast, saturation)]
    shift = round(256 * rng.uniform(-hue, hue))
    picture = pillow.fromarray(image.pixels)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        if factor != 1:
            picture = enhance(picture).enhance(factor)
    if shift:
        hsv = np.array(picture.convert("HSV"))
        hsv[..., 0] += np.uint8(shift % 256)  # wraps around, as hue does
        picture = pillow.fromarray(hsv, mode="HSV").convert("RGB")
    return _of(picture)


def blur(image: Image, *, min_sigma: float, max_sigma: float, rng: np.random.Generator) -> Image:
    """The picture under a Gaussian whose standard deviation, in pixels, is uniform in [min_sigma, max_sigma]."""
    sigma = rng.uniform(min_sigma, max_sigma)
    return _of(pillow.fromarray(image.pixels).filter(ImageFilter.GaussianBlur(sigma)))


def erase(
    image: Image,
    *,
    min_area: float,
    max_area: float,
    max_aspect_ratio: float,
    fill: EraseFill,
    rng: np.random.Generator,
) -> Image:
    """The picture with one rectangle erased (Zhong et al., arXiv 1708.04896).

    Its share of the area is uniform in [min_area, max_area]; height / width is log-uniform in [1 / max_aspect_ratio,
    max_aspect_ratio], as far as such a rectangle has room.
    """
    height, width = image.pixels.shape[:2]
    area = rng.uniform(min_area, max_area) * height * width
    # height sqrt(area * ratio) has room up to area * ratio = height^2, width sqrt(area / ratio) likewise.
    low, high = np.clip((1 / max_aspect_ratio, max_aspect_ratio), area / width**2, height**2 / area)
    ratio = _log_uniform(rng, low, high)
    rows = min(height, max(1, round(math.sqrt(area * ratio))))
    columns = min(width, max(1, round(math.sqrt(area / ratio))))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    pixels = image.pixels.copy()
    pixels[top : top + rows, left : left + columns] = _filling(image, rows, columns, fill, rng)
    return Image(pixels=pixels)


def _filling(image: Image, rows: int, columns: int, fill: EraseFill, rng: np.random.Generator) -> NDArray[np.uint8]:
    if fill is EraseFill.MEAN:
        return np.round(image.pixels.mean(axis=(0, 1))).astype(np.uint8)
    return rng.integers(256, size=(rows, columns, 3), dtype=np.uint8)
