"""The checkers with settings, asked as a recipe asks for them: in the process of a function of one's own."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ConfigError, FunctionReward, load_recipe
from pipeline.grading.child import Code
from pipeline.grading.function import Function, FunctionFailed
from pipeline.grading.records import Question, RewardCompletion, RewardPrompt
from pipeline.records import FinishReason


def _question(answer: str | None, *texts: str) -> Question:
    made = (RewardCompletion(text, np.array([1]), FinishReason.STOP) for text in texts)
    return Question(RewardPrompt("a", "task", (), answer=answer), tuple(made))


def _graded(name: str, questions: Sequence[Question], **options: bool | int | float | str) -> list[float]:
    settings = FunctionReward(path=f"pipeline.rewards.{name}:{name}", options=options, timeout_s=120)
    function = Function(Code(settings.path, None, (), options=settings.options), settings)
    try:
        function.load()
        found = function.grade(questions)
    finally:
        function.close()
    assert not any(found.failures), found.details
    return found.values.tolist()


def test_python_tests_run_there_and_do_not_apply_to_prompts_without_tests() -> None:
    tests = json.dumps([{"input": "2\n", "output": "4"}, {"input": "3\n", "output": "6"}])
    asked = [_question(tests, "print(2 * int(input()))", "print(4)"), _question("a cat", "print(4)")]
    right, half, none = _graded("python_tests", asked, deadline_s=5.0)
    assert (right, half) == (1.0, 0.5) and np.isnan(none)


def test_a_list_of_terms_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("bomb\n", encoding="utf-8")
    assert _graded("safety", [_question(None, "a bomb", "a cat")], terms=str(tmp_path / "terms.txt")) == [-1.0, 0.0]


def test_an_option_that_a_function_does_not_take_is_told_when_it_is_loaded() -> None:
    function = FunctionReward(path="pipeline.rewards.safety:safety", options={"words": "x"})
    asked = Function(Code(function.path, None, (), options=function.options), function)
    with pytest.raises(FunctionFailed, match="unexpected keyword argument 'words'"):
        asked.load()
    asked.close()


def test_a_recipe_names_them_by_their_place() -> None:
    place = "pipeline.rewards.safety:safety"
    recipe = load_recipe(None, [f"rlhf.rewards={{{place}: {{weight: 2, function: {{options: {{terms: t.txt}}}}}}}}"])
    part = recipe.rlhf.rewards["safety"].function
    assert part is not None and part.options == {"terms": "t.txt"} and recipe.rlhf.reward_weights == {"safety": 2.0}
    with pytest.raises(ConfigError, match="options"):
        load_recipe(None, [f"rlhf.rewards={{{place}: {{weight: 2, function: {{options: {{terms: [1]}}}}}}}}"])
