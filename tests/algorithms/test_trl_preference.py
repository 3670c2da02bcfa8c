"""Our preference losses against what TRL's own trainers gave for the same logprobs (`trl_preference_golden.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms.direct_preference import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from pipeline.algorithms.kahneman_tversky import apo_zero_loss, kl_baseline, kto_loss
from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.algorithms.reference_free import orpo_loss, simpo_loss

GOLDEN = json.loads(Path(__file__).with_name("trl_preference_golden.json").read_text())
SETTINGS: dict[str, float] = GOLDEN["settings"]
BETA, SMOOTHING, GAMMA = SETTINGS["beta"], SETTINGS["label_smoothing"], SETTINGS["gamma"]


def _given(name: str) -> Tensor:
    return torch.tensor(GOLDEN["inputs"][name], dtype=torch.float64)


LENGTHS = _given("lengths").long()
NUM = len(LENGTHS) // 2
IS_GOOD = torch.arange(2 * NUM) < NUM
SHARED: dict[str, Any] = {"weight": torch.ones(NUM, dtype=torch.float64), "total_weight": float(NUM)}
PLAIN: dict[str, Any] = SHARED | {"margin": torch.zeros(NUM, dtype=torch.float64)}


def _against_reference(policy: Tensor) -> dict[str, Tensor]:
    chosen, rejected = (policy - _given("reference")).sum(1).chunk(2)
    return {"chosen": chosen, "rejected": rejected}


def _means(policy: Tensor) -> dict[str, Tensor]:
    chosen, rejected = (policy.sum(1) / LENGTHS).chunk(2)
    return {"chosen": chosen, "rejected": rejected}


def _sums(policy: Tensor) -> dict[str, Tensor]:
    chosen, rejected = policy.sum(1).chunk(2)
    return {"chosen": chosen, "rejected": rejected}


def _likelihood(policy: Tensor) -> Tensor:
    return negative_log_likelihood(logprobs=policy[:NUM], num_tokens=float(LENGTHS[:NUM].sum()))


def _judged(policy: Tensor) -> dict[str, Any]:
    sides = torch.where(IS_GOOD, SETTINGS["desirable_weight"], SETTINGS["undesirable_weight"]).double()
    ratios = (policy - _given("reference")).sum(1)
    return {"log_ratios": ratios, "is_good": IS_GOOD, "weight": sides, "total_weight": 2.0 * NUM, "beta": BETA}


def _baseline() -> float:
    ratios = (_given("kl_policy") - _given("kl_reference")).sum(1)
    return kl_baseline(sum_log_ratios=float(ratios.sum()), num=len(ratios))


def _dpo(policy: Tensor) -> Tensor:
    return dpo_loss(**_against_reference(policy), **PLAIN, beta=BETA)


def _simpo(policy: Tensor, **options: Any) -> Tensor:
    return simpo_loss(**_means(policy), **PLAIN, beta=BETA, gamma=GAMMA, **options)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "dpo": _dpo,
    "dpo_with_sft": lambda policy: _dpo(policy) + SETTINGS["sft_weight"] * _likelihood(policy),
    "dpo_smoothed_without_reference": lambda policy: dpo_loss(
        **_sums(policy), **PLAIN, beta=BETA, label_smoothing=SMOOTHING
    ),
    "robust": lambda policy: robust_dpo_loss(
        **_against_reference(policy), **PLAIN, beta=BETA, label_smoothing=SMOOTHING
    ),
    "hinge": lambda policy: hinge_loss(**_against_reference(policy), **PLAIN, beta=BETA),
    "ipo": lambda policy: ipo_loss(
        **_against_reference(policy),
        **SHARED,
        chosen_lengths=LENGTHS[:NUM],
        rejected_lengths=LENGTHS[NUM:],
        beta=BETA,
    ),
    "simpo": _simpo,
    "simpo_smoothed": lambda policy: _simpo(policy, label_smoothing=SMOOTHING),
    "simpo_with_sft": lambda policy: _simpo(policy) + SETTINGS["sft_weight"] * _likelihood(policy),
    "orpo": lambda policy: orpo_loss(**_means(policy), **SHARED, beta=BETA) + _likelihood(policy),
    "kto": lambda policy: kto_loss(**_judged(policy), baseline=_baseline()),
    "apo_zero": lambda policy: apo_zero_loss(**_judged(policy)),
}


def test_the_cases_of_the_file_are_the_cases_of_this_test() -> None:
    assert GOLDEN["losses"].keys() == LOSSES.keys()
    assert GOLDEN["versions"]["trl"]


@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradient_are_trls(case: str) -> None:
    policy = _given("policy").requires_grad_()
    loss = LOSSES[case](policy)
    (gradient,) = torch.autograd.grad(loss, policy)
    # A gradient in what is padded is nobody's: there is no token.
    mask = torch.arange(policy.shape[1])[None] < LENGTHS[:, None]
    golden = GOLDEN["losses"][case]
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-6)
    theirs = torch.tensor(golden["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient * mask, theirs * mask, rtol=1e-6, atol=1e-7)
    assert gradient.abs().max() > 0.005


def test_the_baseline_of_kto_is_trls() -> None:
    assert _baseline() == pytest.approx(GOLDEN["losses"]["kto"]["metrics"]["kl"], rel=1e-9)
    assert GOLDEN["losses"]["kto"]["loss"] != pytest.approx(GOLDEN["losses"]["apo_zero"]["loss"], rel=1e-3)
