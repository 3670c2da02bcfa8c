"""What the loop makes of a step's scores and rewards, worked out by hand; no worker runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from actors.loop.judge import Judged
from actors.loop.step import begin_scoring, metric_name, next_kl, shape
from actors.loop.step_metrics import learning_counts
from jobs.evaluate import scores
from pipeline.algorithms.kl import AdaptiveKl
from pipeline.algorithms.off_policy import importance_weights
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import Algorithm, Recipe, load_recipe
from pipeline.experience import collate_experience, make_experience
from pipeline.records import Completion, FinishReason, Rollout
from tests.actors.at_once import AtOnce
from tests.prompts import prompt_ref

BEHAVIOUR = np.array([-1.0, -2.0], np.float32)
ROLLOUT = Rollout("a", (Completion(np.array([5, 6]), BEHAVIOUR, FinishReason.STOP, 0, "yes"),))


class World(AtOnce):
    """Workers of a role that are asked and have nothing to say."""

    def __init__(self, settings: Any):
        self.settings = settings
        self.asked: list[str] = []

    def __len__(self) -> int:
        return 1

    def on_each(self, method: Any, shares: Sequence[Any], **_: Any) -> Any:
        self.asked.append(method.__name__)
        return self.answer([])


def _scored(recipe: Recipe) -> set[str]:
    roles: Any = type("Roles", (), {role: World(getattr(recipe.rlhf, role)) for role in ("policy", "reference")})()
    roles.critic = None
    return set(begin_scoring(roles, recipe, [prompt_ref("a")], [ROLLOUT]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["rlhf.staleness=1"],
        ["rlhf.sampling.top_k=5"],
        ["rlhf.sampling.top_p=0.9"],
        ["rlhf.sampling.min_p=0.1"],
        ["rlhf.algorithm.off_policy.correction=token"],
        ["rlhf.algorithm.off_policy.correction=sequence"],
        ["rlhf.algorithm.off_policy.correction=icepop"],
        ["model.dtype=bfloat16"],
    ],
)
def test_the_policy_scores_its_samples_wherever_behaviour_logprobs_may_differ_from_its_own(
    overrides: list[str],
) -> None:
    assert _scored(load_recipe(None, overrides)) == {"reference", "proximal"}


def test_a_rollout_that_is_exact_and_of_the_same_weights_is_taken_at_its_word() -> None:
    assert _scored(load_recipe(None, ["rlhf.sampling.temperature=0.7"])) == {"reference"}


def test_an_on_policy_step_with_a_correction_is_corrected_and_its_mismatch_shown() -> None:
    # The rollout said -1 and -2; the trainer says -1.5 and -1: the weights are e^-0.5 and e^1, capped at 2.
    recipe = load_recipe(None, ["rlhf.algorithm.off_policy.correction=token"])
    proximal = {"proximal": [np.array([[-1.5, -1.0]], np.float32)]} if "proximal" in _scored(recipe) else {}
    experience, statistics = make_experience(
        [ROLLOUT],
        rewards=torch.tensor([1.0]),
        reference_logprobs=None,
        values=[np.zeros((1, 2), np.float32)],
        algorithm=recipe.rlhf.algorithm,
        kl_weight=0.0,
        proximal_logprobs=proximal.get("proximal"),
    )
    batch = collate_experience(experience, device=torch.device("cpu"))
    off_policy = recipe.rlhf.algorithm.off_policy
    weights = importance_weights(
        correction=off_policy.correction,
        proximal_logprobs=batch.proximal_logprobs,
        behaviour_logprobs=batch.behaviour_logprobs,
        mask=batch.mask,
        cap=off_policy.cap,
        low=off_policy.low,
        high=off_policy.high,
    )
    assert weights.weights[0].tolist() == pytest.approx([math.exp(-0.5), 2.0])
    assert weights.limited[0].tolist() == [False, True]
    assert statistics["mismatch/mean"] == pytest.approx(0.75)
    assert statistics["mismatch/max"] == 1.0


def test_the_kl_weight_holds_while_the_policy_waits_for_its_critic() -> None:
    controller = AdaptiveKl(weight=0.1, target=0.1, horizon=1000)
    followed = controller.updated(kl=0.0, num_completions=100)
    assert followed != controller
    for advantage, expected in (("gae", [controller, controller, followed]), ("rloo", [followed] * 3)):
        # Without a critic nobody waits, whatever the recipe says.
        settings = load_recipe(None, ["rlhf.critic_warmup_steps=2", f"rlhf.algorithm.advantage={advantage}"]).rlhf
        found = [next_kl(controller, settings, step, kl=0.0, num_completions=100) for step in range(3)]
        assert found == expected


class Answering(World):
    """Workers of a role that answer with the same rows whatever they are asked."""

    def __init__(self, settings: Any, rows: list[Any]):
        super().__init__(settings)
        self._rows = rows

    def on_each(self, method: Any, shares: Sequence[Any], **_: Any) -> Any:
        return self.answer([self._rows])


def test_an_evaluated_policy_is_at_no_distance_from_itself_under_filters() -> None:
    # Filters left half of the probability: behaviour logprobs lie ln 2 above those of the same policy, whole.
    raw = np.array([-1.5, -0.5], np.float32)
    filtered = Completion(np.array([5, 6]), raw + np.float32(math.log(2)), FinishReason.STOP, 0, "yes", raw)
    settings = Recipe().rlhf
    roles: Any = type("Roles", (), {})()
    roles.reward = Answering(settings.reward, [np.array([0.25], np.float32)])
    roles.reference = Answering(settings.reference, [np.array([[-1.5, -1.5, 9.0]], np.float32)])
    learned, token_kl = scores(roles, [prompt_ref("a")], [Rollout("a", (filtered,))], temperature=1.0)
    assert learned == [0.25]
    assert token_kl == [(0.0, 1.0)]


def _judged(rewards: list[float], *reasons: FinishReason) -> Judged:
    completions = tuple(Completion(np.array([5]), np.zeros(1, np.float32), reason, 0, "") for reason in reasons)
    return Judged([prompt_ref("a")], [Rollout("a", completions)], {}, torch.tensor(rewards), None, Counter(), {})


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_rewards_are_scaled_then_clipped_and_the_clipped_ones_counted() -> None:
    # Of 0 and 4 the standard deviation is 2: rewards -6, 1, 4 become -3, 0.5, 2.
    scale = RunningScale().updated(rewards=torch.tensor([0.0, 4.0]))
    batch = _judged([-6.0, 1.0, 4.0], STOP, STOP, STOP)
    for bound, shaped, num_clipped in ((2.0, [-2.0, 0.5, 2.0], 1), (0.25, [-0.25, 0.25, 0.25], 3)):
        algorithm = Algorithm(scale_rewards=True, clip_reward=bound)
        assert shape(batch.rewards, scale, algorithm).tolist() == shaped
        assert learning_counts(batch, scale, algorithm) == {"counts/rewards_clipped": num_clipped}
    plain = Algorithm(clip_reward=5.0)
    assert shape(batch.rewards, scale, plain).tolist() == [-5.0, 1.0, 4.0]
    assert learning_counts(batch, scale, plain) == {"counts/rewards_clipped": 1}


def test_without_a_bound_nothing_is_clipped_and_nothing_counted() -> None:
    unbounded = Algorithm(clip_reward=None)
    batch = _judged([1e6], STOP)
    assert shape(batch.rewards, RunningScale(), unbounded).tolist() == [1e6]
    assert learning_counts(batch, RunningScale(), unbounded) == {}


def test_completions_that_are_left_out_of_the_losses_are_counted() -> None:
    batch = _judged([1.0, 2.0, 3.0], STOP, LENGTH, LENGTH)
    masked = Algorithm(clip_reward=None, mask_truncated=True)
    assert learning_counts(batch, RunningScale(), masked) == {"counts/completions_left_out": 2}


def test_a_learners_metrics_carry_its_role_and_counts_carry_it_last() -> None:
    # `counts/` is what reports add up by.
    assert metric_name("critic", "loss") == "critic/loss"
    assert metric_name("critic", "counts/steps_skipped") == "counts/steps_skipped:critic"
    assert metric_name("policy", "mismatch/max") == "mismatch/max"
