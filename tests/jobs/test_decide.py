"""The stage that decides: what it writes, that it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import decide
from jobs.command import recipe_of
from pipeline.config import ConfigError, load_recipe

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "recommendation.yaml"
SMALL = (
    "run.sinks=[jsonl]",
    "decide.world.train_wishes=48",
    "decide.world.held_out_wishes=24",
    "decide.world.logged=96",
    "decide.offline.num_steps=3",
    "decide.num_decisions=64",
    "decide.report_every=32",
    "decide.estimate=false",
)


@pytest.mark.usefixtures("local_ray")
def test_the_recipe_compares_algorithms_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    overrides = [
        *SMALL,
        f"run.directory={tmp_path}",
        "decide.algorithm=[random, supervised, linucb, reinforce, marwil]",
    ]
    summary = decide.run(load_recipe(RECIPE, overrides))
    names = {"random", "supervised", "linucb", "reinforce", "marwil"}
    for figure in ("regret", "final_regret", "validation_regret", "last_regret"):
        assert summary[figure].keys() == names and all(0 <= each <= 1 for each in summary[figure].values())
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert set(summary["contributions"]) == {"text", "audio"}
    assert {each["group"] for each in summary["fairness"]["rows"]} <= {"colour first", "shape first"}
    assert 0 < summary["estimates"]["marwil"]["true_value"] < 1
    page = (tmp_path / "report.html").read_text()
    for words in ("Regret a decision", "Shapley", "No decision depends on group", "Before anything goes live"):
        assert words in page
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "decide_reinforce.jsonl").read_text().splitlines()]
    assert lines[-1]["counts/decisions"] >= 64 and "learners/default_policy/entropy" in lines[-1]
    # What is done stays as it is; what has more to do does the rest.
    resumed = [*overrides, "run.resume=auto"]
    again = decide.run(load_recipe(RECIPE, resumed))
    assert again["regret"] == summary["regret"]
    more = decide.run(load_recipe(RECIPE, [*resumed, "decide.num_decisions=96", "decide.algorithm=reinforce"]))
    assert more["num_decisions"] == 96 and more["regret"].keys() == {"reinforce"}
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "decide_reinforce.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


@pytest.mark.usefixtures("local_ray")
def test_rows_of_the_table_are_decided_with_their_answers_as_actions(demo_data: Path, tmp_path: Path) -> None:
    overrides = [
        f"run.directory={tmp_path}",
        "run.sinks=[jsonl]",
        f"data.path={demo_data}",
        "decide.source=table",
        "decide.reward=truth",
        "decide.task=digit",
        f"decide.actions={[str(digit) for digit in range(10)]}",
        "decide.fusion.modalities=[image]",
        "decide.fusion.encoders={image: {width: 8, num_heads: 2, num_layers: 1}}",
        "decide.algorithm=[random, linucb]",
        "decide.num_decisions=12",
        "decide.report_every=6",
    ]
    summary = decide.run(recipe_of(None, overrides))
    assert summary["regret"].keys() == {"random", "linucb"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decide.algorithm=[]", r"algorithm=\[\].*name one"),
        ("decide.algorithm=td3", "dqn"),
        ("decide.reward=live", r"reward=live with live=None: name a function"),
        ("decide.reward=ratings", "reward=ratings with source=world"),
        ("decide.hidden_share=0.5", "hidden_share=0.5 with question_cost=null"),
        ("decide.session_length=2", "algorithm=linucb with session_length"),
        ("decide.no_such=1", "no_such"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(RECIPE, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decide.protected=[age]", "protected=.*there is no column 'age'"),
        ("decide.world.num_items=40", "num_items=40"),
    ],
)
@pytest.mark.usefixtures("local_ray")
def test_what_a_run_finds_wrong_is_said(override: str, message: str, tmp_path: Path) -> None:
    overrides: list[Any] = [*SMALL, f"run.directory={tmp_path}", "decide.algorithm=supervised", override]
    with pytest.raises(ConfigError, match=message):
        decide.run(load_recipe(RECIPE, overrides))
