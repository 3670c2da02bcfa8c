"""Which prompts are shown again: what is blanked, and whose media stand in for whose."""

from __future__ import annotations

import pytest

from pipeline.evaluation.ablation import blankings, donors
from pipeline.records import MediaKind, PromptInfo

IMAGE, AUDIO = MediaKind.IMAGE, MediaKind.AUDIO


def info(id: str, answer: str | None, task: str = "digit", kinds: tuple[MediaKind, ...] = (IMAGE,)) -> PromptInfo:
    return PromptInfo(id, task=task, answer=answer, demonstration=answer, modalities=kinds)


def test_each_kind_is_blanked_alone_and_all_of_a_prompt_together() -> None:
    infos = [info("a", "7"), info("b", "7", kinds=(IMAGE, AUDIO)), info("c", "7", kinds=())]
    assert blankings(infos) == [{AUDIO}, {IMAGE}, {IMAGE, AUDIO}]


@pytest.mark.parametrize("seed", range(5))
def test_a_donor_is_of_the_same_task_and_kinds_with_another_answer(seed: int) -> None:
    infos = [info(f"d{number}", str(number % 4)) for number in range(40)]
    infos += [info(f"s{number}", str(number % 4), "scene") for number in range(10)]
    infos += [info(f"b{number}", str(number % 3), "digit", (IMAGE, AUDIO)) for number in range(10)]
    by_id = {each.id: each for each in infos}
    found = donors(infos, seed=seed)
    assert found.keys() == by_id.keys()
    for id, donor in found.items():
        assert by_id[id].answer != by_id[donor].answer
        assert (by_id[id].task, by_id[id].modalities) == (by_id[donor].task, by_id[donor].modalities)
    assert len(set(found.values())) > 20, "many rows lend their media"


def test_donors_depend_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    infos = [info(f"d{number}", str(number % 4)) for number in range(40)]
    assert donors(infos, seed=3) == donors(infos[::-1], seed=3)
    assert donors(infos, seed=3) != donors(infos, seed=4)


def test_prompts_without_media_without_an_answer_or_without_another_answer_have_no_donor() -> None:
    infos = [info("text", "1", kinds=()), info("text too", "2", kinds=()), info("open", None), info("open too", None)]
    infos += [info("same", "Seven ", "speech"), info("same too", "seven", "speech")]
    assert donors(infos, seed=0) == {}
    assert donors([*infos, info("other", "two", "speech")], seed=0).keys() == {"same", "same too", "other"}
