"""The card counts what stayed and what did not, and reports carry it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jobs.evaluate import read_counts
from pipeline.config import Recipe, load_recipe
from pipeline.data.ingest import card
from pipeline.data.ingest.index import Index
from pipeline.records import Quarantined
from tests.data.ingest.index_rows import described


def written(directory: Path) -> tuple[Recipe, dict[str, Any]]:
    steps = "prepare.steps=[{step: text.normalise}, {step: image.resize, max_side: 64}]"
    given = [f"run.directory={directory}", f"data.path={directory}/data", "prepare.rows_per_file=1", steps]
    recipe = load_recipe(None, given)
    index = Index(":memory:")
    known: dict[str, Any] = {"seconds": 0.5, "num_answer_tokens": 2}
    rows = (
        described("a", modalities=["image"], num_tokens=10, unread=["img_size", "messages.name"], **known),
        described("b", modalities=["image", "audio"], num_tokens=30, **known),
        described("c", split="test", task="b|c", has_answer=False, **known),
        described("d", modalities=["video"], num_tokens=1000, **known),
    )
    for number, row in enumerate(rows):
        index.add(number, row, contents=())
    index.leave_out(3)
    for number, reason in enumerate(("not_found", "not_found", "leak", "leak", "leak")):
        index.refuse(number, Quarantined(str(number), reason, ""), is_bad=reason != "leak")
    tables = {"prompts": {"train": 2, "test": 1}, "preferences": {"train": 1}}
    summary = card.summarise(index, num_read=8, recipe=recipe, tables=tables)
    (directory / "data").mkdir(parents=True)
    card.write(directory / "data", summary, index)
    return recipe, summary


def test_counts_by_task_modality_and_split_and_quantiles_of_tokens(tmp_path: Path) -> None:
    _, summary = written(tmp_path)
    assert summary["rows"] == {"train": 2, "rl": 0, "validation": 0, "test": 1}
    assert summary["tasks"] == {"a": {"train": 2}, "b|c": {"test": 1}}
    assert summary["modalities"] == {"image": {"train": 1}, "image+audio": {"train": 1}, "text": {"test": 1}}
    assert summary["num_tokens"] == {"mean": 20.0, "min": 10.0, "p50": 10.0, "p95": 30.0, "max": 30.0}
    assert summary["seconds"] == 1.5
    assert summary["without_answer"] == {"test": 1}
    assert summary["refused"] == {"not_found": 2} and summary["left_out"] == {"leak": 3}
    assert summary["unread"][0] == {"dataset": "set", "path": "img_size", "rows": 1}
    assert card.read(str(tmp_path / "data")) == summary
    assert card.read(str(tmp_path / "elsewhere")) is None


def test_the_card_has_a_head_that_says_which_files_are_which_split(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / "data" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "train-*-of-*.parquet"},
                {"split": "test", "path": "test.parquet"},
            ],
        },
        {"config_name": "preferences", "data_files": [{"split": "train", "path": "preferences/train.parquet"}]},
    ]
    for line in (
        "| b\\|c | 0 | 0 | 0 | 1 |",
        "| not_found | 2 |",
        "| leak (left out) | 3 |",
        "| set | messages.name | 1 |",
        "8 rows read, 3 kept",
        "| 0 | 0 | 0 | 1 |",
    ):
        assert line in text


def test_reports_count_what_was_refused_while_preparing(tmp_path: Path) -> None:
    recipe, _ = written(tmp_path)
    counts = read_counts(recipe)
    assert (counts["prepare:not_found"], counts["prepare:leak"], counts["quarantined"]) == (2, 3, 0)
