"""KL estimators against hand-computed values and the exact KL; controllers against Ziegler's rule."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.kl import AdaptiveKl, FixedKl, estimate_kl
from pipeline.config import KlEstimator

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Policy probability 1/2, reference probability 1/4: d = log(reference / policy) = -log 2.
        (KlEstimator.K1, LOG2),  # -d
        (KlEstimator.K2, LOG2**2 / 2),  # d^2 / 2
        (KlEstimator.K3, 0.5 - 1 + LOG2),  # e^d - 1 - d
    ],
)
def test_estimators_by_hand(estimator: KlEstimator, expected: float) -> None:
    policy, reference = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    estimate = estimate_kl(estimator=estimator, policy_logprobs=policy, reference_logprobs=reference)
    assert estimate.item() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", [KlEstimator.K1, KlEstimator.K3])
def test_unbiased_estimators_have_the_exact_kl_as_their_mean(estimator: KlEstimator) -> None:
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    estimate = estimate_kl(estimator=estimator, policy_logprobs=policy.log(), reference_logprobs=reference.log())
    torch.testing.assert_close((policy * estimate).sum(), exact)


@pytest.mark.parametrize(
    ("estimator", "source"),
    [(KlEstimator.K1, "nothing"), (KlEstimator.K2, "policy || reference"), (KlEstimator.K3, "reference || policy")],
)
def test_the_gradient_of_each_estimator_in_the_loss_is_that_of(estimator: KlEstimator, source: str) -> None:
    logits = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    logprobs = logits.log_softmax(0)
    exact = {
        "nothing": 0.0 * logits.sum(),
        "policy || reference": (logprobs.exp() * (logprobs - reference.log())).sum(),
        "reference || policy": (reference * (reference.log() - logprobs)).sum(),
    }[source]
    estimate = estimate_kl(estimator=estimator, policy_logprobs=logprobs, reference_logprobs=reference.log())
    sampled = (logprobs.exp().detach() * estimate).sum()  # mean over samples, which carry no gradient
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (actual,) = torch.autograd.grad(sampled, logits)
    torch.testing.assert_close(actual, expected)


@settings(max_examples=50, deadline=None)
@given(policy=st.floats(-20, 0), reference=st.floats(-20, 0))
def test_k2_and_k3_are_never_negative_and_zero_where_policy_is_reference(policy: float, reference: float) -> None:
    for estimator in (KlEstimator.K2, KlEstimator.K3):
        apart, together = (
            estimate_kl(
                estimator=estimator,
                policy_logprobs=torch.tensor([policy], dtype=torch.float64),
                reference_logprobs=torch.tensor([other], dtype=torch.float64),
            ).item()
            for other in (reference, policy)
        )
        assert apart >= 0.0
        assert together == 0.0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.11, 0.05 * (1 + 0.1 * 100 / 1000)),  # 10 % above the target
        (0.09, 0.05 * (1 - 0.1 * 100 / 1000)),  # 10 % below
        (0.1, 0.05),  # on it
        (5.0, 0.05 * (1 + 0.2 * 100 / 1000)),  # far above: the error is clipped to 0.2
        (-5.0, 0.05 * (1 - 0.2 * 100 / 1000)),  # far below: to -0.2
    ],
)
def test_the_adaptive_weight_follows_the_clipped_error(kl: float, expected: float) -> None:
    controller = AdaptiveKl(weight=0.05, target=0.1, horizon=1000)
    assert controller.updated(kl=kl, num_completions=100).weight == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0, 0.05 / 2),  # 1 - 0.2 * 256 / 20 = -1.56: the weight would change its sign
        (0.1, 0.05),
        (5.0, 0.05 * 2),  # 1 + 0.2 * 256 / 20 = 3.56
    ],
)
def test_a_step_of_many_horizons_at_most_halves_or_doubles_the_adaptive_weight(kl: float, expected: float) -> None:
    controller = AdaptiveKl(weight=0.05, target=0.1, horizon=20)
    assert controller.updated(kl=kl, num_completions=256).weight == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(kl=st.floats(-100, 100), horizon=st.integers(1, 10_000), num_completions=st.integers(0, 100_000))
def test_the_adaptive_weight_is_never_negative_and_never_moves_the_wrong_way(
    kl: float, horizon: int, num_completions: int
) -> None:
    before = AdaptiveKl(weight=0.05, target=0.1, horizon=horizon)
    after = before.updated(kl=kl, num_completions=num_completions)
    assert after.weight > 0
    assert (after.weight - before.weight) * (kl - before.target) >= 0


def test_the_fixed_weight_stays() -> None:
    assert FixedKl(weight=0.05).updated(kl=9.0, num_completions=100) == FixedKl(weight=0.05)


def test_a_controller_comes_back_from_a_checkpoint() -> None:
    adaptive = AdaptiveKl(weight=0.05, target=0.1, horizon=1000).updated(kl=0.3, num_completions=7)
    assert AdaptiveKl.from_state(json.loads(json.dumps(adaptive.state()))) == adaptive
    fixed = FixedKl(weight=0.05)
    assert FixedKl.from_state(json.loads(json.dumps(fixed.state()))) == fixed
