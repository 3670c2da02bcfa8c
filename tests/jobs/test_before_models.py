"""What a stage says of a table that it can do nothing with: at once, before a model is loaded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.loop.crew import Crew
from jobs import distill, evaluate, preference, retrieve, reward_model, rlhf, sft
from jobs.classify import classes_of
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.data.schema import to_row
from pipeline.data.table import write_preferences, write_prompts
from pipeline.records import OVERALL, Message, Preference, Prompt, RaterKind, Rating

Run = Callable[[Recipe], object]


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that loads a model, or trains, fails."""
    monkeypatch.setattr(Crew, "roles", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr(retrieve, "connect", lambda **_: pytest.fail("an encoder is trained"))


def a_run(directory: Path, *answers: str | None, split: str = "train", checkpoint: str = "sft") -> Recipe:
    """A recipe with a row an answer in one split, and what looks like a checkpoint."""
    rows = [Prompt(f"p{place}", "t", (Message("user", "2+2?"),), (), each) for place, each in enumerate(answers)]
    write_prompts(directory / "data" / f"{split}.parquet", [to_row(row, []) for row in rows])
    place = directory / "checkpoints" / checkpoint
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    return load_recipe(None, [f"run.directory={directory}", f"data.path={directory}/data", "cluster.device=cpu"])


def refused(run: Run, recipe: Recipe, *overrides: str) -> str:
    given = [f"run.directory={recipe.run.directory}", f"data.path={recipe.data.path}", "cluster.device=cpu"]
    with pytest.raises((ConfigError, FileNotFoundError)) as caught:
        run(load_recipe(None, [*given, *overrides]))
    return str(caught.value)


COMPARING = "rlhf.rewards={exact_match: 1.0, contains: 0.5}"


@pytest.mark.parametrize(
    ("run", "overrides", "told"),
    [
        (sft.run, [], "neither demonstration nor answer"),
        (sft.run, ["sft.rows=1"], "neither demonstration nor answer"),
        (reward_model.run, [], "no answer for the scripted rater"),
        (preference.run, [], "no answer for the scripted rater"),
        (distill.run, [COMPARING], "no answer, which rlhf.rewards compares with (exact_match, contains)"),
        (rlhf.run, [COMPARING], "no answer, which rlhf.rewards compares with (exact_match, contains); rewards={l"),
    ],
)
def test_a_stage_that_needs_answers_says_that_no_row_has_one(
    tmp_path: Path, run: Run, overrides: list[str], told: str
) -> None:
    message = refused(run, a_run(tmp_path, None, None), *overrides)
    assert message.startswith(f"{tmp_path}/data/train.parquet: no row can be used") and told in message


def test_one_row_that_can_be_used_is_enough_and_so_is_a_reward_that_needs_no_answer(tmp_path: Path) -> None:
    recipe = a_run(tmp_path, None, "4")
    given = [f"run.directory={recipe.run.directory}", f"data.path={recipe.data.path}", "cluster.device=cpu"]
    for run, override in ((sft.run, "sft.num_steps=3"), (rlhf.run, COMPARING), (rlhf.run, "rlhf.rewards={length: 1}")):
        with pytest.raises(pytest.fail.Exception, match="a model is loaded"):
            run(load_recipe(None, [*given, override]))
    nobody = a_run(tmp_path / "nobody", None)
    given = [f"run.directory={nobody.run.directory}", f"data.path={nobody.data.path}", "cluster.device=cpu"]
    with pytest.raises(pytest.fail.Exception, match="a model is loaded"):
        rlhf.run(load_recipe(None, [*given, "rlhf.rewards={learned: 1}"]))
    assert "no row can be used" in refused(sft.run, recipe, "sft.rows=1")


def test_validation_without_answers_is_refused_before_the_loop(tmp_path: Path) -> None:
    recipe = a_run(tmp_path, "4")
    row = Prompt("v", "t", (Message("user", "2+2?"),), (), None)
    write_prompts(tmp_path / "data" / "validation.parquet", [to_row(row, [])])
    message = refused(rlhf.run, recipe, COMPARING, "rlhf.evaluate_every=1", "rlhf.checkpoints.save_every=1")
    assert "validation.parquet: no row can be used" in message and "set rlhf.evaluate_every=null" in message


def test_classes_are_answers_of_every_split(tmp_path: Path) -> None:
    recipe = a_run(tmp_path, "a", "b")
    for split in ("validation", "test"):
        row = Prompt("v", "t", (Message("user", "?"),), (), "a" if split == "validation" else None)
        write_prompts(tmp_path / "data" / f"{split}.parquet", [to_row(row, [])])
    assert "no row of test has an answer, which is its class" in refused(classes_of, recipe)


@pytest.mark.parametrize(("run", "stage"), [(reward_model.run, "reward_model"), (preference.run, "preference")])
def test_too_few_preferences_are_told_with_the_batch_that_they_are_enough_for(
    tmp_path: Path, run: Run, stage: str
) -> None:
    recipe = a_run(tmp_path, *["4"] * 12)
    message = refused(run, recipe, f"{stage}.batch_size=13")
    assert message.startswith(f"{stage}.batch_size=13: at most 12 preferences are sampled; lower it, or raise pref")
    said = [Preference(f"p{row}", (1,), (2,), "a", "b", "mine", RaterKind.DATASET) for row in range(10)]
    write_preferences(tmp_path / "preferences.parquet", said)
    message = refused(run, recipe, f"{stage}.batch_size=16")
    assert message.startswith(f"{stage}.batch_size=16: {tmp_path}/preferences.parquet has 10 preferences, of which ")
    num_learned = int(message.partition("lower it to ")[2].partition(",")[0])
    assert 0 < num_learned < 10 and "or bring more" in message
    with pytest.raises(pytest.fail.Exception, match="a model is loaded"):
        given = [f"run.directory={tmp_path}", f"data.path={recipe.data.path}", "cluster.device=cpu"]
        run(load_recipe(None, [*given, f"{stage}.batch_size={num_learned}"]))


def test_distillation_counts_before_it_samples_and_before_the_student_is_loaded(tmp_path: Path) -> None:
    recipe, few = a_run(tmp_path, "4", "5", "6"), "distill={batch_size: 8, keep: 4, samples_per_prompt: 2}"
    message = refused(distill.run, recipe, COMPARING, few)
    told = (
        "distill.batch_size=8: only 6 completions are kept at most, 2 of each of 3 prompts; lower it, or sample anew "
    )
    assert message == f"{told}with more distill.num_prompts or distill.keep"
    rating = Rating("p0", (1,), "4", {OVERALL: 1.0}, "rewards", RaterKind.SCRIPTED)
    write_preferences(tmp_path / "distilled.parquet", [rating])
    message = refused(distill.run, recipe, COMPARING, few)
    assert f"only 1 completions are kept in {tmp_path}/distilled.parquet; lower it" in message


def test_retrieval_looks_at_its_splits_before_it_trains_an_encoder(tmp_path: Path) -> None:
    def evaluated(recipe: Recipe) -> None:
        retrieve.evaluate(recipe, Namespace())

    recipe = a_run(tmp_path, "a", "b", "c", split="test")
    message = refused(evaluated, recipe, "retrieve.split=validation")
    assert message.startswith("retrieve.split=validation: ") and "is in the split validation, but in test" in message
    message = refused(evaluated, recipe, "retrieve.few_shot.classes=[a, b]")
    assert message.startswith("retrieve.train_split=train: ")
    message = refused(evaluated, recipe, "retrieve.num_rows=5")
    assert message.startswith("retrieve.num_rows=5: retrieve.split=test has 3 rows in all; use at most so many")
    with pytest.raises(pytest.fail.Exception, match="an encoder is trained"):
        evaluated(recipe)


@pytest.mark.parametrize(("run", "role"), [(evaluate.run, "reference"), (reward_model.run, "reward_model")])
def test_a_checkpoint_that_a_stage_writes_is_missed_by_the_name_of_its_job(tmp_path: Path, run: Run, role: str) -> None:
    recipe = a_run(tmp_path, "4", split="test", checkpoint="rlhf")
    message = refused(run, recipe, "preferences.split=test")
    assert message == f"{role}: no checkpoint in {tmp_path}/checkpoints/sft; run `python -m jobs.sft` first"
