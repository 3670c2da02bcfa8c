"""Which way a step points: from what was judged and scored to advantages; no worker runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from actors.loop.checkpoints import LoopState
from actors.loop.judge import Judged
from actors.loop.step import experience_of
from pipeline.config import Algorithm, RewardName
from pipeline.records import Completion, FinishReason, Rollout
from tests.prompts import prompt_ref

LOGPROBS = np.array([-1.0, -1.0], np.float32)
COMPLETION = Completion(np.array([5, 6]), LOGPROBS, FinishReason.STOP, 0, "yes")
ROLLOUT = Rollout("a", (COMPLETION, COMPLETION))
PLAIN: dict[str, Any] = {"whiten_advantages": False, "kl": {"weight": 0.0}, "clip_reward": None}


def _judged(rewards: tuple[float, float], *, greedy: float | None = None, factor: float = 1.0) -> Judged:
    """A right completion and a wrong one, by the learned reward, which weighs 2, times the factor of their task."""
    parts: dict[str, Any] = {RewardName.LEARNED: torch.tensor(rewards) / 2 / factor}
    likeliest = None if greedy is None else torch.tensor([greedy])
    unshaped = torch.tensor(rewards)
    weights: dict[str, float] = {RewardName.LEARNED: 2.0}
    given: dict[str, Any] = {"weights": weights, "factors": {RewardName.LEARNED: {"task": factor}}}
    return Judged([prompt_ref("a")], [ROLLOUT], parts, unshaped, likeliest, Counter(), {}, **given)


def _advantages(judged: Judged, scored: dict[str, Any] | None = None, **algorithm: Any) -> list[list[float]]:
    settings = Algorithm.model_validate({**PLAIN, **algorithm})
    experience, _, _ = experience_of(judged, scored or {}, LoopState.start(settings.kl), settings)
    return experience[0].advantages.tolist()


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "remax", "gae", "a2c"])
def test_the_right_completions_advantage_is_above_zero_and_the_wrong_ones_below(
    estimator: str, is_scaled: bool
) -> None:
    values = [np.full((2, 2), 0.5, np.float32)]
    judged = _judged((1.0, 0.0), greedy=0.5)
    right, wrong = _advantages(judged, {"critic": values}, advantage=estimator, scale_rewards=is_scaled)
    assert right[-1] > 0 > wrong[-1]


def test_a_better_greedy_completion_makes_the_sampled_ones_worse() -> None:
    assert _advantages(_judged((1.0, 0.0), greedy=0.0), advantage="remax") == [[1.0, 1.0], [0.0, 0.0]]
    assert _advantages(_judged((1.0, 0.0), greedy=1.0), advantage="remax") == [[0.0, 0.0], [-1.0, -1.0]]


def test_a_first_token_that_raises_the_learned_reward_has_earned_it() -> None:
    # Scores of 0.25 and of -0.5 after the first token, each weighing 2; the rest comes with the last one.
    process = [np.array([[0.25, 0.5], [-0.5, 0.0]], np.float32)]
    found = _advantages(_judged((1.0, 0.0)), {"process": process}, advantage="reinforce", gamma=0.0)
    assert found == [[0.5, 0.5], [-1.0, 1.0]]
    twice = _judged((1.0, 0.0), factor=2.0)
    assert _advantages(twice, {"process": process}, advantage="reinforce", gamma=0.0) == [[1.0, 0.0], [-2.0, 2.0]]
