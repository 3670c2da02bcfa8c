"""What the comparison of preference methods makes of the runs' summaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.preferences import DISTILLED, METHODS, OFFLINE, ONLINE, PEER, measured, ratio, summarised, table
from pipeline.config import load_recipe
from pipeline.evaluation.results import ModelName


def test_skill_is_what_contains_the_answer_and_manner_what_of_that_says_just_it() -> None:
    summary = {"overall": {"sft": {"contains": 0.5, "true_reward": 0.2}, "rlhf": {"contains": 0.0, "true_reward": 0.0}}}
    assert measured(summary, ModelName.SFT) == {"skill": 0.5, "manner": 0.4}
    assert measured(summary, ModelName.RLHF) == {"skill": 0.0, "manner": None}


def test_the_table_has_means_and_the_skill_of_each_seed() -> None:
    seeds = [{"skill": 0.5, "manner": 0.4, "seconds": 10.0}, {"skill": 0.7, "manner": 0.6, "seconds": 20.0}]
    assert table({"dpo": seeds}).splitlines()[-1] == "| dpo | 0.600 (0.500, 0.700) | 0.500 | 15 |"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_recipe(method: str) -> None:
    recipe = load_recipe(Path("jobs/recipes/application.yaml"), {**OFFLINE, **ONLINE, **DISTILLED}[method])
    assert method not in OFFLINE or recipe.preference.loss == method


def test_the_last_line_has_means_over_the_seeds_and_the_ratio_to_trl() -> None:
    sft = [{"skill": 0.5, "manner": None}, {"skill": 0.7, "manner": 0.4}]
    dpo = [{"skill": 0.6, "manner": 0.5, "seconds": 10.0}, {"skill": 0.8, "manner": 0.7, "seconds": 20.0}]
    found = summarised({"dpo": dpo}, sft, 3.5)
    assert json.loads(json.dumps(found)) == {
        "benchmark": "preferences",
        "methods": {"dpo": {"skill": pytest.approx(0.7), "manner": pytest.approx(0.6), "seconds": 15.0}},
        "sft": {"skill": pytest.approx(0.6), "manner": None},
        "dpo_vs_trl": 3.5,
        "seeds": 2,
    }


RESULT = {"benchmark": "dpo_vs_trl", "ratio": {"pairs_per_cpu_s": 9.0, "pairs_per_s": 2.5}}


@pytest.mark.parametrize(
    "text",
    [json.dumps(RESULT, indent=2), json.dumps(RESULT), f"TRL 12 pairs/s\nratio: 2.50\n{json.dumps(RESULT)}\n"],
    ids=["as it is saved", "a line", "what was printed"],
)
def test_the_ratio_to_trl_comes_from_a_file_that_is_named_or_lies_where_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").write_text(text)
    assert ratio(None) is None and ratio(Path("elsewhere")) == 2.5
    PEER.parent.mkdir(parents=True)
    PEER.write_text(text)
    assert ratio(None) == 2.5
