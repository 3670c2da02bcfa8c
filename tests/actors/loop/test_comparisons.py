"""What the reward model is sent of a preference table: what is held out, again without media, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from actors.loop.comparisons import blanked, check_criteria, held_out
from actors.roles.encoder import PromptRef, Showing
from pipeline.config import ConfigError, load_recipe
from pipeline.data.datasets import RowKey
from pipeline.data.table import PreferenceTable, write_preferences
from pipeline.records import MediaKind, Preference, RaterKind, Rating
from tests.prompts import prompt_ref


class AskedDoor:
    """Lets all prompts in but `refused`; of those that are shown otherwise, all but the row `does_not_go`."""

    def __init__(self, *, refused: str = "", does_not_go: int = -1):
        self.shown: Mapping[RowKey, Showing] = {}
        self._refused, self._does_not_go = refused, does_not_go

    def admit(self, ids: Sequence[str]) -> list[PromptRef]:
        return [prompt_ref(id) for id in ids if id != self._refused]

    def show(self, shown: Mapping[RowKey, Showing]) -> list[PromptRef]:
        self.shown = shown
        return [prompt_ref(f"row-{key.row}", row=key.row) for key in shown if key.row != self._does_not_go]


def _rating(prompt: str, **ratings: float) -> Rating:
    return Rating(prompt, (1,), "a", ratings, "anna", RaterKind.HUMAN)


def _pair(prompt: str) -> Preference:
    return Preference(prompt, (1,), (2,), "a", "b", "anna", RaterKind.HUMAN)


def test_what_is_held_out_has_its_prompts_and_those_refused_are_left_out() -> None:
    door: Any = AskedDoor(refused="bad")
    opinions = [_rating("one", overall=1.0), _pair("bad"), _pair("two"), _rating("one", overall=0.0)]
    found = held_out(door, opinions)
    assert [(each.prompt.id, each.opinion) for each in found] == [
        ("one", opinions[0]),
        ("two", opinions[2]),
        ("one", opinions[3]),
    ]
    with pytest.raises(ConfigError, match="all 1 held-out preferences were refused"):
        held_out(door, [_pair("bad")])


def test_one_completion_alone_cannot_standardise() -> None:
    door: Any = AskedDoor()
    with pytest.raises(ConfigError, match=r"one completion alone .*reward_model\.held_out_fraction"):
        held_out(door, [_rating("one", overall=1.0)])
    assert len(held_out(door, [_pair("one")])) == 1


def test_prompts_with_media_come_again_with_all_of_them_blanked() -> None:
    door = AskedDoor(does_not_go=2)
    prompts = [prompt_ref(f"row-{row}", row=row) for row in range(4)]
    for row, kinds in ((1, (MediaKind.IMAGE,)), (2, (MediaKind.VIDEO,)), (3, (MediaKind.IMAGE, MediaKind.AUDIO))):
        prompts[row] = replace(prompts[row], info=replace(prompts[row].info, modalities=kinds))
    assert set(blanked(cast(Any, door), prompts)) == {"row-1", "row-3"}
    assert {key.row: showing.blanked for key, showing in door.shown.items()} == {
        1: {MediaKind.IMAGE},
        2: {MediaKind.VIDEO},
        3: {MediaKind.IMAGE, MediaKind.AUDIO},
    }
    assert blanked(cast(Any, door), prompts[:1]) == {}


def test_ratings_by_what_the_model_does_not_score_are_refused_before_anything_is_learned(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [_rating("one", safe=1.0, overall=0.5), _pair("two")])
    table = PreferenceTable(tmp_path / "p.parquet")
    check_criteria(load_recipe(None, ["reward_model.criteria=[kind, safe]"]), table)
    with pytest.raises(ConfigError, match=r"rated by safe, and reward_model\.criteria=\['overall'\] has no such"):
        check_criteria(load_recipe(None), table)
