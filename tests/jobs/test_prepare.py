"""`jobs.prepare` on files of every form: what comes in, what comes out, what is refused; and training on the result."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import prepare, sft
from pipeline.config import Recipe, load_recipe
from pipeline.data.media import decode_image
from pipeline.data.table import Quarantine
from tests.data.ingest import samples
from tests.jobs.small import curve

pytestmark = pytest.mark.usefixtures("local_ray")


def recipe_of(directory: Path, checkpoint: Path, sources: list[Any], *overrides: str) -> Recipe:
    named = json.dumps([source.model_dump(mode="json") for source in sources])
    return load_recipe(
        None,
        [
            "cluster.device=cpu",
            "run.sinks=[jsonl]",
            f"run.directory={directory}",
            f"model.path={checkpoint}",
            f"prepare.sources={named}",
            *overrides,
        ],
    )


def rows_of(directory: Path, split: str = "train") -> list[dict[str, Any]]:
    return [row for file in sorted(directory.glob(f"{split}*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, local_ray: None) -> Recipe:
    """All forms in one table."""
    directory = tmp_path_factory.mktemp("prepared")
    recipe = recipe_of(
        directory / "run",
        tiny_checkpoint,
        samples.every_form(directory),
        "prepare.split={by: hash, validation: 0.1, test: 0.1}",
        "prepare.steps=[{step: text.normalise}, {step: image.resize, max_side: 16}, {step: audio.mfcc}]",
    )
    prepare.run(recipe)
    return recipe


def test_every_row_of_every_form_is_in_the_table_once(prepared: Recipe) -> None:
    rows = [row for split in ("train", "validation", "test") for row in rows_of(prepared.data_path, split)]
    found = Counter(row["dataset"] for row in rows)
    expected = {make.__name__: samples.ROWS for make in samples.FORMS}
    assert found == {**expected, "judgements": samples.ROWS // 2}  # bad completions answer nothing
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(Quarantine.read(prepared.data_path / "quarantine.parquet")) == 0
    of_swift = next(row for row in rows if row["dataset"] == "swift")
    assert of_swift["prompt"][0]["content"] == "<video>And <audio>what is this?"
    assert of_swift["num_tokens"] > 10
    assert [(each["name"], each["medium"], len(each["values"][0])) for each in of_swift["features"]] == [
        ("mfcc", 1, 13)
    ]
    picture = next(row for row in rows if row["dataset"] == "llava")
    assert decode_image(picture["images"][0]["bytes"], prepared.data.limits).pixels.shape == (16, 16, 3)


def test_training_reads_what_was_prepared(prepared: Recipe) -> None:
    recipe = prepared.model_copy(update={"sft": prepared.sft.model_copy(update={"num_steps": 3, "batch_size": 8})})
    sft.run(recipe)
    losses = [row["loss"] for row in curve(recipe, "sft")]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_datasets_opens_the_directory_as_it_is(prepared: Recipe) -> None:
    opened = datasets.load_dataset(str(prepared.data_path), cache_dir=str(prepared.run.directory / "cache"))
    assert set(opened) == {"train", "validation", "test"}
    row = next(row for row in opened["train"] if row["dataset"] == "llava")  # pyright: ignore
    assert np.asarray(row["images"][0]).shape == (16, 16, 3)
    assert opened["train"].features["images"] == datasets.List(datasets.Image())


def test_the_card_counts_what_is_there_and_names_every_parameter(prepared: Recipe) -> None:
    card = (prepared.data_path / "README.md").read_text()
    assert "| image.resize | max_side=16" in card
    assert "audio+video" in card and "| preferences |" in card
    summary = json.loads((prepared.data_path / "prepare.json").read_text())
    assert summary["rows_read"] == samples.ROWS * len(samples.FORMS)
    assert sum(summary["datasets"]["tar"].values()) == samples.ROWS
    assert sum(summary["tables"]["judgements"].values()) == samples.ROWS
    assert (prepared.data_path / "distributions.png").read_bytes().startswith(b"\x89PNG")
