"""Rewards from outside as the driver asks for them: who is asked of what, what came of it, what is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.fleet.answer import Answer
from actors.fleet.failures import KillsWorkers
from actors.loop import agreement
from actors.loop.graders import Graders, code_of
from actors.loop.judge import judge
from actors.loop.sampler import Sampled
from actors.roles.grader import Asked, OutsidePart
from pipeline.config import ConfigError, FunctionReward, Recipe, load_recipe
from pipeline.data.table import write_preferences
from pipeline.grading import Failure, Graded, graded
from pipeline.grading.records import TooManyFailures, plain
from pipeline.records import Completion, FinishReason, Preference, RaterKind, Rollout
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref

SERVER = "server: {url: 'http://x/reward', batch_size: 4, max_failed_fraction: 1}"


class Workers(AtOnce):
    """Grader workers that give each completion what `reward` says of its text."""

    def __init__(self, reward: Any):
        self._reward = reward
        self.asked: list[tuple[str, list[str], str]] = []

    def submit(self, method: Any, batches: Sequence[Sequence[Asked]], part: OutsidePart, split: str) -> Answer[Any]:
        found: list[Graded] = []
        for batch in batches:
            texts = [each.text for asked in batch for each in asked.completions]
            self.asked.append((part.name, [asked.info.id for asked in batch], split))
            weights = getattr(part.settings, "parts", {})
            found.append(graded(plain([self._reward(text) for text in texts]), len(texts), weights).counted(calls=1))
        return self.answer(found)


def _rollout(name: str, *texts: str) -> Rollout:
    completions = (
        Completion(np.arange(len(text)), np.zeros(len(text), np.float32), FinishReason.STOP, 0, text) for text in texts
    )
    return Rollout(name, tuple(completions))


def _recipe(rewards: str, *overrides: str) -> Recipe:
    return load_recipe(None, [f"rlhf.rewards={rewards}", "rlhf.algorithm.advantage=rloo", *overrides])


def _judged(rewards: str, reward: Any, groups: dict[str, tuple[str, ...]], *, greedy: Sequence[Rollout] = ()) -> Any:
    workers = Workers(reward)
    roles = cast(Any, SimpleNamespace(reward=None, graders=Graders(cast(Any, workers))))
    prompts = [prompt_ref(name, task=name.rstrip("123")) for name in groups]
    rollouts = [_rollout(name, *texts) for name, texts in groups.items()]
    return judge(roles, _recipe(rewards), Sampled(prompts, rollouts, [*greedy], {})), workers


def test_groups_of_the_parts_tasks_are_asked_whole_in_batches() -> None:
    groups = {"a1": ("x", "xx"), "b": ("xxx", "x"), "a2": ("", "xx"), "a3": ("x", "x")}
    rewards = f"{{mine: {{weight: 2, tasks: [a], {SERVER}}}, exact_match: 1}}"
    judged, workers = _judged(rewards, len, groups)
    assert workers.asked == [("mine", ["a1", "a2"], "train"), ("mine", ["a3"], "train")]
    np.testing.assert_array_equal(judged.parts["mine"], [1, 2, np.nan, np.nan, 0, 2, 1, 1])
    assert judged.rewards.tolist() == [2, 4, 0, 0, 0, 4, 2, 2]
    assert judged.counts["reward_not_applicable:mine"] == 2 and judged.counts["reward_calls:mine"] == 2
    assert judged.seconds["grader_mine"] == 1.0 and not judged.unrewarded.any()


def test_a_reward_that_failed_is_counted_by_reason_and_one_that_does_not_apply_is_not_among_them() -> None:
    given = {"good": 1.0, "none": None, "nan": float("nan"), "text": "1"}
    judged, _ = _judged(
        f"{{mine: {{weight: 1, {SERVER}}}, exact_match: 1}}",
        lambda text: given[text],
        {"a": ("good", "none"), "b": ("nan", "text")},
    )
    assert judged.counts["reward_failed:mine:not_finite"] == judged.counts["reward_failed:mine:wrong_type"] == 1
    assert judged.counts["reward_not_applicable:mine"] == 1
    # What is left is summed: the right answer is none of these.
    assert judged.rewards.tolist() == [1, 0, 0, 0] and judged.means()["mine"] == 1.0
    assert not judged.unrewarded.any()


def test_a_completion_without_any_reward_stands_at_the_mean_of_its_group_and_teaches_nothing() -> None:
    given = {"good": 3.0, "fine": 1.0, "none": None, "nan": float("nan")}
    judged, _ = _judged(
        f"{{mine: {{weight: 1, {SERVER}}}}}",
        lambda text: given[text],
        {"a": ("good", "none", "fine"), "b": ("nan",) * 3},
    )
    assert judged.rewards.tolist() == [3, 2, 1, 0, 0, 0]
    assert judged.unrewarded.tolist() == [False, True, False, True, True, True]
    assert judged.counts["completions_without_reward"] == 4 and judged.mean() == {"reward/mean": 2.0}
    assert judged.select([1], reason="x").unrewarded.tolist() == [True] * 3
    assert judged.joined(judged).unrewarded.sum() == 8 and judged.select([1], reason="x").mean() == {}


def test_what_is_compared_with_a_greedy_completion_that_has_no_reward_has_none_either() -> None:
    greedy = [_rollout("a", "none"), _rollout("b", "good")]
    given = {"good": 3.0, "none": None}
    judged, _ = _judged(
        f"{{mine: {{weight: 1, {SERVER}}}}}",
        lambda text: given[text],
        {"a": ("good", "good"), "b": ("good", "good")},
        greedy=greedy,
    )
    assert judged.unrewarded.tolist() == [True, True, False, False] and judged.greedy.tolist() == [0.0, 3.0]


def test_named_parts_are_shown_beside_their_sum() -> None:
    rewards = "{mine: {weight: 2, server: {url: 'http://x/r', parts: {long: 1.0, kind: 0.5}}}}"
    judged, _ = _judged(rewards, lambda text: {"long": len(text), "kind": None}, {"a": ("x", "xx")})
    assert judged.parts["mine.long"].tolist() == [1, 2] and judged.parts["mine.kind"].isnan().all()
    assert judged.rewards.tolist() == [2, 4] and set(judged.means()) == {"mine", "mine.long"}


def test_the_run_stops_beyond_the_share_that_may_fail_and_each_reason_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = _recipe("{mine: {weight: 1, server: {url: 'http://x/r', max_failed_fraction: 0.5}}}")
    graders = Graders(cast(Any, Workers(lambda text: float("nan") if text == "bad" else 1.0)))
    prompts = [prompt_ref("a")]

    def found(*texts: str) -> Counter[str]:
        gradings = graders.ask(recipe, prompts, [_rollout("a", *texts)], "train")
        return graders.found(gradings, {"grader_mine": gradings["mine"].answer.result()})["mine"].counts

    for _ in range(2):
        assert found("bad", "good")["reward_failed:mine:not_finite"] == 1
    assert capsys.readouterr().out.count("rlhf.rewards.mine failed (not_finite) for 1 of 2: completion 0 of 2") == 1
    with pytest.raises(TooManyFailures, match=r"mine failed for 2 of the 3 .*2 not_finite.* 0\.5:\ncompletion 0 of 3"):
        found("bad", "bad", "good")


def test_a_batch_that_kills_its_workers_is_a_failure_like_others() -> None:
    class Dying(Workers):
        def submit(self, *args: Any, **kwargs: Any) -> Answer[Any]:
            call: Future[Any] = Future()
            call.set_exception(KillsWorkers("grader: 4 workers died of grade"))
            return Answer(self, [call])

    recipe = _recipe(f"{{mine: {{weight: 1, {SERVER}}}}}")
    graders = Graders(cast(Any, Dying(len)))
    gradings = graders.ask(recipe, [prompt_ref("a")], [_rollout("a", "x", "y")], "train")
    found = graders.found(gradings, {"grader_mine": gradings["mine"].answer.result()})
    assert found["mine"].counts == {f"reward_failed:mine:{Failure.KILLS_WORKER}": 2}
    assert torch.isnan(found["mine"].values).all()


def test_a_functions_text_travels_with_the_places_of_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards").mkdir()
    file = tmp_path / "rewards" / "mine.py"
    file.write_text("def reward(): ...\n")
    monkeypatch.chdir(tmp_path)
    code = code_of(FunctionReward(path=f"{file}:reward"), "rlhf.rewards.mine")
    assert code.source == "def reward(): ...\n" and code.paths == (str(file.parent), "rewards", str(tmp_path))
    assert code_of(FunctionReward(path="a.module:reward"), "").source is None
    with pytest.raises(ConfigError, match=r"rlhf\.rewards\.mine\.function\.path=.*No such file"):
        code_of(FunctionReward(path=f"{tmp_path}/none.py:reward"), "rlhf.rewards.mine")


def test_judges_are_compared_with_held_out_preferences_those_of_people_first(
    tmp_path: Path, demo_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.data.datasets import Datasets

    judge = "{url: 'http://x/v1', model: m, rubric: long is good, agreement_pairs: 6}"
    recipe = _recipe(
        f"{{wise: {{weight: 1, judge: {judge}}}}}",
        f"run.directory={tmp_path}",
        f"data.path={demo_data}",
        "reward_model.held_out_fraction=0.5",
    )
    graders = Graders(cast(Any, Workers(lambda text: None if text == "?" else len(text))))
    agreement.measure(graders, recipe)
    assert "nobody knows whether people agree" in capsys.readouterr().out
    assert agreement.read(tmp_path) == {}

    def said(prompt: str, chosen: str, rejected: str, kind: RaterKind) -> Preference:
        return Preference(prompt, (1,), (2,), chosen, rejected, "r", kind)

    ids = [info.id for info in Datasets(recipe.datasets, "train").infos()]
    held = [id for id in ids if agreement.HeldOut.of(ids, fraction=0.5, most=512).__contains__(id)]
    scripted = [said(id, "long", "s", RaterKind.SCRIPTED) for id in held[:4]]
    people = [
        said(held[0], "longer", "short", RaterKind.HUMAN),
        said(held[1], "short", "longer", RaterKind.HUMAN),
        said(held[2], "?", "longer", RaterKind.HUMAN),
        said(held[3], "same", "else", RaterKind.HUMAN),
    ]
    write_preferences(tmp_path / "preferences.parquet", [*scripted, *people])
    agreement.measure(graders, recipe)
    found = agreement.read(tmp_path)["wise"]
    assert found["raters"]["human"] | {"interval": None} == {
        "num_pairs": 3,
        "num_failed": 1,
        "agreement": 0.5,
        "interval": None,
    }
    assert found["raters"]["scripted"]["num_pairs"] == 2 and found["raters"]["scripted"]["agreement"] == 1.0
    assert "The judge wise agrees with 50 % " in capsys.readouterr().out
    assert len(list(agreement.told({"wise": found}))) == 2
