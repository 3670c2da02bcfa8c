"""The tasks whose picture and sound say the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.config import MediaLimits
from pipeline.data.demo import drawing, pairs, speech
from pipeline.data.demo.tasks import Draw, Split, split_of
from pipeline.data.media import decode
from pipeline.data.schema import split_content
from pipeline.records import Audio, Image, MediaKind


def _draw(split: Split, seed: int = 0) -> Draw:
    return Draw(split=split, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("task", pairs.TASKS)
def test_media_come_in_the_order_of_their_tags_and_sources_are_of_the_split(task: str) -> None:
    draw = _draw(Split.TEST)
    for _ in range(20):
        sample = pairs.TASKS[task](draw)
        places = [part for part in split_content(sample.question) if isinstance(part, MediaKind)]
        assert [medium.kind for medium in sample.media] == places
        assert Counter(places) == {MediaKind.IMAGE: 1, MediaKind.AUDIO: 1}
        kinds = {source.partition(":")[0]: source for source in sample.sources}
        assert kinds.keys() == ({"scene", "voice"} if task == "described" else {"scan", "voice"})
        assert all(split_of(source) is Split.TEST for kind, source in kinds.items() if kind != "voice")


def test_a_description_names_both_shapes_where_they_are() -> None:
    draw = _draw(Split.TRAIN)
    for _ in range(30):
        sample = pairs.TASKS["described"](draw)
        words = sample.answer.split()
        assert set(words) <= set(speech.SCENE_WORDS)
        picture = next(decode(each, MediaLimits()) for each in sample.media if each.kind is MediaKind.IMAGE)
        assert isinstance(picture, Image)
        # The first shape lies in the upper or in the left half, and nothing there has the second one's colour.
        pixels = picture.pixels.astype(int)
        half = pixels[:12] if words[2] == "above" else pixels[:, :12]
        assert words[2] in ("above", "left")

        def near(area: np.ndarray, colour: str) -> int:
            return int((np.abs(area - drawing.COLOURS[colour]).max(-1) < 40).sum())

        assert near(half, words[0]) > 8
        if words[0] != words[-2]:
            assert near(half, words[-2]) == 0 and near(pixels, words[-2]) > 8


def test_a_longer_description_takes_longer_to_say() -> None:
    draw = _draw(Split.TRAIN)
    lengths: dict[int, list[int]] = {}
    for _ in range(40):
        sample = pairs.TASKS["described"](draw)
        sound = next(decode(each, MediaLimits()) for each in sample.media if each.kind is MediaKind.AUDIO)
        assert isinstance(sound, Audio) and len(sound.samples) < 3.1 * sound.sampling_rate
        lengths.setdefault(len(sample.answer.split()), []).append(len(sound.samples))
    assert lengths.keys() == {5, 6}
    assert np.mean(lengths[6]) > np.mean(lengths[5])
