"""Online algorithms: each learns, goes on from its checkpoint, and is evaluated on whole sessions."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.config.decide import Decide, DecisionAlgorithm, DecisionReward, PolicyGradient, QLearning, SoftActorCritic
from pipeline.decisions.environment import Session, order
from pipeline.decisions.online import OnlineRun, Scene, evaluate, flat, greedy, live_source
from tests.decisions.tables import small_table
from tests.decisions.test_modules import FUSION, MODEL

NAMES = {DecisionAlgorithm.A2C: "actorcritic"}
ONLINE = [each for each in DecisionAlgorithm if each.is_online]
CHANCE = 0.5
"""Of the small table: one of three actions is worth 1, the others 0.25."""
QUICK = PolicyGradient(learning_rate=2e-2, batch_size=32, num_epochs=4, entropy_weight=0.02, entropy_steps=300)
SETTINGS = Decide(
    fusion=FUSION,
    reward=DecisionReward.TRUTH,
    num_decisions=384,
    report_every=128,
    num_envs=8,
    dqn=QLearning(learning_rate=1e-2, batch_size=32, warmup_steps=64, epsilon_steps=200, target_steps=32),
    reinforce=QUICK,
    a2c=QUICK,
    ppo=QUICK,
    sac=SoftActorCritic(
        learning_rate=1e-2, batch_size=32, warmup_steps=64, temperature=0.02, tau=0.1, intensity=16, entropy_share=0.05
    ),
)


def _scene(tmp_path: Path, *, num: int = 48, session: Session | None = None) -> Scene:
    small_table(num=num).save(tmp_path / "table.safetensors")
    return Scene(str(tmp_path / "table.safetensors"), "raw", DecisionReward.TRUTH, session=session or Session())


def _run(
    name: DecisionAlgorithm, scene: Scene, tmp_path: Path, *, settings: Decide = SETTINGS, resume: bool = False
) -> OnlineRun:
    directory = tmp_path / "checkpoints"
    return OnlineRun(name, settings, scene, seed=0, model=MODEL, directory=directory, resume=resume)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", ONLINE)
def test_each_algorithm_learns_which_action_is_the_best(name: DecisionAlgorithm, tmp_path: Path) -> None:
    scene = _scene(tmp_path)
    run, metrics = _run(name, scene, tmp_path), dict[str, float]()
    try:
        # RLlib makes configurations anew from the default of an algorithm's class: it must be this one's.
        assert type(run.algorithm.config).__name__.lower().startswith(NAMES.get(name, name.value))
        while not run.done:
            metrics = run.step()
        assert evaluate(greedy(run.module), scene).regrets.mean() < 0.4 * CHANCE
        assert abs(np.mean(run.regrets[:64]) - CHANCE) < 0.2
        assert metrics["counts/decisions"] == len(run.regrets) and any(key.startswith("learners/") for key in metrics)
    finally:
        run.close()


@pytest.mark.usefixtures("local_ray")
def test_a_run_goes_on_from_its_last_checkpoint_and_with_the_decisions_that_are_left(tmp_path: Path) -> None:
    scene = _scene(tmp_path, num=600)
    settings = SETTINGS.model_copy(update={"checkpoint_every": 1})
    first = _run(DecisionAlgorithm.REINFORCE, scene, tmp_path, settings=settings)
    first.step()
    regrets, weights = list(first.regrets), first.module.state_dict()
    first.close()
    second = _run(DecisionAlgorithm.REINFORCE, scene, tmp_path, settings=settings, resume=True)
    try:
        assert second.regrets == regrets and second.iteration == 1
        assert all(torch.equal(each, weights[name]) for name, each in second.module.state_dict().items())
        environments = second.algorithm.env_runner.env.unwrapped.envs
        _, infos = environments[3].unwrapped.reset(seed=3)
        assert infos["row"] == order(600, 0, 0)[len(regrets) + 3]
        while not second.done:
            second.step()
        assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) == 1
    finally:
        second.close()
    third = _run(DecisionAlgorithm.REINFORCE, scene, tmp_path, settings=settings, resume=True)
    assert third.done
    third.close()
    fresh = _run(DecisionAlgorithm.REINFORCE, scene, tmp_path, settings=settings)
    assert fresh.regrets == []
    fresh.close()


@pytest.mark.usefixtures("local_ray")
def test_sessions_of_several_steps_are_learned_with_n_steps(tmp_path: Path) -> None:
    scene = _scene(tmp_path, session=Session(question_cost=0.1))
    own = SETTINGS.dqn.model_copy(update={"n_step": 2})
    settings = SETTINGS.model_copy(update={"dqn": own, "num_decisions": 256, "question_cost": 0.1})
    run = _run(DecisionAlgorithm.DQN, scene, tmp_path, settings=settings)
    try:
        while not run.done:
            run.step()
        assert evaluate(greedy(run.module), scene).regrets.mean() < CHANCE
    finally:
        run.close()


def test_each_row_is_evaluated_once_in_a_bandit_and_in_sessions(tmp_path: Path) -> None:
    bandit, sessions = _scene(tmp_path), replace(_scene(tmp_path), session=Session(length=2))
    best = np.arange(48) % 3

    def policy(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        return observations["text_features"][:, 0, :3].argmax(1)

    for scene in (bandit, sessions):
        found = evaluate(policy, scene)
        assert sorted(found.rows.tolist()) == list(range(48))
        assert np.array_equal(found.actions, best[found.rows])
        assert found.regrets.tolist() == [0.0] * 48 and found.rewards.tolist() == [1.0] * 48


def test_a_live_source_that_there_is_not_is_refused() -> None:
    assert live_source("operator:mul") is operator.mul
    with pytest.raises(ConfigError, match=r"decide.live='math:nothing'.*write module:name of a function"):
        live_source("math:nothing")


def test_metrics_have_slashes_and_numbers_alone() -> None:
    values = {"a": {"b": 1, "c": np.float32(2), "d": "text", "e": torch.tensor(3.0)}, "f": [1, 2]}
    assert flat(values) == [("a/b", 1.0), ("a/c", 2.0), ("a/e", 3.0)]
