"""What the comparison of preference methods makes of the runs' summaries."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.preferences import DISTILLED, METHODS, OFFLINE, ONLINE, measured, table
from pipeline.config import load_recipe
from pipeline.evaluation.results import ModelName


def test_skill_is_what_contains_the_answer_and_manner_what_of_that_says_just_it() -> None:
    summary = {"overall": {"sft": {"contains": 0.5, "true_reward": 0.2}, "rlhf": {"contains": 0.0, "true_reward": 0.0}}}
    assert measured(summary, ModelName.SFT) == {"skill": 0.5, "manner": 0.4}
    assert measured(summary, ModelName.RLHF) == {"skill": 0.0, "manner": None}


def test_the_table_has_means_and_the_skill_of_each_seed() -> None:
    seeds = [{"skill": 0.5, "manner": 0.4, "seconds": 10.0}, {"skill": 0.7, "manner": 0.6, "seconds": 20.0}]
    assert table({"dpo": seeds}).splitlines()[-1] == "| dpo | 0.600 (0.500, 0.700) | 0.500 | 15 |"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_recipe(method: str) -> None:
    recipe = load_recipe(Path("jobs/recipes/application.yaml"), {**OFFLINE, **ONLINE, **DISTILLED}[method])
    assert method not in OFFLINE or recipe.preference.loss == method
