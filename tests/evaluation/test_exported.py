"""What an export loses, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.exported import NAME, loss_of_quality, read, told
from pipeline.evaluation.results import Mode, ModelName, SampleResult
from pipeline.records import FinishReason


def _answer(prompt_id: str, text: str, *, contains: float, exact_match: float) -> SampleResult:
    return SampleResult(
        prompt_id=prompt_id,
        task="digit",
        modalities=(),
        model=ModelName.RLHF,
        mode=Mode.GREEDY,
        blanked=(),
        answer="7",
        text=text,
        finish_reason=FinishReason.STOP,
        num_tokens=2,
        token_texts=(),
        token_kl=(),
        rewards={"contains": contains, "exact_match": exact_match},
        learned_reward=None,
    )


BEFORE = [_answer(str(n), "7", contains=1.0, exact_match=1.0) for n in range(4)]
AFTER = [
    BEFORE[0],
    replace(BEFORE[1], text="8", rewards={"contains": 0.0, "exact_match": 0.0}),
    replace(BEFORE[2], text="7 maybe", rewards={"contains": 1.0, "exact_match": 0.0}),
    BEFORE[3],
]


def test_the_loss_is_what_the_same_prompts_lost() -> None:
    unknown = replace(BEFORE[0], prompt_id="4", answer=None, rewards={})
    found = loss_of_quality([*BEFORE, unknown], [*AFTER, unknown])
    assert (found["num_prompts"], found["same"]) == (5, 0.6)
    assert (found["contains"]["before"], found["contains"]["after"]) == (1.0, 0.75)
    assert found["exact_match"]["difference"]["value"] == -0.5
    assert found["exact_match"]["difference"]["low"] < -0.5 < found["exact_match"]["difference"]["high"] < 1
    assert loss_of_quality([], []) == {"num_prompts": 0}
    with pytest.raises(ValueError, match="other prompts"):
        loss_of_quality(BEFORE, AFTER[::-1])


def test_the_report_says_it_in_a_line_and_nothing_where_nothing_was_exported(tmp_path: Path) -> None:
    assert told(read(tmp_path)) == []
    sizes = {"num_int8": 30, "num_weights": 40, "source_bytes": 4 * 2**20, "target_bytes": 2**20}
    found = {"checkpoint": "rlhf", "split": "test", **sizes, "quality": loss_of_quality(BEFORE, AFTER)}
    (tmp_path / NAME).write_text(json.dumps(found), encoding="utf-8")
    (line,) = told(read(tmp_path))
    assert line.startswith("Exported in int8: `rlhf`, 75% of its weights, 4.00 MiB -> 1.00 MiB. Greedy answers to 4 ")
    assert "exact match 1.000 -> 0.500 (-0.500, 95 % interval" in line and "50.0% of the answers are the same" in line
