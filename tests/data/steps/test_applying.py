"""Steps of a recipe on a row: each on its kind of medium, in order, with draws that other steps do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline.config.step_bases import Augmentation
from pipeline.config.steps import STEPS, Step, Steps, TextPart
from pipeline.data.schema import Reason, RowError
from pipeline.data.steps import apply_features, apply_medium, apply_text
from pipeline.records import Audio, DecodedMedium, Image, Video

LIST: TypeAdapter[tuple[Step, ...]] = TypeAdapter(Steps)
RNG = np.random.default_rng(0)
IMAGE = Image(pixels=RNG.integers(0, 256, size=(24, 36, 3), dtype=np.uint8))
AUDIO = Audio(samples=(0.1 * RNG.standard_normal(8_000)).astype(np.float32), sampling_rate=16_000)
VIDEO = Video(frames=np.repeat(IMAGE.pixels[None], 6, axis=0), frames_per_second=3.0)
AUGMENTATIONS = [name for name, section in STEPS.items() if issubclass(section, Augmentation)]


def parsed(*steps: dict[str, Any]) -> tuple[Step, ...]:
    return LIST.validate_python(steps)


def applied(medium: DecodedMedium, *steps: dict[str, Any], seed: int = 1, is_training: bool = True) -> DecodedMedium:
    return apply_medium(parsed(*steps), medium, seed=(seed,), is_training=is_training)


def array(medium: DecodedMedium) -> Any:
    match medium:
        case Image():
            return medium.pixels
        case Audio():
            return medium.samples
        case Video():
            return medium.frames


def medium_of(name: str) -> DecodedMedium:
    return IMAGE if name.startswith("image") else AUDIO


def test_text_steps_run_in_the_order_of_the_recipe() -> None:
    form, unseen = {"step": "text.normalise", "form": "nfkc"}, {"step": "text.remove_controls"}
    text = "x²\u200b \r\n<image>ﬁn \x00"
    assert apply_text(parsed(unseen, form), text) == "x2\n<image>fin"
    assert apply_text(parsed(form, unseen), text) == "x2\n<image>fin ", "a blank that no longer ends the text"


def test_length_bounds_concern_the_part_of_the_row_that_they_name() -> None:
    steps = parsed(
        {"step": "text.length", "min_characters": 5}, {"step": "text.length", "of": "answer", "max_characters": 4}
    )
    assert apply_text(steps, "a long question") == "a long question"
    assert apply_text(steps, "yes", part=TextPart.ANSWER) == "yes"
    for text, part in (("why", TextPart.MESSAGE), ("a long answer", TextPart.ANSWER)):
        with pytest.raises(RowError):
            apply_text(steps, text, part=part)


@pytest.mark.parametrize("text", ["\uff1cimage\uff1e what is it?", "<ima\u200bge> what is it?"])
def test_a_text_step_that_would_forge_a_tag_costs_the_row(text: str) -> None:
    steps = parsed({"step": "text.normalise", "form": "nfkc"}, {"step": "text.remove_controls"})
    with pytest.raises(RowError) as caught:
        apply_text(steps, text)
    assert caught.value.reason is Reason.PLACEHOLDER_MISMATCH


def test_steps_for_other_media_leave_the_very_same_object() -> None:
    everything = [{"step": "video.keep_sound"}, {"step": "dedup.exact"}, {"step": "text.remove_controls"}]
    for medium, others in ((IMAGE, ("audio.", "video.")), (AUDIO, ("image.", "video."))):
        names = [name for name in AUGMENTATIONS if name.startswith(others)]
        assert applied(medium, *everything, *[{"step": name, "probability": 1} for name in names]) is medium


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_change_the_training_split_alone_and_the_same_draws_change_it_alike(name: str) -> None:
    step = {"step": name, "probability": 1}
    medium = medium_of(name)
    assert applied(medium, step, is_training=False) is medium
    changed = array(applied(medium, step))
    assert changed.shape != array(medium).shape or (changed != array(medium)).any()
    np.testing.assert_array_equal(array(applied(medium, step)), changed)


def test_an_augmentation_changes_its_share_of_the_media() -> None:
    flips = [applied(IMAGE, {"step": "image.flip", "probability": 0.25}, seed=seed) is not IMAGE for seed in range(400)]
    assert np.mean(flips) == pytest.approx(0.25, abs=0.07), "three standard deviations"


def test_other_steps_change_no_draws_of_a_step() -> None:
    erase = {"step": "image.erase", "probability": 1}
    blur = {"step": "image.blur", "probability": 1}
    alone = array(applied(IMAGE, erase))
    flip = {"step": "image.flip", "probability": 1}
    np.testing.assert_array_equal(
        array(applied(IMAGE, flip, erase)),
        np.where((alone != IMAGE.pixels).any(axis=2, keepdims=True), alone, array(applied(IMAGE, flip))),
    )
    changed = array(applied(IMAGE, erase, blur))
    np.testing.assert_array_equal(changed, array(applied(Image(pixels=alone), blur)))


def test_a_step_that_comes_twice_draws_twice() -> None:
    noise = {"step": "audio.noise", "probability": 1, "min_snr_db": 0, "max_snr_db": 0}
    once, twice = array(applied(AUDIO, noise)), array(applied(AUDIO, noise, noise))
    first, second = once - AUDIO.samples, twice - once
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_picture_steps_reach_videos_when_told_and_treat_all_frames_alike() -> None:
    assert applied(VIDEO, {"step": "image.resize", "max_side": 18}) is VIDEO
    small = applied(VIDEO, {"step": "image.resize", "max_side": 18, "videos": True})
    assert isinstance(small, Video)
    assert (small.frames.shape, small.frames_per_second) == ((6, 12, 18, 3), 3.0)
    for name in AUGMENTATIONS:
        if name.startswith("image."):
            changed = array(applied(VIDEO, {"step": name, "videos": True, "probability": 1}))
            assert (changed != VIDEO.frames).any()
            assert (changed == changed[0]).all(), name


def test_a_video_whose_frames_all_fit_comes_back_itself_and_bounds_on_frames_refuse_it() -> None:
    assert applied(VIDEO, {"step": "image.resize", "max_side": 36, "videos": True}) is VIDEO
    with pytest.raises(RowError):
        applied(VIDEO, {"step": "image.bounds", "min_side": 25, "videos": True})


def test_steps_run_in_the_order_of_the_recipe() -> None:
    half = {"step": "audio.resample", "sampling_rate": 8_000}
    bounds = {"step": "video.bounds", "max_frames": 3}
    assert len(array(applied(AUDIO, half))) == 4_000
    assert len(array(applied(VIDEO, {"step": "video.sample", "num_frames": 3}, bounds))) == 3
    with pytest.raises(RowError):
        applied(VIDEO, bounds, {"step": "video.sample", "num_frames": 3})


def test_every_step_takes_the_parameters_that_its_section_has() -> None:
    needed = {
        "image.resize": {"max_side": 20},
        "image.bounds": {"min_side": 2},
        "audio.bounds": {"min_seconds": 0.1},
        "video.sample": {"num_frames": 2},
        "video.bounds": {"min_frames": 1},
    }
    steps = parsed(*({"step": name} | needed.get(name, {}) for name in STEPS))
    assert apply_text(steps, "hello") == "hello"
    for medium in (IMAGE, AUDIO, VIDEO):
        assert type(apply_medium(steps, medium, seed=(0,), is_training=True)) is type(medium)


def test_features_are_kept_under_their_names_for_sounds_alone() -> None:
    steps = parsed({"step": "audio.mel"}, {"step": "audio.mfcc"}, {"step": "audio.mel", "name": "wide", "num_mels": 16})
    found = apply_features(steps, AUDIO)
    assert {name: each.shape for name, each in found.items()} == {"mel": (51, 80), "mfcc": (51, 13), "wide": (51, 16)}
    assert apply_features(steps, IMAGE) == {}
    assert applied(AUDIO, {"step": "audio.mel"}) is AUDIO
