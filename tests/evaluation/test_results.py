"""Records of an evaluation: what is written comes back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.results import Mode, ModelName, SampleResult, read_samples, write_samples

BASE = SampleResult(
    "p", "digit", ("image",), ModelName.SFT, Mode.SAMPLED, (), "7", "7", "stop", 2, ("7", "."), (), {}, None
)


def test_samples_come_back_from_jsonl_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [
        BASE,
        replace(BASE, token_kl=(0.5, -0.25), swapped="q", demonstration="7 maybe"),
        replace(BASE, text='zwölf\n\u2028"', rewards={"wer": math.inf}),
    ]
    write_samples(path, rows)
    write_samples(path, rows)
    back = read_samples(path)
    assert back[:-1] == rows[:-1]
    assert back[-1].text == rows[-1].text and math.isnan(back[-1].rewards["wer"])
    assert isinstance(back[0].model, ModelName) and isinstance(back[0].mode, Mode)
    path.write_text('{"prompt_id": "x"}\n')
    with pytest.raises(ValueError, match="not a sample"):
        read_samples(path)


def test_kl_and_tokens_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 KL values for 2 token texts"):
        replace(BASE, token_kl=(0.0, 0.0, 0.0))
