"""The environment: what is seen, what an action brings, whose turn it is, and what it refuses."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from pipeline.config import ConfigError
from pipeline.decisions.environment import HISTORY, DecisionEnv, Session, order
from pipeline.decisions.feedback import Clicks, Live, Replayed, rated_rewards
from pipeline.decisions.table import DecisionTable, Logged
from pipeline.records import RaterKind, Rating
from tests.decisions.tables import small_table

SESSIONS = {
    "a bandit": Session(),
    "a session of three": Session(length=3),
    "a question and an answer": Session(question_cost=0.1),
}


@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_and_stable_baselines_find_nothing_wrong(session: Session) -> None:
    hidden = np.array([[True, False]] * 6) if session.asks else None
    check_env(DecisionEnv(small_table(hidden=hidden), session=session), skip_render_check=True)
    check_env_of_sb3(DecisionEnv(small_table(hidden=hidden), session=session), warn=False)


def test_a_bandit_sees_a_row_and_gets_what_its_action_is_worth_there() -> None:
    table = small_table()
    environment = DecisionEnv(table)
    observation, infos = environment.reset(seed=0)
    row = infos["row"]
    assert np.array_equal(observation["text_features"], table.inputs["text_features"][row])
    assert observation["present"].tolist() == [1, 1]
    _, reward, terminated, truncated, infos = environment.step(row % 3)
    assert (reward, terminated, truncated, infos["regret"]) == (1.0, True, False, 0.0)
    _, infos = environment.reset()
    _, reward, _, _, infos = environment.step((infos["row"] + 1) % 3)
    assert (reward, infos["regret"]) == (0.25, 0.75)


def test_environments_share_the_decisions_among_them_and_begin_again_in_another_order() -> None:
    table = small_table(num=6)
    vector = gym.vector.SyncVectorEnv([lambda: DecisionEnv(table, num_streams=3, order_seed=5)] * 3)
    seen: list[int] = []
    _, infos = vector.reset(seed=30)
    for _ in range(4):
        seen += infos["row"].tolist()
        vector.step(np.zeros(3, np.int64))
        _, _, _, _, infos = vector.step(np.zeros(3, np.int64))  # gymnasium resets with the next step
    assert seen == [*order(6, 5, 0), *order(6, 5, 1)]
    assert order(6, 5, 0).tolist() != order(6, 5, 1).tolist()


def test_a_run_that_goes_on_skips_what_was_decided_before() -> None:
    table = small_table(num=6)
    _, infos = DecisionEnv(table, stream=1, num_streams=2, skip=2).reset(seed=0)
    assert infos["row"] == order(6, 0, 0)[1 + 2 * 2]


def test_the_same_seed_sees_and_gets_the_same() -> None:
    def play() -> list[tuple[int, float]]:
        table = small_table()
        environment = DecisionEnv(table, feedback=Clicks(table))
        _, infos = environment.reset(seed=7)
        found: list[tuple[int, float]] = []
        for _ in range(20):
            row = infos["row"]
            found.append((row, environment.step(0)[1]))
            _, infos = environment.reset()
        return found

    assert play() == play()


def test_clicks_come_with_the_probability_of_the_table() -> None:
    table = small_table()
    random = np.random.default_rng(0)
    clicks = [Clicks(table)(0, 1, random) for _ in range(2000)]
    assert set(clicks) == {0.0, 1.0}
    assert abs(np.mean(clicks) - 0.25) < 0.03


def test_a_session_goes_on_until_something_is_brought_and_what_was_taken_brings_nothing() -> None:
    table = small_table()
    table.rewards[:, 1:] = 0.0
    table.rewards[:, 0] = 1.0
    environment = DecisionEnv(table, session=Session(length=3))
    environment.reset(seed=0)
    observation, reward, done, _, infos = environment.step(2)
    assert (reward, done, infos["regret"]) == (0.0, False, 1.0)
    assert observation[HISTORY].tolist() == [0, 0, 1]
    _, reward, done, _, infos = environment.step(0)
    assert (reward, done, infos["regret"]) == (1.0, True, 1.0)
    environment.reset()
    assert [environment.step(2)[2] for _ in range(3)] == [False, False, True]


def test_a_repeated_action_loses_against_the_best_that_is_left() -> None:
    table = small_table(num=1)
    table.rewards[:] = [[0.0, 0.4, 0.9]]
    environment = DecisionEnv(table, session=Session(length=3), feedback=Live(table, lambda id, action: 0.0))
    environment.reset(seed=0)
    assert environment.step(2)[4]["regret"] == 0.0
    # The best one is gone: 0.4 is left, and what was taken is worth nothing.
    _, reward, _, _, infos = environment.step(2)
    assert (reward, infos["regret"]) == (0.0, pytest.approx(0.4))


def test_a_question_costs_and_shows_what_was_hidden() -> None:
    hidden = np.array([[False, True]] * 6)
    table = small_table(hidden=hidden)
    environment = DecisionEnv(table, session=Session(question_cost=0.1))
    observation, infos = environment.reset(seed=0)
    assert environment.num_actions == 4
    assert observation["present"].tolist() == [1, 0]
    assert not observation["audio_features"].any() and not observation["audio_mask"].any()
    observation, reward, done, _, infos = environment.step(3)
    assert (reward, done, infos["regret"]) == (-0.1, False, 0.1)
    assert observation["present"].tolist() == [1, 1]
    assert observation["audio_features"].any() and observation[HISTORY][3] == 1
    _, reward, done, _, infos = environment.step(infos["row"] % 3)
    assert (reward, done, infos["regret"]) == (1.0, True, 0.1)


def test_a_log_that_is_asked_again_gives_each_action_its_true_reward_on_average() -> None:
    rng = np.random.default_rng(0)
    propensities = np.array([0.7, 0.2, 0.1], np.float32)
    worth = np.array([0.2, 0.5, 0.9])
    num = 30_000
    actions = rng.choice(3, num, p=propensities.astype(float) / propensities.sum())
    rewards = (rng.random(num) < worth[actions]).astype(np.float32)
    table = small_table(num=num, logged=Logged(actions, propensities[actions], rewards))
    for rejects, scale in ((False, 1.0), (True, 0.1)):
        feedback = Replayed(table, rejects=rejects)
        for action in range(3):
            mean = np.mean([feedback(row, action, rng) for row in range(num)])
            assert mean == pytest.approx(scale * worth[action], abs=0.03 * scale + 0.006)


def test_reward_weights_of_a_log_can_be_cut() -> None:
    table = small_table(num=1, logged=Logged(np.array([1]), np.array([0.01], np.float32), np.ones(1, np.float32)))
    assert Replayed(table)(0, 1, np.random.default_rng(0)) == pytest.approx(100)
    assert Replayed(table, most=20)(0, 1, np.random.default_rng(0)) == pytest.approx(20)


def test_a_live_source_is_asked_with_the_decision_and_the_action() -> None:
    asked: list[tuple[str, int]] = []

    def source(id: str, action: int) -> float:
        asked.append((id, action))
        return 0.5

    table = small_table()
    environment = DecisionEnv(table, feedback=Live(table, source))
    _, infos = environment.reset(seed=0)
    assert environment.step(2)[1] == 0.5
    assert asked == [(f"row-{infos['row']}", 2)]
    with pytest.raises(ConfigError, match=r"reward=nan of action 0 in 'row-1'.*finite"):
        Live(table, lambda id, action: float("nan"))(1, 0, np.random.default_rng(0))


def test_ratings_are_rewards_of_the_actions_whose_names_were_rated() -> None:
    def rating(row: int, text: str, value: float) -> Rating:
        return Rating(f"row-{row}", (1,), text, {"overall": value}, "ann", RaterKind.HUMAN)

    said = [rating(0, "yes", 1.0), rating(0, "yes", 0.5), rating(1, "no", 0.25), rating(1, "perhaps", 1.0)]
    rewards = rated_rewards(said, ("row-0", "row-1"), ("yes", "no"), unrated=-1.0)
    assert rewards.tolist() == [[0.75, -1.0], [-1.0, 0.25]]
    with pytest.raises(ConfigError, match="ratings: none is of one of the 1 decisions"):
        rated_rewards(said, ("row-9",), ("yes", "no"), unrated=0.0)


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_a_propensity_that_is_none_is_refused_by_row(propensity: float) -> None:
    with pytest.raises(ConfigError, match=r"propensity=.* in row 1 of the log.*\(0, 1\]"):
        Logged(np.zeros(2, np.int64), np.array([0.5, propensity], np.float32), np.zeros(2, np.float32))


def test_an_action_that_there_is_not_is_refused() -> None:
    environment = DecisionEnv(small_table())
    environment.reset(seed=0)
    with pytest.raises(ConfigError, match="action=3: K=3 actions, from 0 to 2"):
        environment.step(3)


def test_a_row_without_any_modality_is_refused_by_name(tmp_path: Any) -> None:
    table = small_table()
    blind: dict[str, NDArray[Any]] = {**table.inputs, "present": np.array([[True, True]] * 3 + [[False, False]] * 3)}
    with pytest.raises(ConfigError, match=r"row 'row-3': none of its modalities \(text, audio\) is there"):
        DecisionTable(table.ids, blind, table.rewards, table.groups, table.modalities, table.hidden)


def test_a_row_whose_every_modality_is_hidden_is_refused() -> None:
    with pytest.raises(ConfigError, match="row 'row-0': none of its modalities"):
        small_table(hidden=np.ones((6, 2), bool))
