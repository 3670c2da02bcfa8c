"""The comparison of fusions as a job: one run of all its parts, again to the same bits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.classify import arms_of, classes_of, prepared, run
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.config.fusion import FusionKind, Modality
from pipeline.data.demo import paired
from pipeline.data.schema import PROMPT_SCHEMA
from pipeline.data.table import TooManyBadRows, write_prompts
from pipeline.models.fusion import FusionModel
from pipeline.tracking import read_metrics

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
SMALL = (
    "cluster.device=cpu",
    "run.sinks=[jsonl]",
    "data.limits.isolate_decoders=false",
    "classify.built_in.train_rows=60",
    "classify.built_in.validation_rows=20",
    "classify.built_in.test_rows=24",
    "classify.epochs=2",
)


def recipe_of(directory: Path, name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", [f"run.directory={directory}", *SMALL, *overrides])


@pytest.mark.usefixtures("local_ray")
def test_a_run_leaves_summary_report_metrics_and_models_and_comes_to_the_same_again(tmp_path: Path) -> None:
    few = "classify.fusions=[gated, graph]"
    summary = run(recipe_of(tmp_path / "one", "classification", few))
    again = run(recipe_of(tmp_path / "two", "classification", few))

    assert json.loads((tmp_path / "one" / "summary.json").read_text()) == summary
    assert (summary["task"], summary["seed"]) == ("digit", 0)
    assert set(summary["fusion"]) == {"gated", "graph"}
    assert set(summary["single"]) == {"image", "audio"}
    for found in summary["fusion"].values():
        assert found["best_single"] == summary["single"][summary["best_single"]]
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]
        assert set(found["without"]) == {"image", "audio"}
        assert sum(found["mean_weights"].values()) == pytest.approx(1, abs=1e-5)
    assert {**again, "cpu_s": None} == {**summary, "cpu_s": None}
    page = (tmp_path / "one" / "report.html").read_text()
    assert "gated" in page and "data:audio/" in page and "data:image/png" in page
    assert len(read_metrics(tmp_path / "one" / "metrics")["classify"]) == 2
    loaded = FusionModel.load(tmp_path / "one" / "checkpoints" / "classify" / "gated", num_classes=10)
    assert loaded.settings.kind is FusionKind.GATED


def test_every_kind_and_every_modality_alone_is_an_arm(tmp_path: Path) -> None:
    arms = arms_of(recipe_of(tmp_path, "diagnosis_fusion"))

    assert [arm.name for arm in arms] == [*FusionKind, "image", "text", "numbers"]
    assert [arm.settings.modalities for arm in arms[-3:]] == [(Modality.IMAGE,), (Modality.TEXT,), (Modality.NUMBERS,)]
    assert all(arm.settings.encoders == arms[0].settings.encoders for arm in arms)


def table(recipe: Recipe) -> Path:
    paired.build(recipe.data_path, settings=recipe.classify.built_in, seed=0)
    return recipe.data_path


def rewrite(directory: Path, split: str, **changes: Any) -> None:
    """Writes a split again, its first row changed."""
    rows = pq.read_table(directory / f"{split}.parquet").to_pylist()
    rows[0] = {**rows[0], **changes}
    write_prompts(directory / f"{split}.parquet", rows, schema=PROMPT_SCHEMA)


def test_an_answer_that_train_does_not_know_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "classification")
    rewrite(table(recipe), "test", answer="eleven")

    with pytest.raises(ConfigError, match="the answer 'eleven' of test is none of the 10 classes that train has"):
        classes_of(recipe)


def test_rows_that_cannot_be_used_are_counted_with_their_reason(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "diagnosis_fusion", "classify.built_in.degraded=0")
    directory = table(recipe)
    rewrite(directory, "test", answer=None)
    rewrite(directory, "validation", images=[{"bytes": b"no picture", "path": None}])
    rewrite(directory, "train", columns=json.dumps({"degraded": "all"}))
    classes = classes_of(recipe)

    _, test = prepared(recipe, "test", classes)
    _, validation = prepared(recipe, "validation", classes)
    arrays, _ = prepared(recipe, "train", classes)

    assert (len(test.rows.ids), test.counts) == (23, {"no_answer": 1})
    assert len(validation.rows.ids) == 19
    assert len(validation.refused) == 1
    assert arrays["present"][0].tolist() == [True, True, False]
    assert arrays["present"][1:].all()


def test_a_number_that_is_none_is_named_with_its_row_and_column(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "diagnosis_fusion")
    directory = table(recipe)
    broken = dict.fromkeys(recipe.classify.numbers, 1.0) | {"mean symmetry": "high"}
    rewrite(directory, "test", columns=json.dumps(broken))

    with pytest.raises(
        ConfigError, match=r"classify.numbers: row 'test-diagnosis-00000': column mean symmetry is 'high'"
    ):
        prepared(recipe, "test", classes_of(recipe))


@pytest.mark.usefixtures("local_ray")
def test_too_many_bad_rows_stop_the_job(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "classification")
    rewrite(table(recipe), "test", audios=[{"bytes": b"no sound", "path": None}])
    brought = recipe_of(tmp_path / "run", "classification", f"data.path={recipe.data_path}")

    with pytest.raises(TooManyBadRows, match="1 of 24 rows were refused"):
        run(brought)


def test_numbers_are_named_as_many_as_the_model_takes() -> None:
    with pytest.raises(ConfigError, match="the model takes 0"):
        load_recipe(None, ["classify.numbers=[size]"])
    with pytest.raises(ConfigError, match="name each once"):
        load_recipe(None, ["classify.fusions=[gated, gated]"])


def test_labels_are_places_in_the_sorted_classes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "diagnosis_fusion")
    table(recipe)

    arrays, facts = prepared(recipe, "test", classes_of(recipe))

    assert classes_of(recipe) == ("benign", "malignant")
    answers = [row["answer"] for row in pq.read_table(recipe.data_path / "test.parquet").to_pylist()]
    assert arrays["labels"].tolist() == [("benign", "malignant").index(answer) for answer in answers]
    assert np.array_equal(facts.rows.labels, arrays["labels"])
