"""What the comparison of teacher and students runs, and what it makes of the summaries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.distilling import ALL, MODELS, found, stages, summarised, table
from pipeline.config import Recipe, load_recipe

CONFIG = Path("jobs/recipes/application.yaml")


def _recipes(tmp_path: Path, *overrides: str) -> list[tuple[str, Recipe]]:
    commands = [command for _, command in stages(CONFIG, overrides, tmp_path, 3)]
    assert all(command[1:3] == ["--config", str(CONFIG)] for command in commands)
    return [(command[0], load_recipe(CONFIG, command[3:])) for command in commands]


def test_both_students_begin_with_the_same_small_checkpoint_and_learn_as_long_on_the_same_prompts(
    tmp_path: Path,
) -> None:
    made = _recipes(tmp_path, "sft.num_steps=7")
    assert [job for job, _ in made] == [
        *("jobs.prepare", "jobs.sft", "jobs.prepare", "jobs.sft", "jobs.distill", "jobs.evaluate", "jobs.evaluate")
    ]
    data, teacher, small, alone, distilled, *evaluations = (recipe for _, recipe in made)
    assert data.data.path is None and {str(each.data_path) for _, each in made} == {str(tmp_path / "teacher" / "data")}
    assert small.model.tiny_hidden < data.model.tiny_hidden and {each.run.seed for _, each in made} == {3}
    assert distilled.distill.student == small.checkpoint("base") == alone.checkpoint("base")
    assert distilled.checkpoint("sft") == teacher.checkpoint("sft") != alone.checkpoint("sft")
    shared = alone.sft.model_dump(exclude={"rows"})
    assert distilled.distill.model_dump(include=set(shared)) == shared and shared["num_steps"] == 7
    assert (distilled.distill.split, distilled.distill.num_prompts) == ("train", ALL)
    assert [each.evaluate.checkpoint for each in evaluations] == ["distilled", "sft"]
    (_, fewer), *_ = _recipes(tmp_path, "sft.rows=40")[4:]
    assert fewer.distill.num_prompts == 40


def test_the_last_line_has_parameters_skill_and_manner_of_each_model(tmp_path: Path) -> None:
    for run, stage, size, name, contains in (
        ("teacher", "sft", 6, "sft", 0.75),
        ("teacher", "distilled", 2, "rlhf", 0.5),
        ("student", "sft", 2, "sft", 0.25),
    ):
        checkpoint = tmp_path / run / "checkpoints" / stage
        checkpoint.mkdir(parents=True)
        save_file({"a": np.zeros((size, 2)), "b": np.zeros(1)}, checkpoint / "model.safetensors")
        path = tmp_path / run / "summary.json"
        summary = json.loads(path.read_text()) if path.is_file() else {"overall": {}}
        summary["overall"][name] = {"contains": contains, "true_reward": contains / 5}
        path.write_text(json.dumps(summary))
    last = json.loads(json.dumps(summarised([found(tmp_path)] * 2)))
    assert last == {
        "benchmark": "distilling",
        "models": {
            model: {"parameters": parameters, "skill": skill, "manner": pytest.approx(0.2)}
            for model, parameters, skill in zip(MODELS, (13, 5, 5), (0.75, 0.5, 0.25), strict=True)
        },
        "seeds": 2,
    }
    assert table(last).splitlines()[3] == "| student by distillation | 5 | 0.500 | 0.200 |"
