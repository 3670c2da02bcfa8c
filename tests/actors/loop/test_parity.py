"""Which rows parity is checked on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop.parity import check, mixed_sample
from pipeline.config import ConfigError, load_recipe
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


@pytest.mark.parametrize(
    ("lack", "told"), [("no answer, which x", "no answer, which x"), (None, "see runs/a/quarantine")]
)
def test_rows_of_which_none_can_be_compared_are_told_with_the_reason(lack: str | None, told: str) -> None:
    datasets = SimpleNamespace(infos=lambda num_rows: INFOS)  # pyright: ignore[reportUnknownLambdaType]
    door: Any = SimpleNamespace(datasets=datasets, lacks=lambda _: lack, admit=lambda _: [], directory=Path("runs/a"))
    nobody: Any = None
    with pytest.raises(ConfigError) as caught:
        check(nobody, load_recipe(None), door, stage="after loading", stock=True)
    assert str(caught.value).startswith("rlhf.parity.num_rows=8: none of the first 2048 rows of a table can be used: ")
    assert f"{told}; 0 goes without" in str(caught.value)
