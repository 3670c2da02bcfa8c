"""Experience by hand: every estimator, KL in the reward or not, proximal logprobs, padding, weightless rows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import AdvantageEstimator, Algorithm, Kl, KlEstimator, KlPlace, PolicyLossName
from pipeline.experience import collate_experience, make_experience
from pipeline.records import Completion, Experience, FinishReason, Rollout

NAN = math.nan
GAE = Algorithm(gamma=0.5, lam=0.5, whiten_advantages=False)
GRPO = Algorithm(advantage=AdvantageEstimator.GRPO, whiten_advantages=False)


def _completion(logprobs: list[float], reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(
        token_ids=np.arange(1, len(logprobs) + 1),
        behaviour_logprobs=np.array(logprobs, np.float32),
        finish_reason=reason,
        weights_version=0,
        text="",
    )


def _array(rows: list[list[float]]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


ROLLOUTS = [
    Rollout("a", (_completion([-1, -2, -3], FinishReason.LENGTH), _completion([-1]))),
    Rollout("b", (_completion([-1, -1]), _completion([-2, -4]))),
]
# What is padded may hold anything.
REFERENCE = [_array([[-2, -2, -1], [-1.5, NAN, NAN]]), _array([[-1, -1], [-1, -2]])]
ALONE = [each for each in AdvantageEstimator if each is not AdvantageEstimator.BEST_WORST]
"""Estimators whose advantages any loss but DPO's takes."""
VALUES = [_array([[2, 1, 3], [1, NAN, NAN]]), _array([[0, 0], [1, 2]])]
REWARDS = torch.tensor([4.0, 2.0, 1.0, 3.0])


def _made(algorithm: Algorithm, **changes: Any) -> tuple[list[Experience], dict[str, float]]:
    arguments: dict[str, Any] = {
        "rewards": REWARDS,
        "reference_logprobs": REFERENCE,
        "values": VALUES,
        "kl_weight": 0.5,
        **changes,
    }
    return make_experience(ROLLOUTS, algorithm=algorithm, **arguments)


def test_gae_with_the_kl_in_the_reward_by_hand() -> None:
    # gamma = lambda = 0.5, weight 0.5. KL a token is behaviour - reference.
    # a, first:  KL 1, 0, -2; rewards -0.5, 0, 4 + 1; values 2, 1, 3
    #   A_2 = 5 - 3 = 2;  A_1 = 0 + 0.5 * 3 - 1 + 0.25 * 2 = 1;  A_0 = -0.5 + 0.5 * 1 - 2 + 0.25 * 1 = -1.75
    # a, second: KL 0.5; reward 2 - 0.25; value 1;  A_0 = 0.75
    # b, first:  KL 0, 0; rewards 0, 1; values 0, 0;  A_1 = 1;  A_0 = 0.25 * 1 = 0.25
    # b, second: KL -1, -2; rewards 0.5, 3 + 1; values 1, 2;  A_1 = 4 - 2 = 2;  A_0 = 0.5 + 0.5 * 2 - 1 + 0.25 * 2 = 1
    (a, b), _ = _made(GAE)
    assert a.advantages.tolist() == [[-1.75, 1.0, 2.0], [0.75, 0.0, 0.0]]
    assert b.advantages.tolist() == [[0.25, 1.0], [1.0, 2.0]]
    assert a.returns.tolist() == [[0.25, 2.0, 5.0], [1.75, 0.0, 0.0]]  # advantages + values
    assert b.returns.tolist() == [[0.25, 1.0], [2.0, 4.0]]


def test_rewards_of_the_process_are_where_they_were_earned_and_sum_to_the_same() -> None:
    plain = Algorithm(advantage=AdvantageEstimator.REINFORCE, whiten_advantages=False, kl=Kl(weight=0))
    potentials = [_array([[1, 3, NAN], [NAN, NAN, NAN]]), _array([[0.5, NAN], [2, NAN]])]
    (a, b), _ = _made(plain, values=None, kl_weight=0.0, potentials=potentials)
    # Rewards to go of 1, 2, 4 - 3; of 2; of 0.5, 1 - 0.5; and of 2, 3 - 2.
    assert a.advantages.tolist() == [[4, 3, 1], [2, 0, 0]]
    assert b.advantages.tolist() == [[1, 0.5], [3, 1]]


def test_of_best_and_worst_a_group_keeps_these_two_and_a_flat_one_is_left_out() -> None:
    pairs = Algorithm(advantage=AdvantageEstimator.BEST_WORST, policy_loss=PolicyLossName.DPO, kl=Kl(weight=0))
    (a, b), statistics = _made(pairs, values=None, kl_weight=0.0, rewards=torch.tensor([2.0, 4.0, 3.0, 3.0]))
    assert statistics["counts/groups_without_pair"] == 1
    assert a.token_ids.tolist() == [[1, 0, 0], [1, 2, 3]]  # the second one is better
    assert a.mask.tolist() == [[True, False, False], [True, True, True]]
    assert a.reference_logprobs.tolist() == [[-1.5, 0, 0], [-2, -2, -1]]
    assert (a.num_learned, b.num_learned) == (2, 0) and not b.loss_mask.any()


def test_a_pair_is_as_long_as_its_longer_completion() -> None:
    pairs = Algorithm(advantage=AdvantageEstimator.BEST_WORST, policy_loss=PolicyLossName.DPO, kl=Kl(weight=0))
    groups = [Rollout("c", (_completion([-1]), _completion([-1] * 5), _completion([-1, -1])))]
    ((c,), _) = make_experience(
        groups,
        rewards=torch.tensor([1.0, 2.0, 3.0]),
        reference_logprobs=None,
        values=None,
        algorithm=pairs,
        kl_weight=0.0,
    )
    assert c.token_ids.tolist() == [[1, 2], [1, 0]]


def test_a_group_holds_what_was_sampled_and_is_padded_to_its_own_length() -> None:
    (a, b), _ = _made(GAE)
    assert (a.prompt_id, b.prompt_id, a.weight) == ("a", "b", 1.0)
    assert a.token_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert a.mask.tolist() == [[True, True, True], [True, False, False]]
    assert a.behaviour_logprobs.tolist() == [[-1, -2, -3], [-1, 0, 0]]
    assert a.reference_logprobs.tolist() == [[-2, -2, -1], [-1.5, 0, 0]]
    assert a.values.tolist() == [[2, 1, 3], [1, 0, 0]]
    assert b.token_ids.shape == b.mask.shape == b.values.shape == (2, 2)
    for column in ("behaviour_logprobs", "proximal_logprobs", "reference_logprobs", "values", "advantages", "returns"):
        assert getattr(a, column).dtype == np.float32
    assert (a.token_ids.dtype, a.mask.dtype) == (np.int64, np.bool_)


def test_the_statistics_by_hand() -> None:
    _, statistics = _made(GAE)
    advantages = [-1.75, 1, 2, 0.75, 0.25, 1, 1, 2]
    assert statistics["kl/reference"] == pytest.approx((1 + 0 - 2 + 0.5 + 0 + 0 - 1 - 2) / 8)
    assert statistics["kl/reference_completion"] == pytest.approx((-1 + 0.5 + 0 - 3) / 4)
    assert statistics["advantage/mean"] == pytest.approx(sum(advantages) / 8)
    assert statistics["advantage/std"] == pytest.approx(np.std(advantages))
    # Returns minus values are the advantages here.
    assert statistics["value/explained_variance"] == pytest.approx(
        1 - np.var(advantages) / np.var([0.25, 2, 5, 1.75, 0.25, 1, 2, 4])
    )
    assert statistics["completion/length"] == 2.0
    assert statistics["completion/length_stop_fraction"] == 0.25


def test_whitening_is_over_all_real_tokens_of_the_step_and_leaves_returns_alone() -> None:
    plain, plain_statistics = _made(GAE)
    white, white_statistics = _made(GAE.model_copy(update={"whiten_advantages": True}))
    before = np.concatenate([group.advantages[group.mask] for group in plain])
    after = np.concatenate([group.advantages[group.mask] for group in white])
    assert np.allclose(after, (before - before.mean()) / before.std(), atol=1e-5)
    for one, other in zip(plain, white, strict=True):
        assert not other.advantages[~other.mask].any()
        assert np.array_equal(one.returns, other.returns)
    assert white_statistics == plain_statistics  # of what the advantages were


def test_with_the_kl_in_the_loss_the_rewards_are_left_alone() -> None:
    in_loss = GAE.model_copy(update={"kl": Kl(place=KlPlace.LOSS, estimator=KlEstimator.K3)})
    (a, _), statistics = _made(in_loss)
    assert a.advantages[1, 0] == 2 - 1  # reward - value
    assert a.reference_logprobs.tolist() == [[-2, -2, -1], [-1.5, 0, 0]]  # for the loss
    assert statistics["kl/reference"] == pytest.approx(-3.5 / 8)  # measured all the same


def test_without_a_reference_there_is_no_kl() -> None:
    (a, _), statistics = _made(GAE, reference_logprobs=None)
    assert a.advantages[1, 0] == 2 - 1
    assert np.array_equal(a.reference_logprobs, a.behaviour_logprobs)
    assert statistics["kl/reference"] == statistics["kl/reference_completion"] == 0.0


def test_the_estimator_of_the_kl_is_the_one_asked_for() -> None:
    k2 = GAE.model_copy(update={"kl": Kl(estimator=KlEstimator.K2)})
    (a, _), _ = _made(k2)
    assert a.returns[1, 0] == 2 - 0.5 * 0.5**2 / 2  # one token: return = reward - weight * KL


def _grpo(algorithm: Algorithm) -> tuple[Experience, dict[str, float]]:
    """Rewards 1, 4, 4; KL of the completions 2, 2, -4, at weight 0.5."""
    rollout = Rollout("a", (_completion([-1, -1]), _completion([-1]), _completion([-3, -3])))
    groups, statistics = make_experience(
        [rollout],
        rewards=torch.tensor([1.0, 4.0, 4.0]),
        reference_logprobs=[_array([[-2, -2], [-3, NAN], [-1, -1]])],
        values=None,
        algorithm=algorithm,
        kl_weight=0.5,
    )
    return groups[0], statistics


def test_grpo_with_the_kl_in_the_reward_by_hand() -> None:
    # Rewards 1 - 1, 4 - 1, 4 + 2: mean 3, standard deviation sqrt(6).
    group, _ = _grpo(GRPO)
    size = 3 / math.sqrt(6)
    assert np.allclose(group.advantages, [[-size, -size], [0, 0], [size, size]], atol=1e-5)
    assert not group.returns.any() and not group.values.any()


def test_grpo_with_the_kl_in_the_loss_by_hand() -> None:
    # Rewards 1, 4, 4: mean 3, standard deviation sqrt(2).
    group, statistics = _grpo(GRPO.model_copy(update={"kl": Kl(place=KlPlace.LOSS, estimator=KlEstimator.K3)}))
    low, high = -2 / math.sqrt(2), 1 / math.sqrt(2)
    assert np.allclose(group.advantages, [[low, low], [high, 0], [high, high]], atol=1e-5)
    assert statistics["value/explained_variance"] == 0.0  # there is no critic


def test_grpo_compares_within_groups_alone() -> None:
    groups, _ = _made(GRPO.model_copy(update={"kl": Kl(weight=0)}), kl_weight=0.0, values=None)
    shifted, _ = _made(
        GRPO.model_copy(update={"kl": Kl(weight=0)}),
        kl_weight=0.0,
        values=None,
        rewards=REWARDS + torch.tensor([0.0, 0.0, 100.0, 100.0]),
    )
    for one, other in zip(groups, shifted, strict=True):
        assert np.allclose(one.advantages, other.advantages, atol=1e-5)
    assert np.allclose(groups[0].advantages, [[1, 1, 1], [-1, 0, 0]], atol=1e-5)


# KL in the reward at weight 0.5: rewards per token
#   a: -0.5, 0, 5 | 1.75    b: 0, 1 | 0.5, 4
# and of whole completions a: 4.5, 1.75, b: 1, 4.5.
WITHOUT_CRITIC: dict[AdvantageEstimator, list[list[list[float]]]] = {
    # Each minus the mean of its group, 3.125 and 2.75.
    AdvantageEstimator.DR_GRPO: [[[1.375] * 3, [-1.375, 0, 0]], [[-1.75] * 2, [1.75] * 2]],
    # Each minus the other.
    AdvantageEstimator.RLOO: [[[2.75] * 3, [-2.75, 0, 0]], [[-3.5] * 2, [3.5] * 2]],
    # To go, minus the greedy rewards 1 and -1.
    AdvantageEstimator.REMAX: [[[3.5, 4, 4], [0.75, 0, 0]], [[2, 2], [5.5, 5]]],
    # To go, gamma 0.5.
    AdvantageEstimator.REINFORCE: [[[0.75, 2.5, 5], [1.75, 0, 0]], [[0.5, 1], [2.5, 4]]],
}


def _estimated(estimator: AdvantageEstimator, **changes: Any) -> tuple[list[Experience], dict[str, float]]:
    gamma = 0.5 if estimator.discounts else 1.0
    arguments: dict[str, Any] = {"values": None, "greedy_rewards": torch.tensor([1.0, -1.0]), **changes}
    return _made(Algorithm(advantage=estimator, gamma=gamma, whiten_advantages=None), **arguments)


@pytest.mark.parametrize("estimator", WITHOUT_CRITIC)
def test_estimators_without_a_critic_by_hand(estimator: AdvantageEstimator) -> None:
    groups, _ = _estimated(estimator)
    for group, expected in zip(groups, WITHOUT_CRITIC[estimator], strict=True):
        assert np.allclose(group.advantages, expected)
        assert not group.returns.any() and not group.values.any()


def test_a2c_by_hand() -> None:
    # The discounted rewards to go of above are the returns; advantages are what the values 2, 1, 3 | 1 and 0, 0 | 1, 2
    # leave of them.
    groups, _ = _estimated(AdvantageEstimator.A2C, values=VALUES)
    assert groups[0].returns.tolist() == [[0.75, 2.5, 5], [1.75, 0, 0]]
    assert groups[0].advantages.tolist() == [[-1.25, 1.5, 2], [0.75, 0, 0]]
    assert groups[1].advantages.tolist() == [[0.5, 1], [1.5, 2]]


@pytest.mark.parametrize(
    ("estimator", "plain"),
    [
        (AdvantageEstimator.REINFORCE_PLUS_PLUS, AdvantageEstimator.REINFORCE),
        (AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE, AdvantageEstimator.DR_GRPO),
    ],
)
@pytest.mark.parametrize("whiten", [None, True])
def test_reinforce_plus_plus_is_white_and_whitened_once(
    estimator: AdvantageEstimator, plain: AdvantageEstimator, whiten: bool | None
) -> None:
    groups, statistics = _made(Algorithm(advantage=estimator, whiten_advantages=whiten), values=None)
    raw, _ = _made(Algorithm(advantage=plain), values=None)
    flat, raw_flat = (np.concatenate([group.advantages[group.mask] for group in each]) for each in (groups, raw))
    assert np.allclose(flat, (raw_flat - raw_flat.mean()) / raw_flat.std(), atol=1e-5)
    assert statistics["advantage/std"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("estimator", [each for each in ALONE if not each.is_white])
@pytest.mark.parametrize("whiten", [None, True, False])
def test_only_gae_is_whitened_unless_one_says_so(estimator: AdvantageEstimator, whiten: bool | None) -> None:
    arguments: dict[str, Any] = {"values": VALUES, "greedy_rewards": torch.tensor([1.0, -1.0])}
    groups, _ = _made(Algorithm(advantage=estimator, whiten_advantages=whiten), **arguments)
    flat = np.concatenate([group.advantages[group.mask] for group in groups])
    is_expected = estimator is AdvantageEstimator.GAE if whiten is None else whiten
    assert np.allclose([flat.mean(), flat.std()], [0, 1], atol=1e-5) == is_expected


@pytest.mark.parametrize("estimator", ALONE)
def test_every_estimator_has_advantages_on_real_tokens_alone(estimator: AdvantageEstimator) -> None:
    arguments: dict[str, Any] = {"values": VALUES, "greedy_rewards": torch.tensor([1.0, -1.0])}
    groups, statistics = _made(Algorithm(advantage=estimator), **arguments)
    for group in groups:
        assert group.advantages.dtype == np.float32
        assert not group.advantages[~group.mask].any()
        assert np.isfinite(group.advantages).all() and group.advantages.any()
    assert all(math.isfinite(value) for value in statistics.values())


PROXIMAL = [_array([[-1.5, -2, -3], [-1, NAN, NAN]]), _array([[-1, -1], [-2, -3]])]


def test_the_kl_is_measured_with_the_policys_own_logprobs_where_they_are_known() -> None:
    (a, b), statistics = _made(GAE, proximal_logprobs=PROXIMAL)
    assert a.proximal_logprobs.tolist() == [[-1.5, -2, -3], [-1, 0, 0]]
    assert a.behaviour_logprobs.tolist() == [[-1, -2, -3], [-1, 0, 0]]
    assert b.proximal_logprobs.tolist() == [[-1, -1], [-2, -3]]
    # KL 0.5, 0, -2, 0.5 and 0, 0, -1, -1: two tokens differ from those of the behaviour.
    assert statistics["kl/reference"] == pytest.approx((0.5 + 0 - 2 + 0.5 + 0 + 0 - 1 - 1) / 8)
    # b, second: rewards 0.5, 3 + 0.5; values 1, 2; A_1 = 1.5; A_0 = 0.5 + 0.5 * 2 - 1 + 0.25 * 1.5 = 0.875
    assert b.advantages[1].tolist() == [0.875, 1.5]


def test_the_mismatch_of_sampling_and_training_by_hand() -> None:
    # proximal - behaviour is -0.5 and 1 on two of 8 tokens, 0 on the others; k3 = e^d - 1 - d.
    _, statistics = _made(GAE, proximal_logprobs=PROXIMAL)
    assert statistics["mismatch/mean"] == pytest.approx(1.5 / 8)
    assert statistics["mismatch/max"] == 1.0
    assert statistics["mismatch/kl"] == pytest.approx((math.exp(-0.5) - 0.5 + math.e - 2) / 8)


def test_a_policy_is_at_no_distance_from_itself_whatever_filters_its_samples_went_through() -> None:
    # The filters left half of the probability: behaviour logprobs are ln 2 above the raw ones, which the reference has.
    raw = np.array([-1.0, -2.0], np.float32)
    filtered = replace(_completion([-1 + math.log(2), -2 + math.log(2)]), raw_logprobs=raw)
    (group,), statistics = make_experience(
        [Rollout("a", (filtered,))],
        rewards=torch.tensor([1.0]),
        reference_logprobs=[raw[None]],
        values=[_array([[0, 0]])],
        algorithm=Algorithm(whiten_advantages=False, lam=1.0),
        kl_weight=0.5,
    )
    assert statistics["kl/reference"] == statistics["kl/reference_completion"] == 0.0
    assert group.returns.tolist() == [[1.0, 1.0]]  # no KL in the reward either
    assert np.array_equal(group.proximal_logprobs[0], raw)
    assert group.behaviour_logprobs[0].tolist() == filtered.behaviour_logprobs.tolist()
    assert not [name for name in statistics if name.startswith("mismatch")]


def test_without_proximal_logprobs_those_of_the_behaviour_are_the_policys_own_and_nothing_is_compared() -> None:
    (a, _), statistics = _made(GAE)
    assert np.array_equal(a.proximal_logprobs, a.behaviour_logprobs)
    assert not [name for name in statistics if name.startswith("mismatch")]


@pytest.mark.parametrize(
    ("estimator", "changes", "message"),
    [
        (AdvantageEstimator.GAE, {"values": None}, "advantage=gae needs the critic's values"),
        (AdvantageEstimator.A2C, {"values": None}, "advantage=a2c needs the critic's values"),
        (AdvantageEstimator.REMAX, {"greedy_rewards": None}, "greedy_rewards of 2 prompts, but got None"),
        (AdvantageEstimator.REMAX, {"greedy_rewards": torch.zeros(4)}, "greedy_rewards of 2 prompts, but got 4"),
        (AdvantageEstimator.RLOO, {"rewards": torch.zeros(3)}, "3 rewards for 4 completions"),
    ],
)
def test_what_an_estimator_lacks_is_named(estimator: AdvantageEstimator, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _estimated(estimator, **changes)


def test_groups_of_different_sizes_cannot_be_compared_in_one_table() -> None:
    uneven = [Rollout("a", ROLLOUTS[0].completions + ROLLOUTS[1].completions[:1]), ROLLOUTS[1]]
    arguments: dict[str, Any] = {"reference_logprobs": None, "values": None, "kl_weight": 0.0}
    with pytest.raises(ValueError, match=r"advantage=grpo needs groups of one size, but got sizes \[2, 3\]"):
        make_experience(uneven, rewards=torch.zeros(5), algorithm=GRPO, **arguments)
    plain = Algorithm(advantage=AdvantageEstimator.REINFORCE)
    groups, _ = make_experience(uneven, rewards=torch.arange(5.0), algorithm=plain, **arguments)
    assert [group.advantages[:, 0].tolist() for group in groups] == [[0.0, 1.0, 2.0], [3.0, 4.0]]


def test_a_longer_group_beside_it_changes_nothing_in_a_group() -> None:
    alone, _ = make_experience(
        ROLLOUTS[1:],
        rewards=REWARDS[2:],
        reference_logprobs=REFERENCE[1:],
        values=VALUES[1:],
        algorithm=GAE,
        kl_weight=0.5,
    )
    together = _made(GAE)[0][1]
    for column in ("token_ids", "mask", "advantages", "returns", "values"):
        assert np.array_equal(getattr(alone[0], column), getattr(together, column))


def test_collated_groups_are_stacked_and_padded() -> None:
    groups, _ = _made(GAE)
    batch = collate_experience(groups, device=torch.device("cpu"))
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False], [True, True, False]]
    assert batch.advantages.tolist() == [[-1.75, 1, 2], [0.75, 0, 0], [0.25, 1, 0], [1, 2, 0]]
    assert batch.returns.tolist() == [[0.25, 2, 5], [1.75, 0, 0], [0.25, 1, 0], [2, 4, 0]]
    assert batch.behaviour_logprobs.tolist() == [[-1, -2, -3], [-1, 0, 0], [-1, -1, 0], [-2, -4, 0]]
    assert torch.equal(batch.proximal_logprobs, batch.behaviour_logprobs)
    assert batch.reference_logprobs.dtype == torch.float32 and batch.mask.dtype == torch.bool


LEFT_OUT = [[True, False], [False, False]]  # the first completion met the length limit


def test_truncated_completions_are_left_out_of_the_loss_where_one_says_so_and_only_there() -> None:
    groups, _ = _made(GAE.model_copy(update={"mask_truncated": True}))
    assert [group.left_out.tolist() for group in groups if group.left_out is not None] == LEFT_OUT
    assert groups[0].mask.tolist() == [[True] * 3, [True, False, False]]  # they run along
    assert groups[0].loss_mask.tolist() == [[False] * 3, [True, False, False]]
    assert [group.num_learned for group in groups] == [1, 2]
    batch = collate_experience(groups, device=torch.device("cpu"))
    assert batch.mask.tolist() == [[False] * 3, [True, False, False], [True, True, False], [True, True, False]]
    everywhere, _ = _made(GAE)
    assert [group.num_learned for group in everywhere] == [2, 2]
    for group, other in zip(groups, everywhere, strict=True):
        assert np.array_equal(other.loss_mask, other.mask)
        assert np.array_equal(other.advantages, group.advantages)


@pytest.mark.parametrize("estimator", [each for each in ALONE if each.needs_group and not each.is_white])
def test_the_reward_of_a_completion_that_is_left_out_counts_in_its_group(estimator: AdvantageEstimator) -> None:
    plain, _ = _made(Algorithm(advantage=estimator), values=None)
    masked, _ = _made(Algorithm(advantage=estimator, mask_truncated=True), values=None)
    assert np.array_equal(plain[0].advantages[1], masked[0].advantages[1]) and plain[0].advantages[1, 0] != 0


@pytest.mark.parametrize(
    "estimator",
    [
        AdvantageEstimator.GAE,
        AdvantageEstimator.REINFORCE_PLUS_PLUS,
        AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE,
    ],
)
def test_whitening_is_over_the_tokens_that_are_learned_from(estimator: AdvantageEstimator) -> None:
    groups, _ = _made(Algorithm(advantage=estimator, mask_truncated=True))
    learned = np.concatenate([group.advantages[group.loss_mask] for group in groups])
    assert len(learned) == 5
    assert np.allclose([learned.mean(), learned.std()], [0, 1], atol=1e-5)


def test_rows_without_weight_are_masked_and_those_beside_them_are_not() -> None:
    groups, _ = _made(GAE)
    batch = collate_experience([groups[0], replace(groups[1], weight=0.0)], device=torch.device("cpu"))
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [False] * 3]
    assert groups[1].mask.all()  # the record itself is left alone


def test_a_batch_of_nothing_but_weightless_rows_has_no_real_token() -> None:
    groups, _ = _made(GAE)
    batch = collate_experience([replace(group, weight=0.0) for group in groups], device=torch.device("cpu"))
    assert batch.mask.shape == (4, 3)
    assert not batch.mask.any()


def test_a_completion_without_a_reward_is_left_out_of_the_loss_and_whitening_and_changes_no_other() -> None:
    without = torch.tensor([False, True, False, False])
    groups, _ = _made(GAE, unrewarded=without)
    assert [group.loss_mask.any(1).tolist() for group in groups] == [[True, False], [True, True]]
    for group, other in zip(groups, _made(GAE)[0], strict=True):
        assert np.array_equal(group.advantages, other.advantages)
