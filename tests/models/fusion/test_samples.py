"""Samples: what a row of the table becomes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.fusion import FusionSettings, InputSizes, Modality
from pipeline.data.media import encode_png, encode_wav
from pipeline.models.fusion import PRESENT, Preprocessor, Sample, sample_of
from pipeline.records import Audio, Image, MediaKind, Medium, Message, Prompt, Video

SIZES = InputSizes(text_length=8, image_side=8, sampling_rate=8000, audio_s=0.5, num_frames=3, num_numbers=2)
ALL = Preprocessor(FusionSettings(modalities=tuple(Modality), sizes=SIZES))


def picture(level: int, side: int = 8) -> Image:
    return Image(np.full((side, side, 3), level, np.uint8))


def test_every_array_has_the_shape_and_type_that_was_said() -> None:
    sample = Sample(
        id="row",
        text="hello",
        image=picture(255, 20),
        audio=Audio(np.full(1000, 0.5, np.float32), 8000),
        video=Video(np.zeros((5, 9, 7, 3), np.uint8), 4.0),
        numbers=(1.0, 2.0),
    )

    for arrays in (ALL(sample), ALL(Sample(id="other", numbers=(1.0, 2.0)))):
        assert {name: (each.shape, each.dtype) for name, each in arrays.items()} == ALL.shapes
    assert ALL(sample)["text"].tolist() == [105, 102, 109, 109, 112, 0, 0, 0]
    assert (ALL(sample)["image"] == 1).all()
    assert (ALL(sample)["video"] == -1).all()
    assert ALL(sample)["audio"].tolist() == [0.5] * 1000 + [0.0] * 3000
    assert ALL(sample)[PRESENT].all()


def test_what_is_missing_is_zero_and_said_to_be() -> None:
    arrays = ALL(Sample(id="row", text=" ", image=picture(7)))

    assert arrays[PRESENT].tolist() == [False, True, False, False, False]
    assert not any(arrays[each.value].any() for each in Modality if each is not Modality.IMAGE)


def test_what_is_too_long_is_cut_and_counted() -> None:
    preprocessor = Preprocessor(FusionSettings(modalities=(Modality.TEXT, Modality.AUDIO), sizes=SIZES))

    batch = preprocessor.batch(
        [
            Sample(id="long", text="nine char", audio=Audio(np.ones(4001, np.float32), 8000)),
            Sample(id="short", text="eight ch", audio=Audio(np.ones(4000, np.float32), 8000)),
        ]
    )

    assert preprocessor.cut == {"text": 1, "audio": 1}
    assert batch["text"].shape == (2, 8)
    assert batch["audio"].shape == (2, 4000)


def test_frames_are_taken_evenly() -> None:
    frames = np.stack([picture(level).pixels for level in (0, 51, 102, 153, 204)])

    film = ALL(Sample(id="row", video=Video(frames, 1.0)))["video"]

    np.testing.assert_allclose(film[:, 0, 0, 0], np.array([0, 102, 204]) / 127.5 - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((1.0,), "row 'x' has 1 numbers, and sizes.num_numbers=2"), ((1.0, float("nan")), "row 'x'.*not all finite")],
)
def test_numbers_are_as_many_as_there_should_be_and_finite(numbers: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALL(Sample(id="x", numbers=numbers))


def prompt() -> Prompt:
    sound = Audio(np.linspace(-0.5, 0.5, 1600, dtype=np.float32), 16_000)
    pictures = [Medium(MediaKind.IMAGE, encode_png(picture(level).pixels)) for level in (10, 20)]
    return Prompt(
        id="row",
        task="task",
        messages=(Message("user", "<image><image>What is it?"), Message("user", "<audio> And that?")),
        media=(*pictures, Medium(MediaKind.AUDIO, encode_wav(sound))),
        answer="a",
    )


def test_a_row_gives_its_text_without_tags_and_its_first_medium_of_each_kind() -> None:
    sample = sample_of(prompt(), columns={"size": 3, "weight": 0.5}, numbers=("weight", "size"))

    assert sample.text == "What is it? And that?"
    assert sample.image is not None and (sample.image.pixels == 10).all()
    assert sample.audio is not None and len(sample.audio.samples) == 1600
    assert sample.video is None
    assert sample.numbers == (0.5, 3.0)
    assert sample.modalities == {Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.NUMBERS}


def test_numbers_that_are_all_null_are_missing_and_some_that_are_null_are_an_error() -> None:
    names = ("size", "weight")

    assert sample_of(prompt(), columns={"size": None}, numbers=names).numbers is None
    for value in (None, "3", True, float("inf")):
        with pytest.raises(ValueError, match=r"row 'row': column size is .*no finite number"):
            sample_of(prompt(), columns={"size": value, "weight": 1.0}, numbers=names)
