"""What a run of `jobs.prepare` may replace: what an earlier one wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError, Prepare, Source
from pipeline.data import demo
from pipeline.data.ingest.outputs import check_target, clear
from pipeline.data.table import QUARANTINE_SCHEMA

SOURCES = (Source(path="/elsewhere/x.jsonl"),)
CARD = {"tables": {"prompts": {"train": 2, "test": 1}}}


def written(directory: Path, *names: str, text: str = "mine") -> list[Path]:
    files = [directory / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return files


@pytest.mark.parametrize(
    "name",
    [
        "train.parquet",
        "rl-00000-of-00002.parquet",
        "preferences/train.parquet",
        "judgements/test.parquet",
        "README.md",
        "prepare.json",
        "distributions.png",
        "quarantine.parquet",
        ".staging/notes.txt",
    ],
)
def test_a_file_of_somebody_else_in_the_way_is_named_before_work_begins(tmp_path: Path, name: str) -> None:
    written(tmp_path, name)
    with pytest.raises(ConfigError) as caught:
        check_target(SOURCES, tmp_path)
    assert f"holds {name.removesuffix('/notes.txt')}, which was not made of sources; set data.path" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "[1]", "{}", '{"name": "my-package"}', "\xff"])
def test_another_tools_prepare_json_makes_nothing_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "prepare.json").write_text(text, encoding="latin-1")
    written(tmp_path, "train.parquet")
    with pytest.raises(ConfigError, match=r"holds train\.parquet, prepare\.json, which"):
        check_target(SOURCES, tmp_path)


def test_what_an_earlier_run_wrote_may_be_replaced_and_tables_it_did_not_write_may_not(tmp_path: Path) -> None:
    written(tmp_path, "train.parquet", "test-00000-of-00002.parquet", "distributions.png", "quarantine.parquet")
    written(tmp_path, ".staging/index.sqlite", ".staging/plans/000000.parquet", ".staging/000007.arrow")
    written(tmp_path, "README.md", text="# Prompts\n\nMade by Polyphony's `jobs.prepare`: 3 rows read")
    written(tmp_path, "prepare.json", text=json.dumps(CARD))
    check_target(SOURCES, tmp_path)
    written(tmp_path, "preferences/train.parquet")
    with pytest.raises(ConfigError, match=r"holds preferences/train\.parquet, which"):
        check_target(SOURCES, tmp_path)


def test_the_quarantine_of_a_run_that_stopped_is_not_in_the_way(tmp_path: Path) -> None:
    check_target(SOURCES, tmp_path / "new")
    pq.write_table(QUARANTINE_SCHEMA.empty_table(), tmp_path / "quarantine.parquet")
    check_target(SOURCES, tmp_path)


def test_only_files_with_the_names_of_a_split_are_removed(tmp_path: Path) -> None:
    own = written(
        tmp_path, "train.parquet", "rl-00001-of-00003.parquet", "preferences/test.parquet", "judgements/rl.parquet"
    )
    others = written(
        tmp_path,
        *("train_backup.parquet", "rlaif.parquet", "testing.parquet", "validation-1.parquet", "train.parquet.old"),
        *("preferences/training.parquet", "more/train.parquet"),
    )
    clear(tmp_path)
    assert not any(file.exists() for file in own) and all(file.exists() for file in others)


def test_a_source_lies_where_the_table_goes_whichever_way_it_is_named(tmp_path: Path) -> None:
    target = tmp_path / "run" / "data"
    written(target, "train.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in (f"{target}/train.jsonl", f"file://{target}/train.jsonl", f"file:{target}", f"{tmp_path}/run"):
        for directory in (target, tmp_path / "link" / "data"):
            with pytest.raises(ConfigError, match="lies where the table goes"):
                check_target((Source(path=path),), directory)
    check_target((Source(path=f"file://{tmp_path}/other"),), target)


def test_the_built_in_data_replace_nothing_but_themselves(tmp_path: Path) -> None:
    small = Prepare(train_rows=2, validation_rows=1, test_rows=1, tasks=("text",))
    demo.build(tmp_path, prepare=small, seed=0)
    check_target((), tmp_path)
    for id in ("train-text-00000", "mine"):
        pq.write_table(pa.table({"id": ["train-text-00001", id]}), tmp_path / "rl.parquet")
        if id != "mine":
            check_target((), tmp_path)
    with pytest.raises(
        ConfigError, match=r"holds rl\.parquet, which the built-in data would replace; .*set data\.path"
    ):
        check_target((), tmp_path)
    written(tmp_path, "rl.parquet")
    with pytest.raises(ConfigError, match=r"holds rl\.parquet"):
        check_target((), tmp_path)
