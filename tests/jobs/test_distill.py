"""The best of many samples, learned."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.loop.judge import Judged
from jobs import distill, rlhf
from pipeline.config import AdvantageEstimator, Algorithm, ConfigError, PartNormalisation, load_recipe
from pipeline.data import demo
from pipeline.data.table import PreferenceTable
from pipeline.models import tiny
from pipeline.models.checkpoint import load_policy
from pipeline.records import Completion, FinishReason, Rating, Rollout
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import MakeRecipe, curve
from tests.prompts import prompt_ref


def completion(text: str) -> Completion:
    ids = np.array([ord(each) for each in text], np.int64)
    return Completion(ids, np.zeros(len(ids), np.float32), FinishReason.STOP, 0, text)


def judged(rewards: list[float], unrewarded: list[bool] | None = None) -> Judged:
    """Two groups of three: the second one says the same thing twice."""
    groups = [Rollout("one", tuple(map(completion, "abc"))), Rollout("two", tuple(map(completion, "dde")))]
    left_out = None if unrewarded is None else torch.tensor(unrewarded)
    refs = [prompt_ref("one"), prompt_ref("two")]
    return Judged(refs, groups, {}, torch.tensor(rewards), None, Counter(), {}, unrewarded=left_out)


def kept(*args: object, keep: int = 1, least: float | None = None) -> list[tuple[str, str, float]]:
    found = distill.best_of(judged(*args), keep, least)  # pyright: ignore[reportArgumentType]
    return [(rating.prompt_id, rating.text, reward) for rating, reward in found]


def test_the_best_of_each_group_is_kept_and_of_equal_ones_the_first() -> None:
    assert kept([1.0, 3.0, 2.0, 0.0, 0.0, -1.0]) == [("one", "b", 3.0), ("two", "d", 0.0)]


def test_each_text_is_kept_once_and_none_that_is_worse_than_the_least_reward() -> None:
    rewards = [1.0, 3.0, 2.0, 5.0, 5.0, 0.5]
    assert kept(rewards, keep=2) == [("one", "b", 3.0), ("one", "c", 2.0), ("two", "d", 5.0), ("two", "e", 0.5)]
    assert kept(rewards, keep=2, least=2.5) == [("one", "b", 3.0), ("two", "d", 5.0)]


def test_what_has_no_reward_is_never_kept() -> None:
    unrewarded = [False, True, False, True, True, True]
    assert kept([1.0, 3.0, 2.0, 5.0, 5.0, 5.0], unrewarded) == [("one", "c", 2.0)]


def test_a_student_of_its_own_learns_the_tokens_and_another_one_the_text() -> None:
    ((rating, _), _) = distill.best_of(judged([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]), 1, None)
    assert distill.demonstration(rating, prompt_ref("one"), None).answer == (97,)
    assert distill.demonstration(rating, prompt_ref("one"), Path("elsewhere")).answer == "a"


@pytest.mark.parametrize("normalisation", PartNormalisation)
def test_metrics_tell_of_the_sum_by_which_the_best_are_chosen(normalisation: PartNormalisation) -> None:
    right, short = torch.tensor([0.0, 0.0, 6.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, torch.nan])
    parts = {"right": right, "short": short, "overlong": torch.full((6,), -9.0)}
    groups = judged([1.0, 2.0, 15.0, 7.0, 7.0, 2.0])
    groups = dataclasses.replace(groups, parts=parts, weights={"right": 2.0, "short": 1.0})
    found = distill.judged_metrics(
        groups, Algorithm(advantage=AdvantageEstimator.RLOO, part_normalisation=normalisation)
    )
    # Shares: of a sum that varies by 138.67, of which 108 are due to `right`.
    assert found == pytest.approx(
        {
            "reward/mean": 34 / 6,
            **{"reward/right": 1.5, "reward_weight/right": 2.0, "reward_share/right": 0.778846},
            **{"reward/short": 3.2, "reward_weight/short": 1.0, "reward_share/short": 0.221154},
            **{"reward_std/right": 4.25**0.5, "reward_std/short": 1.6},
        },
        rel=1e-5,
    )


def test_graders_are_loaded_and_judges_measured_before_a_prompt_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(None, [f"run.directory={tmp_path}", "rlhf.rewards={mine.py:taste: 1.0}"])
    done: list[str] = []
    graders = SimpleNamespace(check=lambda recipe: done.append("checked"))
    workers: Any = SimpleNamespace(roles=lambda paths: SimpleNamespace(graders=graders))
    monkeypatch.setattr(distill.agreement, "measure", lambda graders, recipe: done.append("measured"))
    monkeypatch.setattr(distill, "needs_of", lambda *_: pytest.fail(f"goes on after {done}"))
    with pytest.raises(pytest.fail.Exception, match=r"after \['checked', 'measured'\]"):
        distill.best(recipe, workers)


def test_the_best_samples_are_learned_and_not_sampled_again(workers: ReadyWorkers, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        "rlhf.rewards={length: 1.0, learned: 0.1}",
        # The rollout sees pictures with a tower of its own, the reward model by features.
        "rlhf.policy.parts={vision_tower: {mode: train}}",
        "rlhf.sampling={max_new_tokens: 6, temperature: 1.0}",
        "distill={num_prompts: 9, samples_per_prompt: 4, keep: 2, batch_size: 6, num_steps: 8, learning_rate: 2.0e-3}",
    )
    assert distill.run(recipe, crew=workers.crew(recipe)) == recipe.checkpoint("distilled")
    table = PreferenceTable(recipe.run.directory / "distilled.parquet")
    learned = [each for each in table.read(range(len(table))) if isinstance(each, Rating)]
    assert 9 < len(learned) == len(table) <= 18 and len({each.prompt_id for each in learned}) == 9
    sampled = curve(recipe, "distill_samples")
    assert [row["step"] for row in sampled] == [0, 1]
    assert all({"reward/mean", "reward_std/length", "reward_share/learned"} <= row.keys() for row in sampled)
    assert sum(row["counts/truncated_completions"] for row in sampled) <= 9 * 4
    rows = curve(recipe, "distill")
    assert len(rows) == 8 and rows[-1]["loss"] < rows[0]["loss"] - 0.5
    load_policy(recipe.checkpoint("distilled"), dtype=recipe.model.dtype, trust_remote_code=False)

    before = (recipe.run.directory / "distilled.parquet").read_bytes()
    strict = make_recipe("distill={batch_size: 64, num_steps: 1}")
    with pytest.raises(ConfigError, match=r"distill\.batch_size=64: only \d+ completions are kept"):
        distill.run(strict, crew=workers.crew(strict))
    assert (recipe.run.directory / "distilled.parquet").read_bytes() == before


def test_a_smaller_student_learns_the_text_of_what_was_kept(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    architecture = make_recipe().model.tiny_architecture
    num_parameters = tiny.build(student, architecture=architecture, corpus=demo.corpus(), seed=1, hidden=64)
    recipe = make_recipe(
        "rlhf.rewards={length: 1.0}",
        "rlhf.sampling={max_new_tokens: 6, temperature: 1.0}",
        "distill={num_prompts: 6, samples_per_prompt: 2, batch_size: 6, num_steps: 6, learning_rate: 2.0e-3}",
        f"distill.student={student}",
    )
    distill.run(recipe, crew=workers.crew(recipe))
    rows = curve(recipe, "distill")
    assert rows[-1]["loss"] < rows[0]["loss"]
    learned = load_policy(recipe.checkpoint("distilled"), dtype=recipe.model.dtype, trust_remote_code=False)
    assert sum(each.numel() for each in learned.parameters()) == num_parameters


def test_a_teacher_alone_teaches_on_the_students_own_samples(
    workers: ReadyWorkers, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(make_recipe().checkpoint("base"), teacher)
    weights = load_file(teacher / "model.safetensors")
    decoder = next(name for name in weights if "lm_head" in name or "embed_tokens" in name)
    weights[decoder] = weights[decoder] + 0.2 * torch.randn(weights[decoder].shape, generator=torch.manual_seed(0))
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(
        "rlhf.rewards={}",
        f"rlhf.reference.checkpoint={teacher}",
        "rlhf.algorithm={advantage: reinforce, gamma: 0, policy_loss: policy_gradient, num_minibatches: 1}",
        "rlhf.algorithm.kl.weight=1",
        "rlhf.num_steps=2",
    )
    rlhf.run(recipe, crew=workers.crew(recipe))
    for row in curve(recipe):
        # What a token is worth is how much likelier the teacher holds it to be, and nothing else.
        assert row["reward/mean"] == 0 < abs(row["kl/reference"])
        assert row["advantage/mean"] == pytest.approx(-row["kl/reference"], rel=1e-5)
