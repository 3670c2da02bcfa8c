"""The built-in tables for fusion: the same bytes again, no source in two splits, and one modality degraded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import MediaLimits
from pipeline.config.classify import Paired, PairedTask
from pipeline.data.demo.paired import (
    MEASURED,
    Degradation,
    build,
    spoilt_numbers,
    spoilt_picture,
    spoilt_sound,
    spoilt_text,
)
from pipeline.data.media import decode
from pipeline.data.table import PromptTable
from pipeline.records import Audio, Image, Prompt

RNG = np.random.default_rng(0)


def settings_of(task: PairedTask) -> Paired:
    return Paired(task=task, train_rows=60, validation_rows=20, test_rows=40)


@pytest.fixture(scope="module", params=list(PairedTask))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    counts = build(directory, settings=settings_of(request.param), seed=3)
    assert sorted(counts.values()) == [20, 40, 60]
    return directory


def rows(directory: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(directory / f"{split}.parquet").to_pylist()


def test_the_same_seed_gives_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    task = PairedTask(str(rows(directory, "test")[0]["task"]))
    build(tmp_path, settings=settings_of(task), seed=3)

    for file in directory.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_no_source_is_in_two_splits_and_none_comes_again_before_all_came(directory: Path) -> None:
    splits = ("train", "validation", "test")
    sources = {split: [row["sources"][0] for row in rows(directory, split)] for split in splits}

    assert not set(sources["train"]) & set(sources["test"])
    assert not set(sources["train"]) & set(sources["validation"])
    assert not set(sources["validation"]) & set(sources["test"])
    assert len(set(sources["test"])) == 40


def test_every_row_reads_and_one_modality_of_it_is_degraded(directory: Path) -> None:
    table = PromptTable(directory / "train.parquet")
    prompts = table.read_rows(range(len(table)))
    columns = [json.loads(cells["columns"]) for cells in table.cells(range(len(table)), ("columns",)).values()]

    for prompt, column in zip(prompts, columns, strict=True):
        assert isinstance(prompt, Prompt)
        decoded = [decode(medium, MediaLimits()) for medium in prompt.media]
        blank = [each for each in decoded if isinstance(each, Image) and not each.pixels.any()]
        assert bool(blank) is (column["degraded"] == "image blank")
        silent = [each for each in decoded if isinstance(each, Audio) and not each.samples.any()]
        assert bool(silent) is (column["degraded"] == "audio blank")
        if prompt.task == "diagnosis":
            assert (column[MEASURED[0]] is None) is (column["degraded"] == "numbers blank")
    assert min(Counter(column["degraded"] for column in columns).values()) >= 2
    assert "none" not in {column["degraded"] for column in columns}


def test_noise_is_as_strong_as_it_says() -> None:
    pixels = np.full((64, 64, 3), 128, np.uint8)
    sound = Audio(np.sin(np.arange(8000) / 5).astype(np.float32) * 0.1, 8000)

    noisy = spoilt_picture(pixels, Degradation.NOISE, 0.1, RNG)
    loud = spoilt_sound(sound, Degradation.NOISE, 0.01, RNG)  # 20 dB below
    text = spoilt_text("a" * 1000, Degradation.NOISE, 1.0, RNG)
    numbers = [spoilt_numbers(np.zeros(1), Degradation.NOISE, np.full(1, 2.0), RNG)[0] for _ in range(2000)]

    assert np.std(noisy.astype(float)) == pytest.approx(25.5, rel=0.1)
    noise = loud.samples - sound.samples
    assert np.std(noise) == pytest.approx(np.std(sound.samples) * 0.1, rel=0.1)
    assert 1000 - text.count("a") == pytest.approx(500 * 25 / 26, rel=0.15)
    assert np.std(np.array(numbers, float)) == pytest.approx(6.0, rel=0.1)
    assert np.abs(spoilt_sound(sound, Degradation.NOISE, 5.0, RNG).samples).max() <= 1


def test_what_is_not_degraded_stays_and_what_is_blank_is_gone() -> None:
    pixels, sound = np.full((4, 4, 3), 9, np.uint8), Audio(np.ones(4, np.float32), 8000)

    assert spoilt_picture(pixels, Degradation.NONE, 1.0, RNG) is pixels
    assert spoilt_sound(sound, Degradation.NONE, 1.0, RNG) is sound
    assert spoilt_text("low", Degradation.NONE, 1.0, RNG) == "low"
    assert spoilt_numbers(np.ones(2), Degradation.NONE, np.ones(2), RNG) == [1.0, 1.0]
    assert spoilt_text("low", Degradation.BLANK, 1.0, RNG) == "none"
    assert spoilt_numbers(np.ones(2), Degradation.BLANK, np.ones(2), RNG) == [None, None]
