"""What a reward model's training says of the pairs that it held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.loop.brought import brought_opinions
from jobs.reward_model import FEW_HELD_OUT, assess
from pipeline.config import load_recipe
from pipeline.data.preferences import PREFERENCES, pair_row, pair_schema
from pipeline.data.table import PreferenceTable, Quarantine, TooManyBadRows, write_preferences, write_prompts
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


def test_given_conversations_are_compared_whole_and_read_back_from_the_table(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    then = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"}]
    shared = {"id": "row", "task": "t", "dataset": "set", "prompt": [{"role": "user", "content": "Q"}], "margin": None}
    row = pair_row({**shared, "answer": "7", "rejected": "8", "chosen_then": then, "rejected_then": None}, frozenset())
    path = tmp_path / "data" / PREFERENCES / "train.parquet"
    write_prompts(path, [row], schema=pair_schema(frozenset(), has_margin=False))
    (found,) = brought_opinions(load_recipe(None, [f"run.directory={tmp_path}"]), tiny_checkpoint)
    assert isinstance(found, Preference)
    assert (found.chosen, found.rejected) == ("7\n\nuser: Sure?\n\nassistant: yes", "8")
    ((start, end),) = found.chosen_given
    assert 0 < start < end < len(found.chosen_ids) and found.rejected_given == ()
    write_preferences(tmp_path / "preferences.parquet", [found])
    assert list(PreferenceTable(tmp_path / "preferences.parquet").read([0])) == [found]


def test_given_comparisons_with_tokens_of_the_model_s_own_are_refused_and_counted(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    answers = [("7", "8"), ("7<|im_end|>", "8"), ("7", "8<|AUDIO|>"), ("6", "5")]
    shared = {"task": "t", "dataset": "set", "prompt": [{"role": "user", "content": "Q"}], "margin": None}
    rows = [
        pair_row({**shared, "id": f"row-{n}", "answer": chosen, "rejected": rejected}, frozenset())
        for n, (chosen, rejected) in enumerate(answers)
    ]
    schema = pair_schema(frozenset(), has_margin=False)
    write_prompts(tmp_path / "data" / PREFERENCES / "train.parquet", rows, schema=schema)
    recipe = load_recipe(None, [f"run.directory={tmp_path}", "data.max_bad_fraction=0.5"])
    found = list(brought_opinions(recipe, tiny_checkpoint))
    assert [(item.prompt_id, item.chosen, item.rejected) for item in found if isinstance(item, Preference)] == [
        ("row-0", "7", "8"),
        ("row-3", "6", "5"),
    ]
    refused = Quarantine.read(tmp_path / "quarantine" / "preferences_train.parquet")
    assert refused.counts() == {"special_token": 1, "placeholder_mismatch": 1}
    strict = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_bad_fraction": 0.4})})
    with pytest.raises(TooManyBadRows, match="2 of 4 rows were refused"):
        list(brought_opinions(strict, tiny_checkpoint))
