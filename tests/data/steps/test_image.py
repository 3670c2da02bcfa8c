"""Pictures: proportions hold, draws stay within their bounds, and nothing changes that need not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.augmentations import EraseFill
from pipeline.data.schema import Reason, RowError
from pipeline.data.steps import image as steps
from pipeline.records import Image


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


PICTURE = Image(pixels=rng().integers(0, 256, size=(60, 90, 3), dtype=np.uint8))
RED = Image(pixels=np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8))
GRADIENT = Image(
    pixels=np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None].repeat(60, axis=0), 3, axis=2)
)


def resized(image: Image, **bounds: int) -> Image:
    return steps.resize(image, **({"max_side": None, "max_pixels": None, "min_side": None} | bounds))


def shape(image: Image) -> tuple[int, ...]:
    return image.pixels.shape[:2]


def of_size(height: int, width: int) -> Image:
    return Image(pixels=np.zeros((height, width, 3), dtype=np.uint8))


def test_a_large_picture_shrinks_to_the_tightest_bound_and_keeps_its_proportions() -> None:
    assert shape(resized(PICTURE, max_side=45)) == (30, 45)
    assert shape(resized(PICTURE, max_pixels=600)) == (20, 30)
    assert shape(resized(PICTURE, max_side=45, max_pixels=600)) == (20, 30)
    assert shape(resized(of_size(90, 60), max_side=45)) == (45, 30)


def test_a_picture_within_bounds_comes_back_itself_and_never_grows_unasked() -> None:
    assert resized(PICTURE, max_side=90, max_pixels=5400) is PICTURE
    assert resized(PICTURE, max_side=4000, min_side=60) is PICTURE


def test_a_small_picture_grows_to_min_side_but_never_over_the_other_bounds() -> None:
    assert shape(resized(PICTURE, min_side=120)) == (120, 180)
    assert shape(resized(PICTURE, min_side=120, max_side=135)) == (90, 135)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.integers(1, 20_000))
def test_bounds_hold_for_every_shape_and_proportions_to_the_nearest_pixel(
    height: int, width: int, max_side: int, max_pixels: int
) -> None:
    rows, columns = shape(resized(of_size(height, width), max_side=max_side, max_pixels=max_pixels))
    assert 1 <= rows <= height and 1 <= columns <= width
    assert max(rows, columns) <= max_side and rows * columns <= max_pixels
    if min(rows, columns) > 1:
        assert abs(rows * width - columns * height) <= max(height, width)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = resized(Image(pixels=stripes), max_side=16).pixels
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2, "neither black nor white, but their mean"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (of_size(7, 80), Reason.TOO_FEW_PIXELS),
        (of_size(80, 101), Reason.TOO_MANY_PIXELS),
        (of_size(41, 10), Reason.BAD_ASPECT_RATIO),
    ],
)
def test_pictures_out_of_bounds_are_refused_and_those_at_the_bounds_are_not(image: Image, reason: Reason) -> None:
    with pytest.raises(RowError) as caught:
        steps.bounds(image, min_side=8, max_side=100, max_aspect_ratio=4)
    assert caught.value.reason is reason
    for fine in (of_size(25, 100), of_size(8, 32)):
        assert steps.bounds(fine, min_side=8, max_side=100, max_aspect_ratio=4) is fine


def test_a_crop_has_the_size_of_its_picture_and_shows_a_part_of_it() -> None:
    for seed in range(20):
        part = steps.crop(GRADIENT, min_area=0.25, max_stretch=4 / 3, rng=rng(seed)).pixels[30, :, 0].astype(int)
        assert shape(GRADIENT) == (60, 90)
        seen = (part[-1] - part[0]) / 255
        assert 0.25**0.5 * (3 / 4) ** 0.5 - 0.05 <= seen <= 1.0
        assert (np.diff(part) >= 0).all()


def test_a_crop_of_everything_is_the_whole_picture() -> None:
    whole = steps.crop(PICTURE, min_area=1.0, max_stretch=4 / 3, rng=rng())
    np.testing.assert_array_equal(whole.pixels, PICTURE.pixels)


def test_a_flip_mirrors_and_a_second_one_undoes_it() -> None:
    for vertical in (False, True):
        once = steps.flip(PICTURE, vertical=vertical)
        np.testing.assert_array_equal(steps.flip(once, vertical=vertical).pixels, PICTURE.pixels)
    np.testing.assert_array_equal(steps.flip(PICTURE, vertical=False).pixels[:, 0], PICTURE.pixels[:, -1])
    np.testing.assert_array_equal(steps.flip(PICTURE, vertical=True).pixels[0], PICTURE.pixels[-1])


def coloured(image: Image, seed: int = 0, **spreads: float) -> Image:
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return steps.colour(image, **(still | spreads), rng=rng(seed))


def test_colour_without_any_spread_changes_nothing() -> None:
    np.testing.assert_array_equal(coloured(PICTURE).pixels, PICTURE.pixels)


def test_brightness_multiplies_by_the_drawn_factor() -> None:
    factor = rng(3).uniform(0.5, 1.5)
    grey = Image(pixels=np.full((4, 4, 3), 100, dtype=np.uint8))
    np.testing.assert_allclose(coloured(grey, 3, brightness=0.5).pixels, 100 * factor, atol=1)


def test_contrast_keeps_the_mean_and_saturation_keeps_grey() -> None:
    drawn = [coloured(GRADIENT, seed, contrast=0.3).pixels for seed in range(8)]
    means = [each.mean() for each in drawn]
    np.testing.assert_allclose(means, GRADIENT.pixels.mean(), atol=4)
    spreads = np.array([each.std() for each in drawn]) / GRADIENT.pixels.std()
    assert spreads.min() < 0.9 < 1.1 < spreads.max()
    assert spreads.min() >= 0.69 and spreads.max() <= 1.31
    np.testing.assert_array_equal(coloured(GRADIENT, saturation=0.9).pixels, GRADIENT.pixels)


def test_hue_turns_red_towards_its_neighbours_and_keeps_grey() -> None:
    turned = {tuple(coloured(RED, seed, hue=0.1).pixels[0, 0]) for seed in range(12)}
    assert len(turned) > 6
    assert all(red == 255 and min(green, blue) == 0 and max(green, blue) <= 160 for red, green, blue in turned)
    np.testing.assert_array_equal(coloured(GRADIENT, hue=0.5).pixels, GRADIENT.pixels)


def test_blur_spreads_a_point_by_the_drawn_sigma_and_keeps_its_light() -> None:
    point = np.zeros((41, 41, 3), dtype=np.uint8)
    point[18:23, 18:23] = 255
    blurred = steps.blur(Image(pixels=point), min_sigma=3.0, max_sigma=3.0, rng=rng()).pixels[..., 0].astype(float)
    assert blurred.sum() == pytest.approx(25 * 255, rel=0.02)
    offsets = np.arange(41) - 20
    variance = (blurred.sum(axis=0) * offsets**2).sum() / blurred.sum()
    assert variance == pytest.approx(3.0**2 + 2.0, rel=0.1), "that of the Gaussian and that of a square of 5 pixels"


def erased(image: Image, fill: EraseFill, seed: int, low: float, high: float, ratio: float = 3.3) -> Image:
    return steps.erase(image, min_area=low, max_area=high, max_aspect_ratio=ratio, fill=fill, rng=rng(seed))


@pytest.mark.parametrize("seed", range(10))
def test_one_rectangle_is_erased_within_its_bounds_and_the_rest_stays(seed: int) -> None:
    black = of_size(60, 90)
    changed = erased(black, EraseFill.NOISE, seed, 0.1, 0.3).pixels.max(axis=2) > 0
    rows, columns = changed.any(axis=1), changed.any(axis=0)
    height, width = int(rows.sum()), int(columns.sum())
    assert np.flatnonzero(rows).tolist() == list(range(rows.argmax(), rows.argmax() + height)), "in one piece"
    assert 0.09 <= height * width / (60 * 90) <= 0.31
    assert 1 / 3.5 <= height / width <= 3.5
    assert changed.sum() > 0.99 * height * width, "noise, of which few pixels are black"
    assert not black.pixels.any(), "the given picture stays"


def test_erasing_by_the_mean_takes_the_colour_of_the_picture() -> None:
    np.testing.assert_array_equal(erased(RED, EraseFill.MEAN, 0, 0.2, 0.2).pixels, RED.pixels)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_every_augmentation_keeps_every_shape(height: int, width: int, seed: int) -> None:
    image = of_size(height, width)
    for changed in (
        steps.crop(image, min_area=0.1, max_stretch=2.0, rng=rng(seed)),
        erased(image, EraseFill.NOISE, seed, 0.02, 0.9, ratio=5.0),
        steps.blur(image, min_sigma=0.1, max_sigma=3.0, rng=rng(seed)),
        coloured(image, seed, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
    ):
        assert shape(changed) == (height, width)
        assert changed.pixels.dtype == np.uint8
