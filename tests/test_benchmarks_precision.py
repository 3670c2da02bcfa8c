"""The precision benchmark on few rows: equal copies in float32, and within the parity gate's default in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from actors.loop.parity import TOLERANCES
from benchmarks.precision import Apart, main, markdown
from pipeline.config import Dtype


def test_copies_agree_within_the_default_tolerance_of_each_type(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "RESULTS.md"
    main(["--checkpoint", str(tiny_checkpoint), "--rows", "1", "--group-size", "2", "--results", str(results)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["benchmark"] == "precision" and found["row"].keys() == set(Dtype)
    assert found["row"]["float32"] < TOLERANCES[Dtype.FLOAT32] < found["row"]["bfloat16"] < TOLERANCES[Dtype.BFLOAT16]
    assert "6 prompts of six tasks, 2 completions each" in results.read_text()


def test_a_row_counts_by_its_mean_and_a_token_by_itself() -> None:
    one = [np.array([-1.0, -2.0], np.float32), np.array([-3.0], np.float32)]
    other = [np.array([-1.0, -1.0], np.float32), np.array([-2.75], np.float32)]
    apart = Apart.of(one, other)
    assert (apart.mean, apart.row, apart.largest) == (pytest.approx(1.25 / 3), 0.5, 1.0)
    assert markdown({Dtype.BFLOAT16: {"pair": apart}}).splitlines()[-1] == (
        "| bfloat16 | pair | 4.2e-01 | 5.0e-01 | 1.0e+00 |"
    )
