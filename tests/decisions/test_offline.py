"""Learning from a log. One Ray, one log of numbers that say which of three actions suits, for all that learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ConfigError
from pipeline.config.decide import DecisionAlgorithm
from pipeline.config.fusion import FusionSettings, InputSizes, Modality
from pipeline.config.offline import OfflineLearning
from pipeline.decisions.conservative import conservative_loss, conservative_term
from pipeline.decisions.environment import HISTORY
from pipeline.decisions.offline import LoggedSessions, episodes_of, learn_offline, offline_study
from pipeline.decisions.records import Log
from pipeline.decisions.table import Decision, DecisionTable, table_of
from pipeline.models.fusion.model import FusionModel
from pipeline.models.fusion.samples import Preprocessor, Sample

NUM, NUM_ACTIONS = 600, 3
SETTINGS = FusionSettings(modalities=(Modality.NUMBERS,), hidden_size=16, sizes=InputSizes(num_numbers=NUM_ACTIONS))
MODEL: dict[str, Any] = {"fusion": SETTINGS.model_dump(mode="json")}
LEARNING = OfflineLearning(num_steps=120, batch_size=64, learning_rate=1e-2, target_steps=60)


def made(num: int = NUM, *, sessions: int | None = None) -> tuple[DecisionTable, Log]:
    """Uniformly logged decisions; the right action of three is rewarded with 0.9, others with 0.1."""
    dice = np.random.default_rng(0)
    kinds, actions = dice.integers(NUM_ACTIONS, size=(2, num))
    noise = 0.1 * dice.standard_normal((num, NUM_ACTIONS))
    truth = np.where(np.eye(NUM_ACTIONS)[kinds] > 0, 0.9, 0.1).astype(np.float32)
    decisions = [
        Decision(
            Sample(f"row-{row}", numbers=tuple((np.eye(NUM_ACTIONS)[kinds[row]] + noise[row]).tolist())), truth[row]
        )
        for row in range(num)
    ]
    rewards = (dice.random(num) < truth[np.arange(num), actions]).astype(np.float64)
    log = Log(
        actions=actions,
        propensities=np.full(num, 1 / NUM_ACTIONS),
        rewards=rewards,
        positions=np.zeros(num, np.int64),
        groups=("",) * num,
        sessions=tuple(f"s{row // (sessions or 1)}" for row in range(num)),
    )
    return table_of(decisions, Preprocessor(SETTINGS), SETTINGS.modalities), log


def test_the_conservative_term_is_the_cross_entropy_of_the_action_taken() -> None:
    q = torch.log(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    # log 4 - log 3 and log 4 - log 2.
    expected = (np.log(4 / 3) + np.log(2)) / 2
    assert conservative_term(q, torch.tensor([1, 0])).item() == pytest.approx(expected, abs=1e-6)


def test_the_conservative_loss_by_hand() -> None:
    given: dict[str, Any] = {
        "q_values": torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True),
        # The learning network holds action 0 for the best of what follows; the target network says that it is worth 3.
        "next_values": torch.tensor([[5.0, 4.0], [5.0, 4.0]]),
        "next_targets": torch.tensor([[3.0, 9.0], [3.0, 9.0]]),
        "actions": torch.tensor([0, 1]),
        "rewards": torch.tensor([0.5, 1.0]),
        "terminated": torch.tensor([False, True]),
        "gamma": 0.5,
    }
    # Targets 0.5 + 0.5 * 3 = 2 and 1: errors -1 and 1.
    assert conservative_loss(**given, conservatism=0.0).item() == pytest.approx(1.0)
    term = (np.log(np.e + 1) - 1 + np.log(np.e**2 + 1) - 2) / 2
    loss = conservative_loss(**given, conservatism=2.0)
    assert loss.item() == pytest.approx(1.0 + 2 * term, abs=1e-6)
    loss.backward()
    # d/dQ of row 0: the squared error gives (Q - target) = -1 to the action taken; the term 2 / 2 (softmax - one-hot).
    share = np.e / (np.e + 1)
    gradient = given["q_values"].grad
    assert gradient[0].tolist() == pytest.approx([-1 + share - 1, 1 - share], abs=1e-6)


def test_a_session_is_an_episode_that_sees_what_was_done_before() -> None:
    table, log = made(6, sessions=3)
    episodes, _ = episodes_of(table, log, log.rewards)
    assert [episode.id_ for episode in episodes] == ["s0", "s1"]
    episode = episodes[1]
    assert episode.is_done and len(episode) == 3
    assert episode.get_actions().tolist() == log.actions[3:].tolist()
    assert episode.get_rewards().tolist() == log.rewards[3:].tolist()
    observed = episode.get_observations()
    assert np.allclose(observed["numbers"][:3], table.inputs["numbers"][3:])
    taken = np.eye(NUM_ACTIONS)[log.actions[3:]]
    assert observed[HISTORY][:3].tolist() == [[0.0] * 3, taken[0].tolist(), np.maximum(taken[0], taken[1]).tolist()]


def test_sessions_of_one_decision_have_no_history() -> None:
    table, log = made(4)
    assert HISTORY not in episodes_of(table, log, log.rewards)[1].spaces
    with pytest.raises(ConfigError, match="4 decisions and 3 rewards for 4 rows; give one each"):
        episodes_of(table, log, log.rewards[:3])


def test_a_pass_has_each_decision_once_in_another_order_and_a_seed_fixes_all(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, log = made(10, sessions=3)
    taken: list[dict[str, torch.Tensor]] = []
    batches = LoggedSessions.__iter__

    def watched(sessions: LoggedSessions) -> Iterator[dict[str, torch.Tensor]]:
        for batch in batches(sessions):
            taken.append(batch)
            yield batch

    monkeypatch.setattr(LoggedSessions, "__iter__", watched)
    settings = LEARNING.model_copy(update={"num_steps": 6, "batch_size": 4})
    policies = [
        learn_offline(DecisionAlgorithm.MARWIL, table, log, rewards=log.rewards, model=MODEL, settings=settings)[0]
        for _ in range(2)
    ]
    assert [len(batch["default_policy/actions"]) for batch in taken] == [4, 4, 2] * 4
    passes = [
        torch.cat([batch["default_policy/obs/numbers"] for batch in taken[start : start + 3]]).tolist()
        for start in range(0, 12, 3)
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(table.inputs["numbers"].tolist())
    assert passes[0] != passes[1] and passes[:2] == passes[2:]
    first, again = (policy.probabilities(table.inputs) for policy in policies)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("name", [DecisionAlgorithm.MARWIL, DecisionAlgorithm.CQL])
def test_an_algorithm_learns_from_the_log_what_is_better_than_the_log(local_ray: None, name: DecisionAlgorithm) -> None:
    table, log = made()
    policy, metrics = learn_offline(name, table, log, rewards=log.rewards, model=MODEL, settings=LEARNING)
    probabilities = policy.probabilities(table.inputs)
    assert probabilities.shape == (NUM, NUM_ACTIONS) and probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    value = float((probabilities * table.rewards).sum(axis=1).mean())
    # The log: 0.37. MARWIL's weights are mild.
    assert value > (0.55 if name is DecisionAlgorithm.MARWIL else 0.85)
    assert all(np.isfinite(each) for key, each in metrics.items() if key.endswith("loss"))


def test_the_study_judges_by_decisions_that_nobody_learned_from(local_ray: None) -> None:
    table, log = made()

    def reward_model() -> FusionModel:
        torch.manual_seed(0)
        return FusionModel(SETTINGS, NUM_ACTIONS)

    found = offline_study(
        [DecisionAlgorithm.BC],
        table,
        log,
        rewards=log.rewards,
        model=MODEL,
        reward_model=reward_model,
        settings=LEARNING,
        true_rewards=table.rewards,
    )["bc"]
    # It imitates a uniform policy, so that its value is the log's.
    assert found["true_value"] == pytest.approx(11 / 30, abs=0.05)
    assert found["doubly_robust"]["num_decisions"] == NUM // 2
    assert found["covered"] and found["doubly_robust"]["low"] < found["snips"]["value"] < found["doubly_robust"]["high"]
    assert found["doubly_robust"]["effective_size"] > 0.8 * NUM / 2


def test_an_online_algorithm_learns_from_no_log() -> None:
    table, log = made(4)
    with pytest.raises(ConfigError, match="algorithm=ppo: learns from no log"):
        learn_offline(DecisionAlgorithm.PPO, table, log, rewards=log.rewards, model=MODEL, settings=LEARNING)
