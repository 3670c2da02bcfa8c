"""Rewards from outside in the loop itself: a function of a user's own, with every modality in every step."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from jobs import rlhf
from pipeline.config import ConfigError
from pipeline.grading.records import TooManyFailures
from tests.grading.servers import Answer, served
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import MakeRecipe, curve

pytestmark = pytest.mark.usefixtures("local_ray")

NO_KL = ("rlhf.algorithm={advantage: rloo, kl: {weight: 0}}", "rlhf.parity.num_rows=0", "rlhf.num_steps=2")


def _file(directory: Path, text: str) -> Path:
    path = directory / "mine.py"
    path.write_text(dedent(text))
    return path


def test_a_function_in_a_file_rewards_every_step_with_what_the_table_says_of_its_rows(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("SCALE = 0.5\n")
    path = _file(
        tmp_path,
        """
        from beside import SCALE
        from pipeline.records import Audio, Image, Video

        def brevity(prompts, completions):
            for prompt in prompts:
                assert prompt.messages[-1].role == "user" and prompt.answer
            print("kinds:", *sorted({type(each).__name__ for prompt in prompts for each in prompt.media}))
            return [{"short": -SCALE * len(each.token_ids), "seen": float(len(prompt.media))}
                    for prompt, each in zip(prompts, completions)]
        """,
    )
    settings = "{weight: 2.0, function: {media: decoded, parts: {short: 1.0, seen: 0.0}}}"
    recipe = make_recipe(*NO_KL, f"rlhf.rewards={{{path}:brevity: {settings}, exact_match: 1.0}}")
    rlhf.run(recipe, crew=workers.crew(recipe))
    rows = curve(recipe, whole=True)
    for row in rows:
        # Every completion of an untrained model is as long as it may be.
        assert row["reward/brevity"] == row["reward/brevity.short"] >= -3.0
        assert row["reward/brevity.seen"] > 0
        assert row["reward/mean"] == pytest.approx(2 * row["reward/brevity"] + row["reward/exact_match"])
        assert row["counts/reward_calls:brevity"] == 1 and row["time/grader_brevity_s"] > 0
        assert not any("failed" in name for name in row)
    assert "[brevity] kinds: Audio Image Video" in capfd.readouterr().out


def test_a_server_and_a_judge_reward_every_step_and_are_sent_every_medium(
    workers: ReadyWorkers, make_recipe: MakeRecipe
) -> None:
    def answer(method: str, path: str, body: Any) -> Answer:
        if path == "/lengths":
            return Answer({"rewards": [-float(len(each["token_ids"])) for each in body["completions"]]})
        usage = {"prompt_tokens": 10, "completion_tokens": 2}
        return Answer({"choices": [{"message": {"role": "assistant", "content": "Score: 4"}}], "usage": usage})

    with served(answer) as told:
        length = f"{{weight: 2.0, server: {{url: '{told.address}/lengths', media: inline}}}}"
        judge = f"{{url: '{told.address}/v1', model: wise, rubric: Be fair., agreement_pairs: 0}}"
        judged = f"{{weight: 1.0, judge: {judge}}}"
        recipe = make_recipe(*NO_KL, f"rlhf.rewards={{brief: {length}, judged: {judged}}}")
        rlhf.run(recipe, crew=workers.crew(recipe))
    for row in curve(recipe, whole=True):
        assert row["reward/judged"] == 0.75 and -6 <= row["reward/brief"] < 0
        assert row["reward/mean"] == pytest.approx(2 * row["reward/brief"] + 0.75)
        assert row["counts/reward_calls:brief"] == 1 and row["counts/reward_calls:judged"] == 12
        assert row["counts/reward_prompt_tokens:judged"] == 120
        assert not any("failed" in name for name in row)
    sent = [body for _, path, body, _ in told.requests if path == "/lengths"]
    kinds = {medium["kind"] for body in sent for prompt in body["prompts"] for medium in prompt["media"]}
    shown = [body["messages"][-1]["content"] for _, path, body, _ in told.requests if path != "/lengths"]
    assert kinds == {"image", "audio", "video"}
    types = {part["type"] for content in shown if isinstance(content, list) for part in content}
    assert types == {"text", "image_url", "input_audio", "video_url"}


def test_a_function_that_fails_is_counted_and_its_completions_teach_nothing_or_the_run_stops(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, "def odd(prompts, completions):\n    return [1 / 0 for _ in prompts]\n")

    def odd(fraction: float) -> str:
        settings = f"{{weight: 1.0, function: {{retries: 0, max_failed_fraction: {fraction}}}}}"
        return f"rlhf.rewards={{{path}:odd: {settings}}}"

    goes_on = make_recipe(*NO_KL, odd(1))
    rlhf.run(goes_on, crew=workers.crew(goes_on))
    for row in curve(goes_on):
        assert row["counts/reward_failed:odd:exception"] == row["counts/completions_without_reward"] == 12
        assert "reward/odd" not in row and "reward/mean" not in row
        assert row["policy/grad_norm"] == 0
    out = capfd.readouterr().out
    assert out.count("ZeroDivisionError: division by zero") == 1 and "return [1 / 0 for _ in prompts]" in out
    stops = make_recipe(*NO_KL, odd(0.5))
    with pytest.raises(TooManyFailures, match=r"odd failed for 12 of the 12 completions .*(.|\n)*ZeroDivisionError"):
        rlhf.run(stops, crew=workers.crew(stops))


def test_what_cannot_be_imported_ends_the_run_before_its_first_step(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = _file(tmp_path, "import nothing_of_this_name\n")
    recipe = make_recipe(*NO_KL, f"rlhf.rewards={{{path}:mine: 1.0}}")
    with pytest.raises(ConfigError, match=r"rlhf\.rewards\.mine: (.|\n)*No module named 'nothing_of_this_name'"):
        rlhf.run(recipe, crew=workers.crew(recipe))
    missing = make_recipe(*NO_KL, f"rlhf.rewards={{{tmp_path}/none.py:mine: 1.0}}")
    with pytest.raises(ConfigError, match=r"rlhf\.rewards\.mine\.function\.path=.*No such file"):
        rlhf.run(missing, crew=workers.crew(missing))
