"""Which rows parity is checked on."""

from __future__ import annotations

import pytest

from actors.loop.parity import mixed_sample
from pipeline.records import MediaKind, PromptInfo

TEXT: tuple[MediaKind, ...] = ()
IMAGE = (MediaKind.IMAGE,)
BOTH = (MediaKind.IMAGE, MediaKind.AUDIO)
MIXES = [TEXT, TEXT, TEXT, IMAGE, BOTH, TEXT, IMAGE]
INFOS = [PromptInfo(str(place), "task", "answer", "answer", modalities) for place, modalities in enumerate(MIXES)]


@pytest.mark.parametrize(
    ("num_rows", "ids"),
    [(0, ""), (1, "0"), (3, "034"), (4, "0341"), (5, "03416"), (7, "0341625"), (99, "0341625")],
)
def test_mixes_of_modalities_take_turns_in_the_order_of_the_file(num_rows: int, ids: str) -> None:
    assert "".join(info.id for info in mixed_sample(INFOS, num_rows)) == ids


def test_nothing_gives_an_empty_sample() -> None:
    assert mixed_sample([], 8) == []
