"""The benchmark of fusion, joint embedding and decisions: what it makes of the summaries of its recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import choosing


def _fusion(fused: float) -> dict[str, Any]:
    return {"fusion": {"gated": {"fused": fused, "best_single": 0.5, "difference": fused - 0.5, "interval": [0, 1]}}}


def _decisions(dqn: float) -> dict[str, Any]:
    return {"regret": {"dqn": dqn, "random": 0.5}, "final_regret": {"dqn": dqn / 2}, "ope_coverage": 0.9}


SUMMARIES = {
    "classification": [_fusion(each) for each in (0.7, 0.8, 0.9)],
    "recommendation": [_decisions(each) for each in (0.1, 0.2, 0.3)],
    "retrieval": [
        {"retrieval": {"recall@1": {"value": each, "low": 0.0}, "median_rank": 1}} for each in (0.8, 1.0, 0.9)
    ],
    "few_shot": [{"few_shot": {"zero_shot": each, "1": None}} for each in (0.5, 0.6, 0.7)],
}


def test_the_interval_is_that_of_the_mean_of_the_seeds() -> None:
    found = choosing.over_seeds([1.0, 2.0, None, 3.0])
    assert (found["mean"], found["seeds"]) == (2.0, [1.0, 2.0, 3.0])
    # Student's t at 97.5 % with two degrees of freedom, over the root of three.
    assert found["interval"] == pytest.approx([2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], rel=1e-5)
    assert "interval" not in choosing.over_seeds([1.0])
    assert choosing.over_seeds([None]) == {"mean": None, "seeds": []}


def test_the_last_line_has_the_means_over_the_seeds() -> None:
    result = choosing.result_of(SUMMARIES, 3)
    assert result["fusion"]["gated"]["fused"] == pytest.approx(0.8)
    assert result["regret"] == {"dqn": pytest.approx(0.2), "random": 0.5}
    assert result["retrieval"] == {"recall@1": pytest.approx(0.9), "median_rank": 1}
    assert result["few_shot"] == {"zero_shot": pytest.approx(0.6)}
    assert result["ope_coverage"] == pytest.approx(0.9)
    assert (result["benchmark"], result["seeds"], result["fusion_diagnosis"]) == ("choosing", 3, {})


def test_what_lies_there_is_not_run_again_and_is_shown_with_each_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, summaries in SUMMARIES.items():
        for seed, summary in enumerate(summaries):
            directory = tmp_path / "out" / f"seed-{seed}" / recipe
            directory.mkdir(parents=True)
            (directory / "summary.json").write_text(json.dumps(summary))
    results = tmp_path / "RESULTS.md"
    choosing.main(["--recipes", *SUMMARIES, "--out", str(tmp_path / "out"), "--results", str(results)])
    told = results.read_text()
    assert "| gated | 0.800 [0.552, 1.048] (0.700, 0.800, 0.900) |" in told
    assert "| dqn | 0.200" in told and "| recall@1 | 0.900" in told
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["seeds"] == 3
    assert "Seeing, hearing and choosing" in (tmp_path / "out" / "report.html").read_text()


def test_curves_are_means_of_the_seeds_at_the_steps_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, list[tuple[float, float]]]] = []
    monkeypatch.setattr(choosing, "curves", lambda _, lines, **__: drawn.append(lines))
    runs = [tmp_path / str(seed) for seed in range(2)]
    for run, values in zip(runs, ([0.2, 0.4, 0.6], [0.4, 0.8]), strict=True):
        (run / "metrics").mkdir(parents=True)
        rows = [json.dumps({"step": step, "regret/mean": value, "other": 1.0}) for step, value in enumerate(values)]
        (run / "metrics" / "decide_dqn.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert len(choosing.figures("recommendation", runs)) == 1
    assert drawn == [{"dqn": [(0.0, pytest.approx(0.3)), (1.0, pytest.approx(0.6))]}]
    assert choosing.figures("recommendation", [tmp_path / "nothing"]) == ()
