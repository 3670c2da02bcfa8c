"""What a worker tells of the rows of a shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import load_recipe
from pipeline.data.ingest.shards import shards_of
from pipeline.data.ingest.worker import ShardWorker, described
from tests.data.files import image_file, pixels


def unread(directory: Path, source: Path, *overrides: str) -> list[tuple[str, list[str]]]:
    """Id and what was not read of each row of a source."""
    recipe = load_recipe(None, [f'prepare.sources=[{{path: {source}, question: "What?"}}]', *overrides])
    shards = shards_of(recipe.prepare.sources)
    staging = directory / "staging"
    worker = ShardWorker(recipe, shards, directory / "table", staging, None)
    worker.build()
    for number in range(len(shards)):
        worker.prepare(number)
    return [(row["id"], row["unread"]) for number in range(len(shards)) for row in described(staging, number)]


TOLD = "the split test of names of files (prepare.split.by=column takes it)"


def test_a_split_that_names_of_files_say_and_nobody_reads_is_told_of_every_row_but_those_of_train(
    tmp_path: Path,
) -> None:
    (tmp_path / "hub").mkdir()
    for split in ("train", "test"):
        rows = [{"id": f"{split}-{number}", "question": "1 + 1?", "answer": "2", "more": "x"} for number in range(2)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "hub" / f"{split}-00000-of-00001.jsonl").write_text(text)
    expected = {"train-0": ["more"], "train-1": ["more"], "test-0": ["more", TOLD], "test-1": ["more", TOLD]}
    assert dict(unread(tmp_path, tmp_path / "hub")) == expected
    by_column = unread(tmp_path, tmp_path / "hub", "prepare.split.by=column")
    assert all(left == ["more"] for _, left in by_column) and len(by_column) == 4
    (alone,) = {tuple(left) for _, left in unread(tmp_path, tmp_path / "hub" / "test-00000-of-00001.jsonl")}
    assert alone == ("more", TOLD)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_directory_above_a_picture_says_a_split_as_well(tmp_path: Path, split: str) -> None:
    file = tmp_path / "birds" / split / "owl" / "1.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(image_file(Image.fromarray(pixels(8, 8))))
    ((_, left),) = unread(tmp_path, tmp_path / "birds")
    assert left == ([TOLD] if split == "test" else [])
