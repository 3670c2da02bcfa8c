"""The reward model's criteria in the recipe: what contradicts itself is refused with field, value and cure."""

from __future__ import annotations

import pytest

from pipeline.config import ConfigError, load_recipe


def test_by_default_there_is_one_head() -> None:
    settings = load_recipe(None).reward_model
    assert (settings.criteria, settings.criterion_weights, settings.ensemble) == (("overall",), {}, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{criteria: [safe, safe]}", "criteria=.*name each once"),
        ("{criteria: [overall, safe]}", "overall is the weighted mean of the others"),
        ("{criterion_weights: {safe: 1}}", r"criterion_weights\.safe=1: reward_model\.criteria are"),
        ("{criteria: [safe, kind], criterion_weights: {safe: -1}}", r"criterion_weights\.safe=-1: .*at least 0"),
        ("{criteria: [safe, kind], criterion_weights: {safe: 0}}", "at least one must be above 0"),
        ("{ensemble: 0}", "ensemble"),
    ],
)
def test_criteria_that_mean_nothing_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, [f"reward_model={override}"])
