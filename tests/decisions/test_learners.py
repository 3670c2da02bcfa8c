"""The losses of REINFORCE and A2C against gradients by hand, RLlib's targets of DQN against targets by hand, and the
learners around them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer
from torch import Tensor

from pipeline.decisions.environment import DecisionEnv, Session
from pipeline.decisions.learners import actor_critic_loss, masked_mean, reinforce_loss
from pipeline.decisions.policy_gradient import ActorCriticConfig, PolicyGradient, PolicyGradientConfig, ReinforceConfig
from pipeline.decisions.replay import SessionReplay
from tests.decisions.tables import small_table
from tests.decisions.test_modules import MODEL, spec

STATES = torch.tensor([1.0, 2.0])
ACTIONS = torch.tensor([0, 1])


def _policy(weights: Tensor, states: Tensor = STATES, actions: Tensor = ACTIONS) -> dict[str, Any]:
    """A linear policy of two actions: logits_k = w_k s."""
    logs = (states[:, None] * weights).log_softmax(1)
    return {"logp": logs.gather(1, actions[:, None])[:, 0], "entropy": -(logs.exp() * logs).sum(1)}


def test_the_gradient_of_reinforce_by_hand() -> None:
    # w = 0: both actions have 1/2, and d log pi(a | s) / d w_a = s / 2, -s / 2 for the other.
    # d loss / d w_0 = -1/2 [(2 - 0.5) (1/2) 1 + (-1 - 0.5) (-1/2) 2] = -1/2 [0.75 + 1.5]
    weights = torch.zeros(2, requires_grad=True)
    reinforce_loss(returns=torch.tensor([2.0, -1.0]), baseline=0.5, **_policy(weights)).backward()
    assert weights.grad is not None and weights.grad.tolist() == [-1.125, 1.125]


def test_the_gradient_of_a2c_by_hand() -> None:
    # Policy: -1/2 [1 (1/2) 1 + (-2)(-1/2) 2] = -1.25 for w_0. Values 0.5 s against 1.5 and 0 err by -1 and 1:
    # 0.5 * 1/2 [2 (-1) 1 + 2 (1) 2] = 0.5.
    weights, slope = torch.zeros(2, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    actor_critic_loss(
        advantages=torch.tensor([1.0, -2.0]),
        values=slope * STATES,
        targets=torch.tensor([1.5, 0.0]),
        value_weight=0.5,
        entropy_weight=0.0,
        **_policy(weights),
    ).backward()
    assert weights.grad is not None and weights.grad.tolist() == [-1.25, 1.25]
    assert slope.grad is not None and float(slope.grad) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", ["reinforce", "a2c"])
def test_entropy_is_raised_by_hand(loss: str) -> None:
    # Logits log 4 and 0: probabilities 0.8, 0.2, H = 0.5004; dH / d logit_0 = -0.8 (log 0.8 + H) = -0.22181.
    weights = torch.tensor([float(np.log(4)), 0.0], requires_grad=True)
    terms = _policy(weights, torch.ones(1), torch.zeros(1, dtype=torch.int64))
    zero = torch.zeros(1)
    if loss == "reinforce":
        reinforce_loss(returns=zero, entropy_weight=2.0, **terms).backward()
    else:
        actor_critic_loss(
            advantages=zero, values=zero, targets=zero, value_weight=1, entropy_weight=2.0, **terms
        ).backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == pytest.approx([2 * 0.22181, -2 * 0.22181], abs=1e-4)


def test_appended_steps_are_left_out_of_means() -> None:
    values = torch.tensor([1.0, 2.0, 100.0])
    assert masked_mean(values, torch.tensor([True, True, False])) == 1.5
    assert masked_mean(values, torch.zeros(3, dtype=torch.bool)) == 0
    assert masked_mean(values[:2], None) == 1.5


class Logs(SimpleNamespace):
    def log_value(self, *args: Any, **kwargs: Any) -> None: ...

    def log_dict(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(("double_q", "target"), [(True, 3 + 0.125 * 10.0), (False, 3 + 0.125 * 20.0)])
def test_the_target_of_double_q_and_n_steps_by_hand(double_q: bool, target: float) -> None:
    """Next state: the learning network prefers action 1 (7 > 5), the target network holds it for worth 10, and action 0
    for worth 20. Three rewards sum up to 3, and gamma is 1/2: the target is 3 + 1/8 of 10, or of the maximum 20."""
    output = {
        QF_PREDS: torch.tensor([[1.0, 4.0], [0.0, 2.0]]),
        QF_NEXT_PREDS: torch.tensor([[5.0, 7.0], [5.0, 7.0]]),
        QF_TARGET_NEXT_PREDS: torch.tensor([[20.0, 10.0], [20.0, 10.0]]),
    }
    batch = {
        Columns.ACTIONS: torch.tensor([1, 0]),
        Columns.REWARDS: torch.tensor([3.0, 3.0]),
        Columns.TERMINATEDS: torch.tensor([False, True]),
        "n_step": torch.tensor([3.0, 3.0]),
        "weights": torch.ones(2),
    }
    config = SimpleNamespace(double_q=double_q, gamma=0.5, num_atoms=1, td_error_loss_fn="mse")
    learner: Any = SimpleNamespace(metrics=Logs())
    loss = DQNTorchLearner.compute_loss_for_module(
        learner,
        module_id="default_policy",
        config=config,  # pyright: ignore[reportArgumentType]
        batch=batch,
        fwd_out=output,
    )
    # The second session has ended: its target is its rewards alone.
    assert float(loss) == pytest.approx(((4 - target) ** 2 + (0 - 3) ** 2) / 2)


@pytest.mark.parametrize("is_rllibs", [False, pytest.param(True, marks=pytest.mark.xfail(reason="RLlib 2.60"))])
def test_the_replay_sums_n_rewards_by_hand(is_rllibs: bool) -> None:
    buffer = EpisodeReplayBuffer(capacity=10) if is_rllibs else SessionReplay(capacity=10)
    episode = SingleAgentEpisode(
        observations=[0, 1, 2, 3], actions=[0, 1, 0], rewards=[1.0, 2.0, 4.0], terminated=True, len_lookback_buffer=0
    )
    buffer.add([episode])
    samples: Any = buffer.sample
    found = {
        (
            each.get_observations(0),
            each.get_observations(1),
            each.get_rewards(0),
            each.get_extra_model_outputs("n_step", 0),
            each.is_terminated,
        )
        for each in samples(num_items=60, n_step=2, gamma=0.5, sample_episodes=True)
    }
    # 1 + 2/2, 2 + 4/2, and the last step alone, which has no other to sum up.
    assert found == {(0, 2, 2.0, 2, False), (1, 3, 4.0, 2, True), (2, 3, 4.0, 1, True)}


def _episode(rewards: list[float], *, start: int = 0, done: bool = True, id: str = "a") -> SingleAgentEpisode:
    """Session of two or three steps over the rows of a small table, always action 1."""
    environment = DecisionEnv(small_table(), session=Session(length=3))
    observation, _ = environment.reset(seed=0)
    episode = SingleAgentEpisode(
        id_=id,
        observations=[observation] * (len(rewards) + 1),
        actions=[np.int64(1)] * len(rewards),
        rewards=list(rewards),
        terminated=done,
        observation_space=environment.observation_space,
        action_space=environment.action_space,
        t_started=start,
        len_lookback_buffer=0,
    )
    return episode


def _learner(config: PolicyGradientConfig) -> Any:
    environment = DecisionEnv(small_table(), session=Session(length=3))
    config.training(gamma=0.5, lr=0.01).learners(num_learners=0).debugging(seed=0)
    config.rl_module(rl_module_spec=spec("policy", environment))
    learner = config.build_learner(env=environment)
    return learner


def _gradients(learner: Any) -> dict[str, Tensor]:
    module = learner.module["default_policy"]
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}


def test_reinforce_learns_from_the_returns_of_whole_sessions_and_moves_its_baseline() -> None:
    learner = _learner(ReinforceConfig().training(entropy_coeff=0.0, baseline_momentum=0.5))
    before = copy.deepcopy(learner.module["default_policy"])
    episode = _episode([1.0, 2.0, 4.0])
    observations = {name: torch.from_numpy(np.stack([each] * 3)) for name, each in episode.get_observations(0).items()}
    learner.update(episodes=[episode])
    returns = torch.tensor([1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4.0])  # 3, 4, 4
    logits = before.forward_train({Columns.OBS: observations})[Columns.ACTION_DIST_INPUTS]
    logp = logits.log_softmax(1)[:, 1]
    # The first batch has no baseline but its own mean.
    (-((returns - returns.mean()) * logp).mean()).backward()
    expected = {name: each.grad for name, each in before.named_parameters() if each.grad is not None}
    found = _gradients(learner)
    assert found.keys() == expected.keys()
    for name, each in found.items():
        assert torch.allclose(each, expected[name], atol=1e-6), name
    assert learner.baselines["default_policy"] == pytest.approx(11 / 3)
    learner.update(episodes=[_episode([1.0], id="b")])
    assert learner.baselines["default_policy"] == pytest.approx((11 / 3 + 1) / 2)


def test_the_baseline_of_reinforce_is_in_its_state() -> None:
    learner, other = _learner(ReinforceConfig()), _learner(ReinforceConfig())
    learner.update(episodes=[_episode([1.0, 3.0])])
    other.set_state(learner.get_state())
    assert other.baselines == learner.baselines != {}


def test_a2c_trains_policy_and_value() -> None:
    learner = _learner(ActorCriticConfig())
    learner.update(episodes=[_episode([1.0, 2.0, 4.0]), _episode([0.0, 1.0], id="b")])
    found = _gradients(learner)
    assert float(found["vf.weight"].abs().sum()) > 0 and float(found["pi.weight"].abs().sum()) > 0


def test_parts_of_a_session_wait_for_its_end() -> None:
    whole: Any = PolicyGradient._whole  # pyright: ignore[reportPrivateUsage]
    algorithm = SimpleNamespace()
    first = _episode([1.0, 2.0], done=False)
    assert whole(algorithm, [first, _episode([5.0], id="b")])[0].id_ == "b"
    (ended,) = whole(algorithm, [_episode([4.0], start=2)])
    assert list(ended.get_rewards()) == [1.0, 2.0, 4.0]
    assert whole(algorithm, []) == []


def test_models_of_these_tests_need_no_encoders() -> None:
    assert MODEL["cached"]
    assert isinstance(DecisionEnv(small_table()).observation_space, gym.spaces.Dict)
