"""The parts of a step's reward: weighted by schedule and multiplier, normalised apart, and told of."""

import dataclasses
import json
import math
from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.loop.checkpoints import LoopState
from actors.loop.judge import OVERLONG, Judged, judge
from actors.loop.reward_parts import learned_rewards, next_multipliers, part_metrics
from actors.loop.sampler import Sampled
from pipeline.algorithms.kl import FixedKl
from pipeline.algorithms.shaping import RunningScale, combine
from pipeline.config import Algorithm, Kl, PartNormalisation, load_recipe
from pipeline.records import Completion, FinishReason, Rollout
from tests.prompts import prompt_ref

NAN = math.nan
GDPO = Algorithm.model_validate({"advantage": "dr_grpo", "part_normalisation": "group"})
SUMMED = Algorithm.model_validate({"advantage": "dr_grpo"})


ROLES = cast(Any, type("RolesWithoutRewardModel", (), {"reward": None}))()


def _rollout(name: str, *texts: str) -> Rollout:
    made = (Completion(np.array([1]), np.zeros(1, np.float32), FinishReason.STOP, 0, text) for text in texts)
    return Rollout(name, tuple(made))


def _of_two_tasks() -> Sampled:
    """A group of two completions for each of two tasks: right, wrong and shorter."""
    refs = [prompt_ref(task, task=task, answer="four") for task in ("speech", "count")]
    return Sampled(refs, [_rollout(task, "four", "one") for task in ("speech", "count")], [], {})


BY_TASK = "{contains: {weight: 2.0, tasks: {speech: 0.25, count: -3.0}}, length: {weight: 1.0, tasks: [speech, count]}}"


def _batch(weights: dict[str, float], **parts: list[float]) -> Judged:
    """Groups of two with these parts."""
    tensors = {name: torch.tensor(values) for name, values in parts.items()}
    unshaped = combine(parts={name: tensors[name] for name in weights}, weights=weights)
    names = "abc"[: len(unshaped) // 2]
    prompts, rollouts = [prompt_ref(name) for name in names], [_rollout(name, "x", "y") for name in names]
    return Judged(prompts, rollouts, tensors, unshaped, None, Counter(), {}, weights=weights)


def test_what_is_learned_is_the_sum_of_the_parts_or_of_the_normalised_ones() -> None:
    batch = _batch({"a": 3.0, "b": 1.0}, a=[0.0, 2.0, 1.0, 1.0], b=[10.0, 0.0, 0.0, 30.0], shown=[9.0] * 4)
    assert learned_rewards(batch, SUMMED).tolist() == [10.0, 6.0, 3.0, 33.0]
    # The batch of test_multi_reward: normalised apart the first group prefers its second completion.
    expected = [each / math.sqrt(2.5) for each in (-2.0, 2.0, -1.0, 1.0)]
    assert learned_rewards(batch, GDPO).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_penalty_on_length_is_added_to_either_as_it_is() -> None:
    parts = {"a": [0.0, 2.0, 0.0, 2.0], OVERLONG: [0.0, 0.0, -0.5, 0.0]}
    batch = _batch({"a": 3.0}, **parts)
    assert learned_rewards(batch, SUMMED).tolist() == [0.0, 6.0, -0.5, 6.0]
    assert learned_rewards(batch, GDPO).tolist() == pytest.approx([-1.0, 1.0, -1.5, 1.0], abs=1e-5)


def test_each_part_tells_its_mean_spread_weight_and_share() -> None:
    batch = _batch({"a": 2.0, "b": 1.0}, a=[0.0, 1.0, NAN, NAN], b=[4.0, 10.0, 1.0, 1.0], c=[1.0, 2.0, 3.0, 4.0])
    metrics = part_metrics(batch, SUMMED)
    # 2 a deviates by -1, 1 and b by -3, 3: shares of 1/4 and 3/4. c is shown, and weighs nothing.
    assert metrics == pytest.approx(
        {
            **{"reward/a": 0.5, "reward/b": 4.0, "reward/c": 2.5},
            **{"reward_std/a": 0.5, "reward_std/b": math.sqrt(13.5), "reward_std/c": math.sqrt(1.25)},
            **{"reward_weight/a": 2.0, "reward_weight/b": 1.0},
            **{"reward_share/a": 0.25, "reward_share/b": 0.75},
        }
    )
    # Normalised apart, they deviate by -2, 2 and -1, 1.
    apart = part_metrics(batch, GDPO)
    assert (apart["reward_share/a"], apart["reward_share/b"]) == pytest.approx((2 / 3, 1 / 3), abs=1e-5)


@pytest.mark.parametrize("algorithm", [SUMMED, GDPO], ids=["summed", "gdpo"])
def test_shares_add_up_to_one_with_the_penalty_and_are_those_of_what_is_learned(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, overlong = (torch.randn(6, generator=generator).tolist() for _ in range(3))
    a[1] = NAN
    batch = _batch({"a": 2.0, "b": 1.0}, a=a, b=b, **{OVERLONG: overlong})
    metrics = part_metrics(batch, algorithm)
    shares = {name: metrics[f"reward_share/{name}"] for name in ("a", "b", OVERLONG)}
    assert sum(shares.values()) == pytest.approx(1.0)
    groups = learned_rewards(batch, algorithm).view(3, 2)
    centred, penalty = (each - each.mean(1, keepdim=True) for each in (groups, torch.tensor(overlong).view(3, 2)))
    assert shares[OVERLONG] == pytest.approx(float((penalty * centred).sum() / centred.square().sum()), abs=1e-4)


def test_a_part_that_applies_to_nothing_has_its_weight_alone() -> None:
    metrics = part_metrics(_batch({"a": 1.0, "b": 1.0}, a=[NAN, NAN], b=[1.0, 1.0]), SUMMED)
    assert metrics == {"reward/b": 1.0, "reward_std/b": 0.0, "reward_weight/a": 1.0, "reward_weight/b": 1.0}


def test_weights_follow_their_schedule_and_the_multipliers() -> None:
    rewards = "{exact_match: {weight: {0: 1.0, 20: 0.2}}, wer: {weight: 2, floor: 0.9}, length: 0.5}"
    settings = load_recipe(None, [f"rlhf.rewards={rewards}"]).rlhf
    assert settings.weights_at(0) == settings.reward_weights == {"exact_match": 1.0, "wer": 2.0, "length": 0.5}
    assert settings.weights_at(5, {"wer": 3.0, "length": 9.0}) == pytest.approx(
        {"exact_match": 0.8, "wer": 3.0, "length": 0.5}
    )
    assert settings.weights_at(99)["exact_match"] == pytest.approx(0.2)


def test_a_batch_is_judged_by_the_weights_of_its_step() -> None:
    recipe = load_recipe(None, ["rlhf.rewards={contains: 1.0}", "rlhf.algorithm.advantage=rloo"])
    sampled = Sampled([prompt_ref("a")], [_rollout("a", "yes", "no")], [], {})
    first, later = (judge(ROLES, recipe, sampled, weights=weights) for weights in (None, {"contains": 0.25}))
    assert first.weights == {"contains": 1.0} and later.weights == {"contains": 0.25}
    assert later.rewards.tolist() == (first.rewards / 4).tolist() and first.rewards.tolist() == [1.0, 0.0]
    assert later.select([0], reason="x").joined(later).weights == {"contains": 0.25}


def test_a_weight_is_multiplied_by_the_factor_of_the_rows_task() -> None:
    recipe = load_recipe(None, [f"rlhf.rewards={BY_TASK}", "rlhf.algorithm.advantage=rloo"])
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe
    found = judge(ROLES, recipe, _of_two_tasks(), weights={"contains": 4.0, "length": 0.0})
    assert found.parts["contains"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found.rewards.tolist() == [1.0, 0.0, -12.0, 0.0]
    alone = found.joined(found).select([3], reason="x")
    assert alone.rewards.tolist() == [-12.0, 0.0] and alone.weights_by_group()["contains"].tolist() == [-12.0]
    # The group normalises the value and not the weight: +-1 times 1 and -12, over the size of all four.
    normalised = [each / math.sqrt(72.5) for each in (1.0, -1.0, -12.0, 12.0)]
    assert learned_rewards(found, GDPO).tolist() == pytest.approx(normalised, abs=1e-5)
    # What distinguishes completions is of this part alone; that the groups differ in size does not matter.
    metrics = part_metrics(found, SUMMED)
    assert (metrics["reward_weight/contains"], metrics["reward_share/contains"]) == (4.0, 1.0)


def test_the_greedy_completion_has_the_weights_of_its_task() -> None:
    recipe = load_recipe(None, [f"rlhf.rewards={BY_TASK}", "rlhf.algorithm.advantage=remax"])
    sampled = _of_two_tasks()
    greedy = [_rollout(task, "four") for task in ("speech", "count")]
    found = judge(ROLES, recipe, dataclasses.replace(sampled, greedy=greedy), weights={"contains": 2.0, "length": 0.0})
    assert found.greedy is not None and found.greedy.tolist() == [0.5, -6.0]


def test_a_multiplier_rises_while_its_part_is_below_its_floor_and_falls_above_it() -> None:
    recipe = load_recipe(None, ["rlhf.rewards={wer: {weight: 2, floor: 0.5}, length: 1}", "rlhf.critic_warmup_steps=1"])
    settings, below = recipe.rlhf, _batch({"wer": 2.0}, wer=[0.0, NAN])
    above = _batch({"wer": 2.0}, wer=[1.0, 1.0])
    assert next_multipliers(settings, {}, below, 5) == pytest.approx({"wer": 2 * math.exp(0.1 * 2 * 0.5)})
    assert next_multipliers(settings, {"wer": 4.0}, above, 5) == pytest.approx({"wer": 4 * math.exp(-0.1 * 4 * 0.5)})
    # It holds while the policy waits for its critic, and where the part applied to nothing.
    assert next_multipliers(settings, {"wer": 4.0}, below, 0) == pytest.approx({"wer": 4.0})
    nothing = _batch({"wer": 2.0}, wer=[NAN, NAN])
    assert next_multipliers(settings, {"wer": 4.0}, nothing, 5) == pytest.approx({"wer": 4.0})


def test_multipliers_are_in_the_state_that_a_checkpoint_holds() -> None:
    state = LoopState(3, FixedKl(0.05), RunningScale(), multipliers={"wer": 1 / 3})
    stored = json.loads(json.dumps(state.to_json()))
    assert LoopState.from_json(stored, Kl()) == state
    del stored["multipliers"]  # of a checkpoint from before there were any
    assert LoopState.from_json(stored, Kl()).multipliers == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rlhf.algorithm={advantage: grpo, part_normalisation: group}", "advantage=grpo"),
        ("rlhf.algorithm={advantage: gae, part_normalisation: group}", "use dr_grpo"),
        ("rlhf.algorithm={advantage: rloo, part_normalisation: group, scale_rewards: true}", "normalised already"),
        ("rlhf.rewards={wer: {weight: 0, floor: 0.9}}", "the multiplier starts there"),
        ("rlhf.rewards={wer: {weight: {0: 1, 5: 2}, floor: 0.9}}", "the multiplier starts there"),
        ("rlhf.rewards={wer: {weight: {-1: 1}}}", "greater than or equal to 0"),
        ("rlhf.rewards={wer: {weight: 1, tasks: {speech: 0}}}", "tasks.speech=0: it would not count there"),
        ("rlhf.rewards={wer: {weight: 1, tasks: {speech: .inf}}}", "finite"),
        ("rlhf.rewards={wer: {weight: 1, tasks: {}}}", "at least 1"),
        ("rlhf.rewards={wer: {weight: {0: 0, 9: 0}}}", "without a part whose weight is not 0"),
    ],
)
def test_what_does_not_go_together_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(None, [override])


def test_a_schedule_survives_being_written_and_read() -> None:
    recipe = load_recipe(None, ["rlhf.rewards={wer: {weight: {0: 1.0, 20: 0.2}, tasks: [speech]}, length: 0.5}"])
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe
    assert GDPO.part_normalisation is PartNormalisation.GROUP
