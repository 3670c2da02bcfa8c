"""Experience by hand: GAE with the KL in the reward, GRPO with and without it, padding, weightless rows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.config import AdvantageEstimator, Algorithm, Kl, KlEstimator, KlPlace
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


def test_a_group_holds_what_was_sampled_and_is_padded_to_its_own_length() -> None:
    (a, b), _ = _made(GAE)
    assert (a.prompt_id, b.prompt_id, a.weight) == ("a", "b", 1.0)
    assert a.token_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert a.mask.tolist() == [[True, True, True], [True, False, False]]
    assert a.behaviour_logprobs.tolist() == [[-1, -2, -3], [-1, 0, 0]]
    assert a.reference_logprobs.tolist() == [[-2, -2, -1], [-1.5, 0, 0]]
    assert a.values.tolist() == [[2, 1, 3], [1, 0, 0]]
    assert b.token_ids.shape == b.mask.shape == b.values.shape == (2, 2)
    for column in ("behaviour_logprobs", "reference_logprobs", "values", "advantages", "returns"):
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
    assert batch.reference_logprobs.dtype == torch.float32 and batch.mask.dtype == torch.bool


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
