"""Tables of decisions: their files, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ConfigError
from pipeline.config.fusion import FusionSettings, Modality
from pipeline.decisions.table import Decision, DecisionTable, Logged, table_of, true_rewards
from pipeline.models.fusion.samples import Preprocessor, Sample
from pipeline.records import Message, Prompt
from tests.decisions.tables import small_table


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    logged = Logged(np.arange(6) % 3, np.full(6, 0.5, np.float32), np.ones(6, np.float32))
    table = replace(small_table(logged=logged), encoder_key="abc")
    table.save(tmp_path / "table.safetensors")
    found = DecisionTable.load(tmp_path / "table.safetensors", encoder_key="abc")
    assert (found.ids, found.groups, found.modalities) == (table.ids, table.groups, table.modalities)
    assert np.array_equal(found.rewards, table.rewards) and np.array_equal(found.hidden, table.hidden)
    assert all(np.array_equal(found.inputs[name], table.inputs[name]) for name in table.inputs)
    assert found.logged is not None and np.array_equal(found.logged.actions, logged.actions)


def test_features_of_other_encoders_are_refused(tmp_path: Path) -> None:
    replace(small_table(), encoder_key="theirs").save(tmp_path / "table.safetensors")
    with pytest.raises(ConfigError, match=r"encoder_key=theirs, but these encoders have ours.*delete the file"):
        DecisionTable.load(tmp_path / "table.safetensors", encoder_key="ours")


def test_some_rows_of_a_table_keep_all_that_is_theirs() -> None:
    table = small_table(logged=Logged(np.arange(6), np.full(6, 0.5, np.float32), np.arange(6, dtype=np.float32)))
    some = table.rows([4, 1])
    assert some.ids == ("row-4", "row-1")
    assert np.array_equal(some.rewards, table.rewards[[4, 1]])
    assert some.logged is not None and some.logged.rewards.tolist() == [4, 1]


def test_decisions_become_arrays_of_what_the_model_takes() -> None:
    settings = FusionSettings(modalities=(Modality.TEXT, Modality.NUMBERS))
    decisions = [
        Decision(Sample("a", text="hi", numbers=(2.0,)), np.array([0.0, 1.0], np.float32), "x", (Modality.NUMBERS,)),
        Decision(Sample("b", numbers=(3.0,)), np.array([1.0, 0.0], np.float32), "y"),
    ]
    table = table_of(decisions, Preprocessor(settings), settings.modalities)
    assert table.ids == ("a", "b") and table.groups == ("x", "y")
    assert table.inputs["present"].tolist() == [[True, True], [False, True]]
    assert table.inputs["numbers"].tolist() == [[2.0], [3.0]]
    assert table.hidden.tolist() == [[False, True], [False, False]]


def test_decisions_with_other_numbers_of_actions_are_refused() -> None:
    settings = FusionSettings(modalities=(Modality.TEXT,))
    decisions = [Decision(Sample(str(num), text="hi"), np.zeros(num, np.float32)) for num in (2, 3)]
    with pytest.raises(ConfigError, match=r"K=\[2, 3\] within one table"):
        table_of(decisions, Preprocessor(settings), settings.modalities)


def test_the_truth_of_a_row_is_its_answer_or_one_as_right() -> None:
    prompt = Prompt("a", "digit", (Message("user", "?"),), (), "7", accepted=("seven",))
    assert true_rewards(prompt, ("6", "7", "seven")).tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match=r"row 'a': answer '7' is none of the 2 actions \(0, 1\).*decide.actions"):
        true_rewards(prompt, ("0", "1"))
