"""Our functions against what TRL's own trainers gave for the same tensors (`trl_golden.py` writes the file)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms.aggregation import Normalisers, aggregate
from pipeline.algorithms.group_advantages import dr_grpo, grpo, rloo
from pipeline.algorithms.kl import kl_k1, kl_k3
from pipeline.algorithms.off_policy import importance_weights
from pipeline.algorithms.surrogates import policy_surrogate
from pipeline.config import Aggregation, ImportanceCorrection, PolicyLossName

GOLDEN = json.loads(Path(__file__).with_name("trl_golden.json").read_text())
SIZE, BETA = GOLDEN["settings"]["group_size"], GOLDEN["settings"]["beta"]
TRL_EPS = 1e-4  # which TRL adds to the standard deviation

PPO: dict[str, Any] = {"name": PolicyLossName.PPO, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
DAPO = PPO | {"clip_high": 0.28}
# Each case of the file as our settings: surrogate, aggregation, what is corrected, weight of k3 in the loss.
LOSSES: dict[str, tuple[dict[str, Any], Aggregation, ImportanceCorrection, float]] = {
    "grpo": (PPO, Aggregation.SEQUENCE_MEAN, ImportanceCorrection.NONE, 0.0),
    "grpo_with_kl": (PPO, Aggregation.SEQUENCE_MEAN, ImportanceCorrection.NONE, BETA),
    "dapo": (DAPO, Aggregation.TOKEN_MEAN, ImportanceCorrection.NONE, 0.0),
    "dapo_with_kl": (DAPO, Aggregation.TOKEN_MEAN, ImportanceCorrection.NONE, BETA),
    "dual_clip": (PPO | {"dual_clip": 1.5}, Aggregation.TOKEN_MEAN, ImportanceCorrection.NONE, 0.0),
    "dr_grpo": (PPO, Aggregation.FIXED_LENGTH, ImportanceCorrection.NONE, 0.0),
    "gspo": (
        PPO | {"name": PolicyLossName.GSPO, "clip_low": 0.05, "clip_high": 0.1},
        Aggregation.SEQUENCE_MEAN,
        ImportanceCorrection.NONE,
        0.0,
    ),
    "cispo": (
        PPO | {"name": PolicyLossName.CISPO, "clip_low": 1.0, "clip_high": 0.5},
        Aggregation.TOKEN_MEAN,
        ImportanceCorrection.NONE,
        0.0,
    ),
    "dapo_with_token_weights": (PPO, Aggregation.TOKEN_MEAN, ImportanceCorrection.TOKEN, 0.0),
    "dapo_with_sequence_weights": (PPO, Aggregation.TOKEN_MEAN, ImportanceCorrection.SEQUENCE, 0.0),
    "dapo_with_icepop": (PPO, Aggregation.TOKEN_MEAN, ImportanceCorrection.ICEPOP, 0.0),
}


def _given(name: str) -> Tensor:
    return torch.tensor(GOLDEN["inputs"][name], dtype=torch.float64)


def _mask() -> Tensor:
    return torch.arange(_given("policy").shape[1])[None] < _given("lengths")[:, None]


def _normalisers(max_length: int) -> Normalisers:
    mask = _mask()
    return Normalisers(num_tokens=float(mask.sum()), num_completions=float(len(mask)), max_length=max_length)


def _trl_advantages(name: str) -> Tensor:
    return torch.tensor(GOLDEN["advantages"][name], dtype=torch.float64)


def test_the_cases_of_the_file_are_the_cases_of_this_test() -> None:
    assert GOLDEN["losses"].keys() == LOSSES.keys()
    assert GOLDEN["versions"]["trl"]


def test_grpo_is_trls_but_for_the_constant_between_the_two_standard_deviations() -> None:
    factor = math.sqrt((SIZE - 1) / SIZE)
    ours = grpo(completion_rewards=_given("rewards").view(-1, SIZE), eps=TRL_EPS * factor) * factor
    torch.testing.assert_close(ours.flatten(), _trl_advantages("grpo"))


def test_dr_grpo_and_rloo_are_trls() -> None:
    rewards = _given("rewards").view(-1, SIZE)
    torch.testing.assert_close(dr_grpo(completion_rewards=rewards).flatten(), _trl_advantages("dr_grpo"))
    torch.testing.assert_close(rloo(completion_rewards=rewards).flatten(), _trl_advantages("rloo"))


def test_rloo_with_the_kl_in_the_reward_is_trls() -> None:
    kl = kl_k1(policy_logprobs=_given("proximal"), reference_logprobs=_given("reference")) * _mask()
    rewards = (_given("rewards") - BETA * kl.sum(1)).view(-1, SIZE)
    torch.testing.assert_close(rloo(completion_rewards=rewards).flatten(), _trl_advantages("rloo_with_kl"))


def test_a_group_of_one_learns_as_little_in_trl() -> None:
    rewards = _given("rewards")[:3, None]
    for name, estimator in (("grpo_of_one", grpo), ("rloo_of_one", rloo)):
        assert torch.equal(estimator(completion_rewards=rewards).flatten(), _trl_advantages(name))
        assert not _trl_advantages(name).any()


@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradient_are_trls(case: str) -> None:
    surrogate, aggregation, correction, beta = LOSSES[case]
    policy, mask = _given("policy").requires_grad_(), _mask()
    values = policy_surrogate(
        policy_logprobs=policy,
        proximal_logprobs=_given("proximal"),
        advantages=_trl_advantages("grpo")[:, None].expand(mask.shape),
        mask=mask,
        **surrogate,
    ).loss
    weights = importance_weights(
        correction=correction,
        proximal_logprobs=_given("proximal"),
        behaviour_logprobs=_given("behaviour"),
        mask=mask,
        **GOLDEN["off_policy"],
    ).weights
    kl = kl_k3(policy_logprobs=policy, reference_logprobs=_given("reference"))
    loss = aggregate(
        aggregation=aggregation,
        values=values * weights + beta * kl,
        mask=mask,
        normalisers=_normalisers(GOLDEN["settings"]["max_length"]),
    )
    (gradient,) = torch.autograd.grad(loss, policy)
    golden = GOLDEN["losses"][case]
    torch.testing.assert_close(loss.item(), golden["loss"])
    torch.testing.assert_close(gradient, torch.tensor(golden["gradient"], dtype=torch.float64))
    if "weights" in golden:
        assert correction is not ImportanceCorrection.NONE
        theirs = torch.tensor(golden["weights"], dtype=torch.float64)
        torch.testing.assert_close(weights, theirs.expand(mask.shape) * mask)


def test_on_its_own_samples_the_gradient_of_rloo_is_trls() -> None:
    # TRL's surrogate is of whole completions, and its loss a sum over their tokens: a fixed length of one.
    policy, mask = _given("proximal").requires_grad_(), _mask()
    surrogate = policy_surrogate(
        policy_logprobs=policy,
        proximal_logprobs=_given("proximal"),
        advantages=_trl_advantages("rloo")[:, None].expand(mask.shape),
        mask=mask,
        **PPO,
    )
    loss = aggregate(
        aggregation=Aggregation.FIXED_LENGTH, values=surrogate.loss, mask=mask, normalisers=_normalisers(1)
    )
    (gradient,) = torch.autograd.grad(loss, policy)
    golden = GOLDEN["rloo_on_its_own_samples"]["gradient"]
    torch.testing.assert_close(gradient, torch.tensor(golden, dtype=torch.float64))
