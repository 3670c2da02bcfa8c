"""In which order a policy is sent its lessons and what the reference is asked, each completion once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from actors.loop import lessons as module
from actors.loop.lessons import lessons
from actors.training.lessons import Lesson, lessons_of
from actors.training.opinions import Example
from actors.training.references import ReferenceLogprobs, reference_key
from pipeline.config import PreferenceLoss, load_recipe
from pipeline.data.held_out import HeldOut
from pipeline.records import Preference, RaterKind
from tests.prompts import prompt_ref

ADAPTERS = "parts: {language_model: {mode: lora}, head: {mode: freeze}}"


def _example(number: int) -> Example:
    said = Preference(f"p{number}", (1, number), (2, number), "", "", "anna", RaterKind.HUMAN)
    return Example(replace(prompt_ref(said.prompt_id), content=said.prompt_id), said)


class Sent:
    """What is sent of a table whose batches hold one row each: `batches` of the first reading, then `later` ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: Sequence[int], *, later: Sequence[int] | None = None):
        readings = iter([batches, batches if later is None else later])

        class Reading:
            num_refused = num_silent = 0
            num_rows = len(set(batches))

            def __init__(self, *_: Any):
                self._rows = iter(next(readings))

            def take(self, _: int) -> list[Lesson]:
                return lessons_of([_example(next(self._rows))], PreferenceLoss.DPO)

        monkeypatch.setattr(module, "_Reading", Reading)
        monkeypatch.setattr(module, "divided", lambda *_, **__: HeldOut(0.1, (0,)))
        monkeypatch.setattr(module, "admitted", lambda *_: [_example(0)])
        self._num_steps = len(batches)

    def messages(self, references: ReferenceLogprobs | None, settings: str = "loss: dpo") -> list[dict[str, Any]]:
        door = type("Door", (), {"metrics": lambda _: {}})()
        table = type("Table", (), {"read": lambda *_: []})()
        recipe = load_recipe(None, [f"preference={{num_steps: {self._num_steps}, batch_size: 1, {settings}}}"])
        return list(lessons(recipe, cast(Any, door), cast(Any, table), references, deque()))


def _shape(messages: Sequence[dict[str, Any]]) -> list[tuple[bool, list[int], int]]:
    """Whether there is a batch, the rows whose completions are wanted, and how many are known."""
    return [(bool(each["items"]), [asked.ids[1] for asked in each["wanted"]], len(each["known"])) for each in messages]


def test_the_reference_is_asked_before_the_first_lesson_and_about_each_completion_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Sent(monkeypatch, [1, 2, 1]).messages(ReferenceLogprobs(tmp_path / "kept"))
    asked = [(False, [0, 0], 0), (False, [1, 1], 0), (False, [2, 2], 0)]  # Two batches hold all rows there are.
    assert _shape(found) == [*asked, (True, [], 0), (True, [], 0), (True, [], 0)]
    assert len(found[0]["held_out"]) == 1


def test_what_is_known_is_told_and_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ReferenceLogprobs(tmp_path / "kept")
    (lesson,) = lessons_of([_example(1)], PreferenceLoss.DPO)
    kept.add({reference_key(each): -1.0 for each in lesson.asked})
    assert _shape(Sent(monkeypatch, [1]).messages(kept)) == [(False, [0, 0], 0), (False, [], 2), (True, [], 0)]


def test_with_adapters_alone_the_reference_is_asked_along_with_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Sent(monkeypatch, [1, 2, 1]).messages(ReferenceLogprobs(tmp_path / "kept"), f"loss: dpo, {ADAPTERS}")
    assert _shape(found) == [(False, [0, 0], 0), (True, [1, 1], 0), (True, [2, 2], 0), (True, [], 0)]


def test_without_a_reference_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Sent(monkeypatch, [1, 2]).messages(None, "loss: simpo")
    assert _shape(found) == [(False, [], 0), (True, [], 0), (True, [], 0)]


def test_a_policy_that_has_learned_is_never_taken_for_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Sent(monkeypatch, [1, 2], later=[1, 3])
    with pytest.raises(ValueError, match="batch 1 is another one than it was when the reference was asked"):
        changed.messages(ReferenceLogprobs(tmp_path / "kept"))
