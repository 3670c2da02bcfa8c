"""PPO, GSPO, CISPO and the policy gradient: golden values by hand, where gradients end, what must change nothing."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms.advantages import a2c
from pipeline.algorithms.aggregation import Normalisers, aggregate
from pipeline.algorithms.surrogates import Surrogate, cispo, gspo, policy_gradient, policy_surrogate, ppo
from pipeline.config import Aggregation, PolicyLossName

NAN = math.nan
MASK = torch.tensor([[True, True, True, False]])


def _logs(*ratios: float) -> Tensor:
    """Logprobs [1, T] of a policy whose ratios to zeros are these."""
    return torch.tensor([ratios], dtype=torch.float64).log()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def _real(surrogate: Surrogate) -> tuple[list[float], list[bool]]:
    return surrogate.loss[MASK].tolist(), surrogate.clipped[0].tolist()


def test_ppo_by_hand() -> None:
    # Ratios 2, 0.5, 1.1 and advantages 1, 1, -2, clip 0.2:
    #   token 1: -min(2 * 1, 1.2 * 1) = -1.2  (clipped);  token 2: -min(0.5, 0.8) = -0.5;  token 3: 2.2.
    surrogate = ppo(
        policy_logprobs=_logs(2.0, 0.5, 1.1, NAN),
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(1.0, 1.0, -2.0, NAN),
        mask=MASK,
        clip_low=0.2,
        clip_high=0.2,
    )
    loss, clipped = _real(surrogate)
    assert loss == pytest.approx([-1.2, -0.5, 2.2])
    assert clipped == [True, False, False, False]
    assert surrogate.ratio[0].tolist() == pytest.approx([2.0, 0.5, 1.1, 1.0])


def test_clip_higher_by_hand() -> None:
    # Clip range [0.8, 1.28]. Ratio 1.25, A = 1: within; ratio 1.5, A = 2: -1.28 * 2; ratio 0.5, A = -1: 0.8.
    surrogate = ppo(
        policy_logprobs=_logs(1.25, 1.5, 0.5, NAN),
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(1.0, 2.0, -1.0, NAN),
        mask=MASK,
        clip_low=0.2,
        clip_high=0.28,
    )
    loss, clipped = _real(surrogate)
    assert loss == pytest.approx([-1.25, -2.56, 0.8])
    assert clipped == [False, True, True, False]


def test_dual_clip_by_hand() -> None:
    # Ceiling 3. Ratio 5, A = -2: 5 * 2 becomes 3 * 2; ratio 2, A = -2: 4; ratio 5, A = 1: -1.2, as without it.
    policy = _logs(5.0, 2.0, 5.0, NAN).requires_grad_()
    surrogate = ppo(
        policy_logprobs=policy,
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(-2.0, -2.0, 1.0, NAN),
        mask=MASK,
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
    )
    loss, clipped = _real(surrogate)
    assert loss == pytest.approx([6.0, 4.0, -1.2])
    assert clipped == [True, False, True, False]
    (gradient,) = torch.autograd.grad(surrogate.loss[MASK].sum(), policy)
    assert gradient[0].tolist() == pytest.approx([0.0, 4.0, 0.0, 0.0])


def test_gspo_by_hand() -> None:
    # Ratios 2, 4, 1: geometric mean 8^(1/3) = 2 at every token, within [0.5, 2.5]; advantages 1, -1, 3.
    policy = _logs(2.0, 4.0, 1.0, NAN).requires_grad_()
    surrogate = gspo(
        policy_logprobs=policy,
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(1.0, -1.0, 3.0, NAN),
        mask=MASK,
        clip_low=0.5,
        clip_high=1.5,
    )
    loss, clipped = _real(surrogate)
    assert loss == pytest.approx([-2.0, 2.0, -6.0])
    assert clipped == [False] * 4
    (gradient,) = torch.autograd.grad(surrogate.loss[MASK].sum(), policy)
    assert gradient[0].tolist() == pytest.approx([-2.0, 2.0, -6.0, 0.0])  # -s * A, each token its own


def test_gspo_clips_whole_completions() -> None:
    surrogate = gspo(
        policy_logprobs=_logs(2.0, 4.0, 1.0, NAN),
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(1.0, 1.0, 1.0, NAN),
        mask=MASK,
        clip_low=0.2,
        clip_high=0.5,
    )
    assert _real(surrogate) == ([-1.5] * 3, [True, True, True, False])


def test_the_token_form_of_gspo_has_the_value_and_gradient_of_the_sequence_form() -> None:
    generator = torch.Generator().manual_seed(5)
    policy = (0.2 * torch.randn(6, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 3, 2, 4, 2])[:, None]
    advantages = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    token_form = aggregate(
        aggregation=Aggregation.SEQUENCE_MEAN,
        values=gspo(
            policy_logprobs=policy,
            proximal_logprobs=_zeros(6, 4),
            advantages=advantages.expand(6, 4),
            mask=mask,
            clip_low=0.1,
            clip_high=0.1,
        ).loss,
        mask=mask,
        normalisers=Normalisers(num_tokens=16.0, num_completions=6.0),
    )
    ratio = ((policy * mask).sum(1) / mask.sum(1)).exp()
    sequence_form = -torch.minimum(ratio * advantages[:, 0], ratio.clamp(0.9, 1.1) * advantages[:, 0]).mean()
    torch.testing.assert_close(token_form, sequence_form)
    expected, actual = (torch.autograd.grad(loss, policy)[0] for loss in (sequence_form, token_form))
    torch.testing.assert_close(actual, expected)
    assert (expected == 0).all(1).any() and (expected != 0).any()  # some completions are clipped, some are not


def test_cispo_by_hand() -> None:
    # Ratios 4, 0.25, 1; weights held in [0.5, 2]: 2, 0.5, 1; advantages 1, 3, -1; loss -w * A * log policy.
    policy = _logs(4.0, 0.25, 1.0, NAN).requires_grad_()
    surrogate = cispo(
        policy_logprobs=policy,
        proximal_logprobs=_row(0.0, 0.0, 0.0, NAN),
        advantages=_row(1.0, 3.0, -1.0, NAN),
        mask=MASK,
        clip_low=0.5,
        clip_high=1.0,
    )
    loss, clipped = _real(surrogate)
    assert loss == pytest.approx([-2 * math.log(4), 1.5 * math.log(4), 0.0])
    assert clipped == [True, True, False, False]
    (gradient,) = torch.autograd.grad(surrogate.loss[MASK].sum(), policy)
    assert gradient[0].tolist() == pytest.approx([-2.0, -1.5, 1.0, 0.0])  # -w * A: no token loses its gradient


def test_cispo_without_a_lower_bound_leaves_small_ratios_alone() -> None:
    surrogate = cispo(
        policy_logprobs=_logs(0.01), proximal_logprobs=_zeros(1, 1), advantages=_row(1.0), mask=_row(1).bool(),
        clip_low=1.0, clip_high=1.0,
    )  # fmt: skip
    assert surrogate.loss.item() == pytest.approx(-0.01 * math.log(0.01))
    assert not surrogate.clipped.any()


def test_policy_gradient_by_hand() -> None:
    policy = _row(-1.0, -2.0, -3.0, NAN).requires_grad_()
    surrogate = policy_gradient(policy_logprobs=policy, advantages=_row(2.0, -1.0, 0.5, NAN), mask=MASK)
    assert _real(surrogate) == ([2.0, -2.0, 1.5], [False] * 4)  # -A * log policy
    (gradient,) = torch.autograd.grad(surrogate.loss[MASK].sum(), policy)
    assert gradient[0].tolist() == [-2.0, 1.0, -0.5, 0.0]


def test_a2c_by_hand() -> None:
    # Rewards 0, 1 and values 0.5, 2, gamma 1: advantages 1 - 0.5 and 1 - 2. Logprobs -1, -2.
    # Loss: mean of -0.5 * -1 = 0.5 and 1 * -2 = -2, that is -0.75; gradient -0.5 / 2 and 1 / 2.
    policy = _row(-1.0, -2.0).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, _ = a2c(rewards=_row(0.0, 1.0), values=_row(0.5, 2.0), mask=mask, gamma=1.0)
    loss = aggregate(
        aggregation=Aggregation.TOKEN_MEAN,
        values=policy_gradient(policy_logprobs=policy, advantages=advantages, mask=mask).loss,
        mask=mask,
        normalisers=Normalisers(num_tokens=2.0, num_completions=1.0),
    )
    (gradient,) = torch.autograd.grad(loss, policy)
    assert loss.item() == -0.75
    assert gradient.tolist() == [[-0.25, 0.5]]


@pytest.mark.parametrize("name", [PolicyLossName.PPO, PolicyLossName.GSPO])
@pytest.mark.parametrize(
    ("ratio", "advantage", "has_gradient"),
    [
        (1.5, 1.0, False),  # already raised enough
        (0.5, -1.0, False),  # already lowered enough
        (1.5, -1.0, True),  # raised, though it should fall
        (0.5, 1.0, True),  # lowered, though it should rise
        (1.1, 1.0, True),  # within the clip range
        (0.9, -1.0, True),
    ],
)
def test_the_clipped_region_has_no_gradient(
    name: PolicyLossName, ratio: float, advantage: float, has_gradient: bool
) -> None:
    policy = _logs(ratio).requires_grad_()
    surrogate = _surrogate(name, policy, _zeros(1, 1), _row(advantage), torch.ones(1, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(surrogate.loss.sum(), policy)
    assert gradient.item() == pytest.approx(-advantage * ratio if has_gradient else 0.0)  # d/dlogp of -A * ratio
    assert surrogate.clipped.item() is not has_gradient


each_loss = pytest.mark.parametrize("name", [name for name in PolicyLossName if name is not PolicyLossName.DPO])


def _surrogate(
    name: PolicyLossName, policy: Tensor, proximal: Tensor, advantages: Tensor, mask: Tensor, **changes: Any
) -> Surrogate:
    arguments: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.25, "dual_clip": None, **changes}
    return policy_surrogate(
        name=name, policy_logprobs=policy, proximal_logprobs=proximal, advantages=advantages, mask=mask, **arguments
    )


@each_loss
def test_on_its_own_samples_every_gradient_is_the_policy_gradient(name: PolicyLossName) -> None:
    policy = _row(-1.0, -2.0).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    surrogate = _surrogate(name, policy, policy.detach(), _row(3.0, -4.0), mask)
    (gradient,) = torch.autograd.grad(surrogate.loss.sum(), policy)
    assert gradient.tolist() == [[-3.0, 4.0]]
    assert surrogate.ratio.tolist() == [[1.0, 1.0]]
    assert not surrogate.clipped.any()


@each_loss
@pytest.mark.parametrize("gap", [-2000.0, 2000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_policy_far_away_gives_finite_losses_and_gradients(
    name: PolicyLossName, gap: float, advantage: float
) -> None:
    policy = _row(gap).requires_grad_()
    surrogate = _surrogate(name, policy, _zeros(1, 1), _row(advantage), torch.ones(1, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(surrogate.loss.sum(), policy)
    assert torch.isfinite(surrogate.loss).all() and torch.isfinite(gradient).all()


def _outcome(name: PolicyLossName, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, what is clipped and the gradient of the loss over a step of 15 tokens."""
    policy, proximal, advantages, mask = tensors
    policy = policy.clone().requires_grad_()
    surrogate = _surrogate(name, policy, proximal, advantages, mask)
    loss = surrogate.loss.masked_fill(~mask, 0.0).sum() / 15
    return loss.detach(), surrogate.clipped, torch.autograd.grad(loss, policy)[0]


@each_loss
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=2, max_size=6), width=st.integers(0, 3), seed=st.integers(0, 999))
def test_neither_padding_nor_splitting_nor_order_changes_a_loss_or_its_gradient(
    name: PolicyLossName, lengths: list[int], width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    batch = [0.4 * torch.randn(len(lengths), 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    loss, clipped, gradient = _outcome(name, *batch, mask)
    assert not gradient[~mask].any() and not clipped[~mask].any()

    junk = torch.full((len(lengths), width), NAN, dtype=torch.float64)
    dirty = [torch.cat([values.masked_fill(~mask, NAN), junk], dim=1) for values in batch]
    padded = _outcome(name, *dirty, torch.cat([mask, junk.nan_to_num(0).bool()], dim=1))
    torch.testing.assert_close(padded[0], loss)
    assert torch.equal(padded[1][:, :4], clipped)
    torch.testing.assert_close(padded[2][:, :4], gradient)
    assert not padded[2][:, 4:].any()

    order = torch.randperm(len(lengths), generator=generator)
    permuted = _outcome(name, *(values[order] for values in batch), mask[order])
    torch.testing.assert_close(permuted[0], loss)
    torch.testing.assert_close(permuted[2], gradient[order])

    cut = len(lengths) // 2
    parts = [_outcome(name, *(values[rows] for values in batch), mask[rows]) for rows in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([parts[0][2], parts[1][2]]), gradient)
