"""Evaluation while training in the recipe: what contradicts itself is refused with field, value and cure."""

from __future__ import annotations

import pytest

from pipeline.config import ConfigError, Measure, load_recipe

EVERY = "rlhf.evaluate_every=10"


def test_by_default_nothing_is_evaluated_while_training() -> None:
    assert load_recipe(None).rlhf.evaluate_every is None
    assert load_recipe(None, ["rlhf.evaluate_every=0"]).rlhf.evaluate_every == 0


def test_metrics_are_named_by_what_is_measured_and_of_which_task() -> None:
    assert Measure.GREEDY_EXACT_MATCH.metric() == "validation/greedy_exact_match"
    assert Measure.CONTAINS.metric("speech") == "validation/speech/contains"


@pytest.mark.parametrize(
    "metric", ["validation/any_of_k", "validation/speech/exact_match", "validation/a/b/greedy_exact_match"]
)
def test_every_metric_that_evaluations_give_can_be_looked_at(metric: str) -> None:
    recipe = load_recipe(
        None, [EVERY, f"rlhf.validation.stop_metric={metric}", f"rlhf.checkpoints.best_metric={metric}"]
    )
    assert recipe.rlhf.validation.stop_metric == recipe.rlhf.checkpoints.best_metric == metric


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rlhf.validation.stop_at=0.9"], r"validation\.stop_at=0\.9 with evaluate_every=null: .*set evaluate_every"),
        (["rlhf.validation.patience=2", "rlhf.evaluate_every=0"], r"validation\.patience=2 with evaluate_every=0: "),
        (
            ["rlhf.checkpoints.best_metric=validation/exact_match"],
            r"checkpoints\.best_metric=validation/exact_match with evaluate_every=null: .*set evaluate_every",
        ),
        (
            [EVERY, "rlhf.validation.stop_metric=reward/mean"],
            r"validation\.stop_metric: .*stop_metric=reward/mean: no evaluation gives it; there are validation",
        ),
        # Of a task not everything is measured.
        (
            [EVERY, "rlhf.validation.stop_metric=validation/speech/any_of_k"],
            r"validation/speech/any_of_k: no evaluation",
        ),
        (
            [EVERY, "rlhf.checkpoints.best_metric=validation/exact"],
            r"checkpoints\.best_metric=validation/exact: no evaluation gives it; there are .*greedy_exact_match",
        ),
        (
            [EVERY, "rlhf.checkpoints={best_metric: validation/exact_match, save_every: 15}"],
            r"save_every=15 and evaluate_every=10: .*make save_every a multiple of evaluate_every",
        ),
        (["rlhf.checkpoints.export=best"], r"export=best with best_metric=null: .*name a metric"),
        ([EVERY, "rlhf.validation.stop_at=1.5"], r"rlhf\.validation\.stop_at: .*less than or equal to 1"),
        ([EVERY, "rlhf.validation.patience=0"], r"rlhf\.validation\.patience: "),
        ([EVERY, "rlhf.validation.split=train"], r"rlhf\.validation\.split=train: rlhf\.split has the same rows"),
        ([EVERY, "rlhf.validation.split=test"], r"rlhf\.validation\.split=test: evaluate\.split has the same rows"),
        (
            [EVERY, "rlhf.validation.split=train", "rlhf.split=rl", "preferences.split=rl"],
            r"split=train: the demonstrations' split has the same rows, .*use a split of its own, such as validation",
        ),
        (
            [EVERY, "rlhf.validation.split=rl", "preferences.split=rl"],
            r"split=rl: preferences\.split has the same rows",
        ),
    ],
)
def test_what_no_evaluation_could_do_is_refused_with_its_cure(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_recipe(None, overrides)


def test_a_metric_of_the_loop_may_be_the_best_at_any_interval() -> None:
    load_recipe(None, ["rlhf.checkpoints={best_metric: reward/mean, export: best, save_every: 15}", EVERY])
    load_recipe(None, ["rlhf.checkpoints={best_metric: validation/exact_match, save_every: 20}", EVERY])


def test_a_split_that_nobody_evaluates_on_is_nobodys_concern() -> None:
    load_recipe(None, ["rlhf.validation.split=train"])
