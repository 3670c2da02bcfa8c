"""What a reward model's training says of the pairs that it held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.reward_model import FEW_HELD_OUT, assess
from pipeline.config import load_recipe
from pipeline.data.table import write_preferences
from pipeline.evaluation.calibration import ScoredPair
from pipeline.records import Preference, RaterKind

SCORE = {"mean": 0.5, "std": 2.0}


def test_held_out_pairs_are_reported_by_task_and_modality_and_few_of_them_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, table = load_recipe(None, [f"run.directory={tmp_path}"]), tmp_path / "preferences.parquet"
    write_preferences(table, [Preference("row", (1,), (2,), "a", "b", "anna", RaterKind.HUMAN)])
    right = ScoredPair("video", ("video",), chosen=1.0, rejected=-1.0)
    wrong = ScoredPair("sum", (), chosen=-1.0, rejected=1.0)
    tie = ScoredPair("tied", (), chosen=0.0, rejected=0.0, is_tie=True)

    metrics = assess(recipe, table, [right, right, wrong, wrong, wrong, tie], SCORE)
    assert metrics["held_out/accuracy"] == 0.4
    assert metrics["held_out/accuracy_low"] < 0.4 < metrics["held_out/accuracy_high"]
    assert metrics["held_out/num_pairs"] == 6
    by = {name.removeprefix("held_out/accuracy/"): value for name, value in metrics.items() if "accuracy/" in name}
    assert by == {"task:video": 1.0, "task:sum": 0.0, "modality:video": 1.0, "modality:text": 0.0}, "a tie has none"
    found = json.loads((tmp_path / "reward_model.json").read_text())
    assert (found["raters"], found["score"]) == (["anna"], SCORE)
    assert found["tasks"]["tied"]["accuracy"] is None
    assert found["warning"].startswith("only 6 pairs are held out")
    assert f"warning: {found['warning']}" in capsys.readouterr().out

    assess(recipe, table, [right] * FEW_HELD_OUT, SCORE)
    assert json.loads((tmp_path / "reward_model.json").read_text())["warning"] is None
    assert "warning" not in capsys.readouterr().out
