"""Steps in a recipe: told apart by name, and every mistake names field, value and cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config import describe_steps, meanings
from pipeline.config.step_bases import Augmentation
from pipeline.config.steps import STEPS, DedupExact, ImageResize, Step, Steps, TextNormalise

LIST: TypeAdapter[tuple[Step, ...]] = TypeAdapter(Steps)
NEEDED: dict[str, dict[str, Any]] = {
    "image.resize": {"max_side": 32},
    "image.bounds": {"min_side": 4},
    "audio.bounds": {"min_seconds": 0.1},
    "video.sample": {"num_frames": 4},
    "video.bounds": {"max_frames": 64},
}
"""What steps that would do nothing by default must be told."""


def mistake(*steps: object) -> tuple[tuple[int | str, ...], str]:
    with pytest.raises(ValidationError) as caught:
        LIST.validate_python(list(steps))
    (error,) = caught.value.errors()
    return error["loc"], error["msg"]


def test_a_list_of_steps_becomes_sections_in_order_with_their_defaults() -> None:
    steps = LIST.validate_python([{"step": "text.normalise"}, {"step": "image.resize", "max_side": 1024}])
    assert steps == (TextNormalise(), ImageResize(max_side=1024))


def test_sections_survive_the_way_to_a_file_and_back() -> None:
    steps = LIST.validate_python([{"step": name} | NEEDED.get(name, {}) for name in STEPS])
    assert {type(step) for step in steps} == set(STEPS.values())
    assert LIST.validate_json(LIST.dump_json(steps)) == steps
    assert LIST.validate_python(steps) == steps


def test_a_wrong_name_lists_the_steps_and_guesses_the_one_that_was_meant() -> None:
    place, message = mistake({"step": "text.normalise"}, {"step": "image.rezise"})
    assert place == (1,)
    assert "step=image.rezise: no such step; did you mean 'image.resize'?" in message
    assert all(name in message for name in STEPS)


@pytest.mark.parametrize("wrong", ["image.flip", None, 3, {"max_side": 3}, {"step": ["image.flip"]}])
def test_what_is_no_step_is_told_how_to_write_one(wrong: object) -> None:
    assert "image.flip" in mistake(wrong)[1]


def test_a_wrong_field_is_placed_below_the_name_of_its_step() -> None:
    assert mistake({"step": "image.resize", "max_sid": 3})[0] == (0, "image.resize", "max_sid")
    assert mistake({"step": "image.resize", "max_side": 0})[0] == (0, "image.resize", "max_side")


@pytest.mark.parametrize("name", NEEDED)
def test_a_step_that_would_do_nothing_is_refused(name: str) -> None:
    assert "set " in mistake({"step": name})[1]


def test_bounds_in_the_wrong_order_are_refused_with_both_values() -> None:
    message = mistake({"step": "audio.noise", "min_snr_db": 50, "max_snr_db": 20})[1]
    assert "min_snr_db=50.0 is above max_snr_db=20.0" in message
    assert (
        "min_frames=9 is above max_frames=8" in mistake({"step": "video.bounds", "min_frames": 9, "max_frames": 8})[1]
    )


def test_what_can_hold_only_once_is_refused_twice() -> None:
    assert "dedup.exact comes twice; drop one" in mistake(DedupExact(), DedupExact())[1]
    assert "mel comes twice; give" in mistake({"step": "audio.mfcc", "name": "mel"}, {"step": "audio.mel"})[1]
    assert len(LIST.validate_python([{"step": "audio.mel"}, {"step": "audio.mel", "name": "mel_128"}])) == 2


def test_the_help_documents_every_step_and_every_field_and_no_line_is_empty() -> None:
    lines = list(describe_steps())
    for name, section in STEPS.items():
        (title,) = (line for line in lines if line.startswith(f"\n[step: {name}]  "))
        assert title.rstrip().endswith(".")
        for field, said in meanings(section).items():
            assert field == "step" or said, (name, field)
            assert field == "step" or any(line.startswith(f"  {field}: ") for line in lines)
    assert not any(line.startswith("  step:") or line.strip() == "" for line in lines)


def test_every_augmentation_has_a_probability_and_nothing_else_has() -> None:
    for section in STEPS.values():
        assert ("probability" in section.model_fields) == issubclass(section, Augmentation)


def test_the_recipe_in_the_documentation_is_one_and_all_steps_and_fields_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "preprocessing.md").read_text()
    recipe = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert recipe is not None
    assert len(LIST.validate_python(yaml.safe_load(recipe[1])["prepare"]["steps"])) > 15
    for name, section in STEPS.items():
        (line,) = (line for line in page.splitlines() if re.match(rf"\| `[^|]*(?<=`){re.escape(name)}`", line))
        missing = [field for field in section.model_fields if f"`{field}`" not in line]
        assert set(missing) <= {"step", "videos", "probability", "of"}, name
