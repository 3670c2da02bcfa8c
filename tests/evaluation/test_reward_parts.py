"""Parts of the reward, as the report and the summary tell of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.report import DASH, write_report
from pipeline.evaluation.reward_parts import parts_of, reward_parts
from pipeline.evaluation.summary import summarise
from pipeline.evaluation.summary_json import summary_json


def test_parts_of_the_reward_are_told_by_their_means_their_shares_and_what_failed() -> None:
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "reward/a": float(step),
            "reward_std/a": 2.0,
            "reward_weight/a": 1.0 - step / 100,
            "reward_share/a": 0.25 + 0.5 * (step % 2),
            "counts/reward_failed:a": 2.0,
            "counts/reward_failed:a:timeout": 1.0,
            "counts/reward_failed:a:crashed": 0.0,
            "counts/reward_failed:ab": 9.0,
            "reward_weight/b": 1.0,
            "reward_std/shown": math.nan,
        }
        for step in range(20)
    ]
    a, b, shown = sorted(reward_parts(rows), key=lambda part: part.name)
    # The first two steps of twenty, and the last two.
    assert (a.first, a.last, a.std, a.share) == (0.5, 18.5, 2.0, 0.5)
    assert a.failures == {"rule": 40, "timeout": 20}
    assert a.weight == pytest.approx(0.81)
    assert b.weight == 1.0 and math.isnan(b.first) and math.isnan(b.share) and b.failures == {}
    assert math.isnan(shown.weight) and math.isnan(shown.std)
    assert reward_parts([]) == [] == reward_parts([{"step": 0, "reward/mean": 1.0}])


JUDGED: list[dict[str, Any]] = [
    {
        "step": step,
        **{"reward/mine": 0.25 + step / 2, "reward_std/mine": 0.125, "reward_weight/mine": 2.0},
        **{"reward_share/mine": 0.75, "counts/reward_failed:mine:<timeout>": 1001.0},
        **{"counts/reward_failed:mine:not_finite": 3.0, "reward_weight/length": 1.0},
    }
    for step in range(2)
]


def test_the_report_shows_each_part_in_each_stage_that_judges_and_its_failures_by_reason(
    tmp_path: Path,
) -> None:
    curves = {"rlhf": JUDGED, "distill_samples": JUDGED[:1], "sft": [{"step": 0, "loss": 1.0}]}
    path = write_report(
        tmp_path,
        title="parts",
        evaluation=summarise([]),
        samples=[],
        curves=curves,
        config_text="",
        counts={},
        stage_s={},
    )
    page = path.read_text(encoding="utf-8")
    tables = dict(re.findall(r"<h3>([^<]*)</h3>\s*<table class=\"narrow reward-parts\">(.*?)</table>", page, re.DOTALL))
    assert tables.keys() == {"RLHF", "Distillation: what was sampled"}
    heads = re.findall(r"<th scope=\"col\">(.*?)</th>", tables["RLHF"])
    rows = [re.findall(r"<t[hd](?: scope=\"row\")?>(.*?)</t[hd]>", row) for row in tables["RLHF"].split("<tr>")[2:]]
    assert [dict(zip(heads, row, strict=True)) for row in rows] == [
        {
            "Part of the reward": "mine",
            "At first": "0.250",
            "At last": "0.750",
            "Spread": "0.125",
            "Weight at last": "2.000",
            "Share of the signal": "75.0 %",
            "Failed": "2,002 &lt;timeout&gt;<br>6 not_finite",
        },
        dict(zip(heads, ["length", DASH, DASH, DASH, "1.000", DASH, "0"], strict=True)),
    ]
    assert "1,001 &lt;timeout&gt;<br>3 not_finite" in tables["Distillation: what was sampled"]


def test_the_summary_has_the_parts_by_stage_with_null_for_what_no_step_tells() -> None:
    parts = parts_of({"rlhf": JUDGED, "sft": [{"step": 0, "loss": 1.0}]})
    summary = summary_json(summarise([]), stage_s={}, total_s=0.0, seed=0, counts={}, parts=parts)
    nothing = dict.fromkeys(("first", "last", "std", "share"))
    assert json.loads(json.dumps(summary["reward_parts"], allow_nan=False)) == {
        "rlhf": {
            "mine": {
                **{"first": 0.25, "last": 0.75, "std": 0.125, "weight": 2.0, "share": 0.75},
                "failures": {"<timeout>": 2002, "not_finite": 6},
            },
            "length": {**nothing, "weight": 1.0, "failures": {}},
        }
    }
