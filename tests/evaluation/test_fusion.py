"""The comparison of fusions with single modalities, on figures computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.fusion import ArmResult, TestRows, best_single, sections, summarise
from pipeline.evaluation.page import write_page
from pipeline.records import Message, Prompt

ROWS = TestRows(
    ids=("a", "b", "c", "d"),
    labels=np.array([0, 1, 0, 1]),
    groups=("image noise", "image noise", "audio blank", "audio blank"),
    units=("scan:1", "scan:1", "scan:2", "scan:3"),
)


def arm(name: str, predicted: list[int], *, validation: float, modalities: tuple[str, ...] = ()) -> ArmResult:
    modalities = modalities or (name,)
    weights = np.full((4, len(modalities)), 1 / len(modalities), np.float32)
    return ArmResult(name, modalities, (1.0, 0.5), (0.1, validation), np.array(predicted), weights, {}, 10, 1.5)


FUSED = arm("gated", [0, 1, 0, 1], validation=0.9, modalities=("image", "audio"))
IMAGE = arm("image", [1, 1, 0, 1], validation=0.5)
AUDIO = arm("audio", [0, 1, 0, 0], validation=0.6)


def test_the_best_single_modality_is_chosen_on_validation() -> None:
    assert best_single([FUSED, IMAGE, AUDIO]) is AUDIO
    with pytest.raises(ValueError, match="no arm has a single modality"):
        best_single([FUSED])


def test_gains_are_means_over_sources_and_accuracies_over_rows() -> None:
    summary = summarise([FUSED, IMAGE, AUDIO], ROWS)

    found = summary["fusion"]["gated"]
    assert (found["fused"], found["best_single"]) == (1.0, 0.75)
    assert found["difference"] == pytest.approx(1 / 3)  # of three sources: 0, 0 and 1
    assert found["interval"][0] < 1 / 3 < found["interval"][1]
    assert summary["single"] == {"image": 0.75, "audio": 0.75}
    assert summary["best_single"] == "audio"
    assert summary["by_group"]["image"] == {"image noise": 0.5, "audio blank": 1.0}
    assert (summary["num_test_rows"], summary["num_test_units"]) == (4, 3)


def test_the_page_shows_every_arm_and_every_decision_of_the_rows_shown(tmp_path: Path) -> None:
    shown = [Prompt(id="b", task="digit", messages=(Message("user", "?"),), media=(), answer="seven")]

    parts = sections([FUSED, IMAGE, AUDIO], ROWS, classes=("six", "seven"), shown=shown, counts={"refused": 2})
    write_page(tmp_path / "report.html", title="Fusion", sections=parts)

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 refused" in page
    assert parts[-1].table is not None
    assert parts[-1].table.rows == (("b", "image noise", "seven", "gated", "seven", "image 0.50, audio 0.50"),)
    for name in ("gated", "image", "audio"):
        assert name in page
