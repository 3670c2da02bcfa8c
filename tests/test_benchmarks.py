"""The seeds benchmark without its runs: from summaries to the table, the report's rows and RESULTS.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import seeds


def _part(sft: float, rlhf: float, **more: Any) -> dict[str, Any]:
    def model(reward: float, kl: float) -> dict[str, Any]:
        return {"true_reward": reward, "greedy_true_reward": reward + 0.1, "learned_reward": reward - 0.5, "kl": kl}

    def gain(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1875, "high": value + 0.1875}

    return {
        "sft": model(sft, 0.0),
        "rlhf": model(rlhf, 0.02),
        "gain": gain(rlhf - sft),
        "contains_gain": gain(rlhf - sft - 0.25),
        "skill_gain": 0.0625,
        "skill_gain_interval": [-0.125, 0.25],
        "any_of_k": {"k": 2, "sft": sft + 0.05, "rlhf": rlhf + 0.05, "gain": gain(rlhf - sft)},
        **more,
    }


def _summary(shift: float = 0.0, tasks: tuple[str, ...] = ("digit", "text")) -> dict[str, Any]:
    gaps = {"digit": 0.75, "text": None}
    swapped = {"digit": 0.625, "text": None}
    return {
        "total_s": 240.0 + shift,
        "overall": _part(0.5, 0.625 + shift),
        "tasks": {task: _part(0.25, 0.5 + shift, blind_gap=gaps[task], swapped_gap=swapped[task]) for task in tasks},
    }


SUMMARIES: Mapping[int, Mapping[str, Any]] = {0: _summary(), 3: _summary(0.125)}


def test_measures_of_all_seeds_stand_side_by_side_with_overall_first() -> None:
    table = seeds.collect(SUMMARIES)
    assert list(table) == ["overall", "digit", "text"]
    assert table["overall"]["SFT"] == [0.5, 0.5]
    assert table["overall"]["RLHF"] == [0.625, 0.75]
    assert table["overall"]["gain"] == [0.125, 0.25]
    assert table["overall"]["contains gain"] == [-0.125, 0.0]
    assert table["digit"]["RLHF any of k"] == [0.55, 0.675]
    assert table["digit"]["swapped gap"] == [0.625, 0.625]
    assert seeds.collect_bounds(SUMMARIES)["overall"]["gain"] == [(-0.0625, 0.3125), (0.0625, 0.4375)]
    assert table["digit"]["RLHF greedy"] == [0.6, 0.725]
    assert table["digit"]["KL"] == [0.02, 0.02]
    assert table["digit"]["blind gap"] == [0.75, 0.75]
    assert table["text"]["blind gap"] == table["overall"]["blind gap"] == [None, None]


def test_the_demonstrator_stands_beside_the_models_where_it_was_measured() -> None:
    summary = _summary()
    counted = {"true_reward": 0.25, "contains": 0.5, "graded": 0.75, "num_prompts": 4}
    silent = {"true_reward": None, "contains": None, "graded": None, "num_prompts": 0}
    summary["tasks"]["digit"] |= {"demonstrator": counted}
    summary["tasks"]["text"] |= {"demonstrator": silent}
    summary["tasks"]["digit"]["rlhf"]["distance"] = 0.875
    table = seeds.collect({0: summary})
    names = ("demonstrator", "demonstrator contains", "demonstrator graded", "SFT graded", "RLHF graded")
    assert [table["digit"][name] for name in names] == [[0.25], [0.5], [0.75], [None], [0.875]]
    assert {value for part in ("text", "overall") for name in names for value in table[part][name]} == {None}


def test_a_model_that_was_not_evaluated_leaves_its_cells_empty() -> None:
    part = {"sft": {"true_reward": None}, "rlhf": {"true_reward": 0.5}, "gain": None}
    table = seeds.collect({0: {"overall": part, "tasks": {}}})
    assert table["overall"]["SFT"] == table["overall"]["gain"] == [None]
    assert table["overall"]["RLHF"] == [0.5]


def test_a_mean_is_over_all_seeds_or_none() -> None:
    assert seeds.mean([0.25, 0.75]) == 0.5
    assert seeds.mean([0.25, None]) is None
    assert seeds.mean([]) is None


def test_seeds_of_different_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds \[1\] have other tasks than \['digit', 'text'\]"):
        seeds.collect({0: _summary(), 1: _summary(tasks=("digit",))})


def test_seeds_may_meet_their_tasks_in_another_order() -> None:
    table = seeds.collect({0: _summary(), 1: _summary(tasks=("text", "digit"))})
    assert list(table) == [seeds.OVERALL, "digit", "text"]


def test_the_report_gets_a_row_a_seed_with_equal_columns() -> None:
    rows = seeds.report_rows(seeds.collect(SUMMARIES), [0, 3])
    assert [row["seed"] for row in rows] == [0, 3]
    assert list(rows[0]) == list(rows[1])
    assert rows[1]["gain"] == 0.25 and rows[1]["text: gain"] == 0.375
    assert "blind gap" not in rows[0]


def test_the_table_in_markdown_has_the_mean_before_each_seed_and_intervals_of_the_gains() -> None:
    lines = seeds.markdown(seeds.collect(SUMMARIES), [0, 3], seeds.collect_bounds(SUMMARIES)).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| **overall** | **mean** | **0.500** | **0.688** | **0.188** |")
    assert lines[4].startswith("| overall | 3 | 0.500 | 0.750 | 0.250 [0.062, 0.438] |")
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["**mean**", "0", "3"] * 3
    assert lines[-1].endswith("| 0.020 |  |  |  |  |  |  |  |")
    assert "| 0.062 [-0.125, 0.250] |  |" in lines[4], "skill, and manner that an old summary does not have"


def test_the_verdict_says_where_intervals_lie_above_zero_and_in_which_tasks_contains_rises() -> None:
    summaries = {0: _summary(), 3: _summary(0.125)}
    for summary, rise in ((summaries[0], -0.1), (summaries[3], 0.2)):
        summary["tasks"]["text"]["contains_gain"]["value"] = rise
    summaries[0]["overall"]["contains_gain"] = {"value": 0.1, "low": 0.001, "high": 0.2}
    summaries[3]["overall"]["contains_gain"] = {"value": 0.1, "low": 0.0, "high": 0.2}
    found = seeds.verdict(seeds.collect(summaries), seeds.collect_bounds(summaries), [0, 3])
    assert found.above_zero == {"gain": {0: False, 3: True}, "contains gain": {0: True, 3: False}}
    assert (found.risen, found.num_tasks) == (("digit", "text"), 2)
    assert str(found) == (
        "Paired 95 % interval above zero overall: gain: seed 0 no, seed 3 yes; contains gain: seed 0 yes, seed 3 no. "
        "On average over the seeds, contains rises in 2 of 2 tasks (digit, text)."
    )
    summaries[3]["tasks"]["text"]["contains_gain"]["value"] = 0.1
    summaries[0]["overall"]["contains_gain"] = None
    found = seeds.verdict(seeds.collect(summaries), seeds.collect_bounds(summaries), [0, 3])
    assert found.risen == ("digit",) and found.above_zero["contains gain"][0] is None


def test_finished_seeds_are_reused_and_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, summary in SUMMARIES.items():
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "summary.json").write_text(json.dumps(summary))
    shown: list[Any] = []
    monkeypatch.setattr(seeds, "read_samples", lambda path: [path])
    monkeypatch.setattr(seeds, "publish", lambda recipe, samples, seeds_table: shown.append((recipe, seeds_table)))
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    arguments = ["--seeds", "0", "3", "--out", str(tmp_path), "--results", str(results), "--reuse"]
    seeds.main([*arguments, "--", "rlhf.num_steps=2"])

    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "seeds.json").read_text())
    assert last["seeds"] == [0, 3] and last["total_s"] == [240.0, 240.125]
    assert last["mean"]["overall"]["gain"] == 0.1875 and last["mean"]["text"]["blind gap"] is None
    assert last["verdict"]["above_zero"]["gain"] == {"0": False, "3": True} and last["verdict"]["num_tasks"] == 2
    assert last["intervals"]["overall"]["gain"][1] == [0.0625, 0.4375]
    text = results.read_text()
    assert "- Paired 95 % interval above zero overall: gain: seed 0 no, seed 3 yes" in text
    assert (
        text.startswith("# Results\n\n## 20")
        and " cores, " in text
        and "python -m benchmarks.seeds --seeds 0 3" in text
    )
    ((recipe, rows),) = shown
    assert recipe.run.seed == 0 and recipe.rlhf.num_steps == 2
    assert recipe.run.directory == tmp_path / "seed-0" and len(rows) == 2


def test_a_run_that_fails_names_its_log(tmp_path: Path) -> None:
    recipe = seeds.load_recipe(None, ["run.seed=4"])
    log = tmp_path / "logs" / "seed-4.log"
    with pytest.raises(SystemExit, match=r"seed 4 failed with status 3; its output: .*seed-4\.log"):
        seeds.run_seed(recipe, [sys.executable, "-c", "print('trying'); raise SystemExit(3)"], log)
    assert log.read_text() == "trying\n"
