"""The policy's losses as its workers compute them: every loss and aggregation, split over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.roles.critic import CriticWorker
from actors.roles.encoder import PromptRef
from actors.roles.policy import LearningWorker, PolicyWorker, groups_of, pair_losses, plan_update
from pipeline.algorithms.aggregation import Normalisers
from pipeline.config import (
    AdvantageEstimator,
    Aggregation,
    Algorithm,
    ImportanceCorrection,
    Kl,
    OffPolicy,
    PolicyLossName,
    Recipe,
)
from pipeline.experience import ExperienceBatch, collate_experience
from pipeline.records import Experience
from tests.prompts import prompt_ref

KL = Kl.model_validate({"place": "loss", "estimator": "k3", "weight": 0.1})
Row = tuple[PromptRef, Experience]


class TableWorker(LearningWorker):
    """A worker whose outputs lie in a table, by prompt: no model and no DeepSpeed, but the real losses."""

    def __init__(self, recipe: Recipe, tables: dict[str, Tensor]):
        super().__init__(recipe, recipe.rlhf.policy)
        self.device = torch.device("cpu")
        self.engine = cast(Any, lambda names, *_: self.outputs(self._look_up(names)))
        self._tables = tables
        self._last_update = (-1, {})
        self._mismatch = None

    def fetched(self, prompts: object) -> Any:
        return nullcontext()

    def batch(self, groups: Sequence[Any]) -> Any:
        return [prompt.id for prompt, _ in groups], None

    def outputs(self, table: Tensor) -> Any:
        raise NotImplementedError

    def _look_up(self, names: Sequence[str]) -> Tensor:
        tables = [self._tables[name] for name in names]
        width = max(table.shape[1] for table in tables)
        return torch.cat([torch.nn.functional.pad(table, (0, width - table.shape[1])) for table in tables])


class TablePolicy(TableWorker, PolicyWorker):
    """Logprobs from the table, and entropies that follow from them."""

    def outputs(self, table: Tensor) -> tuple[Tensor, Tensor]:
        return table, -table * table.exp()


class TableCritic(TableWorker, CriticWorker):
    """Values from the table."""

    def outputs(self, table: Tensor) -> Tensor:
        return table


def _rows(num_groups: int = 5, size: int = 2) -> list[Row]:
    rng = np.random.default_rng(4)
    rows: list[Row] = []
    for index in range(num_groups):
        lengths = rng.integers(1, 7, size)
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        columns: dict[str, Any] = {
            name: np.where(mask, rng.normal(-1, 0.4, mask.shape), 0).astype(np.float32)
            for name in ("behaviour_logprobs", "proximal_logprobs", "reference_logprobs", "values", "returns")
        }
        experience = Experience(
            prompt_id=str(index),
            token_ids=mask.astype(np.int64),
            mask=mask,
            advantages=np.where(mask, rng.normal(0, 1, mask.shape), 0).astype(np.float32),
            **columns,
        )
        rows.append((prompt_ref(str(index)), experience))
    return rows


def _tables(rows: Sequence[Row]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        prompt.id: torch.from_numpy(row.proximal_logprobs).double()
        + 0.3 * torch.randn(row.mask.shape, generator=generator, dtype=torch.float64)
        for prompt, row in rows
    }


def _update(
    worker_class: type[TableWorker], algorithm: Algorithm, num_ranks: int, budget: int, rows: Sequence[Row] = ()
) -> tuple[dict[str, float], Tensor]:
    """The sum of all ranks' losses over one optimizer step, and the gradient of all table entries."""
    rows = rows or _rows()
    tables = {name: table.requires_grad_() for name, table in _tables(_rows()).items()}
    recipe = Recipe()
    recipe = recipe.model_copy(update={"rlhf": recipe.rlhf.model_copy(update={"algorithm": algorithm})})
    worker = worker_class(recipe, tables)
    totals: dict[str, float] = {}
    for shares in plan_update(rows, num_ranks=num_ranks, budget=budget, algorithm=algorithm, seed=[0]):
        for share in shares:
            for part in share.passes:
                experience = collate_experience([row for _, row in part], device=torch.device("cpu"))
                losses = worker.losses(groups_of(part), experience, share.normalisers, 0.1)
                losses["loss"].backward()
                for name, value in losses.items():
                    totals[name] = totals.get(name, 0.0) + value.item()
    gradients = [torch.zeros_like(table) if table.grad is None else table.grad for table in tables.values()]
    return totals, torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("policy_loss", list(PolicyLossName))
def test_ranks_and_micro_batches_change_neither_loss_nor_statistics_nor_gradient(
    policy_loss: PolicyLossName, aggregation: Aggregation
) -> None:
    has_ratio = policy_loss is not PolicyLossName.DPO
    algorithm = Algorithm(
        advantage=AdvantageEstimator.GAE if has_ratio else AdvantageEstimator.BEST_WORST,
        policy_loss=policy_loss,
        aggregation=aggregation,
        entropy_weight=0.01,
        num_minibatches=1,
        kl=KL,
        off_policy=OffPolicy(correction=ImportanceCorrection.SEQUENCE if has_ratio else ImportanceCorrection.NONE),
    )
    whole, whole_gradient = _update(TablePolicy, algorithm, num_ranks=1, budget=1000)
    assert whole_gradient.any()
    for num_ranks, budget in ((1, 1), (2, 40), (3, 1)):
        split, split_gradient = _update(TablePolicy, algorithm, num_ranks=num_ranks, budget=budget)
        assert split == pytest.approx(whole, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(split_gradient, whole_gradient)


def test_the_critics_loss_does_not_depend_on_the_split_either() -> None:
    algorithm = Algorithm(num_minibatches=1)
    whole, whole_gradient = _update(TableCritic, algorithm, num_ranks=1, budget=1000)
    split, split_gradient = _update(TableCritic, algorithm, num_ranks=3, budget=1)
    assert split == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(split_gradient, whole_gradient)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_plan_counts_the_whole_minibatch_on_every_rank_and_no_copy(num_ranks: int) -> None:
    rows = _rows()
    plan = plan_update(rows, num_ranks=num_ranks, budget=50, algorithm=Algorithm(num_minibatches=1), seed=[0])
    num_tokens = float(sum(row.mask.sum() for _, row in rows))
    assert [[share.normalisers for share in shares] for shares in plan] == [[Normalisers(num_tokens, 10.0)]] * num_ranks


def _without_truncated(rows: Sequence[Row]) -> list[Row]:
    """The second completion of every group is left out, and of the first group both."""
    return [(prompt, replace(row, left_out=np.array([index == 0, True]))) for index, (prompt, row) in enumerate(rows)]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_what_is_left_out_counts_in_no_normaliser(num_ranks: int) -> None:
    rows = _without_truncated(_rows())
    plan = plan_update(rows, num_ranks=num_ranks, budget=50, algorithm=Algorithm(num_minibatches=1), seed=[0])
    num_tokens = float(sum(row.mask[0].sum() for _, row in rows[1:]))
    assert [[share.normalisers for share in shares] for shares in plan] == [[Normalisers(num_tokens, 4.0)]] * num_ranks


def test_a_minibatch_of_which_nothing_is_learned_is_no_optimizer_step() -> None:
    rows = _without_truncated(_rows(2))
    plan = plan_update(rows, num_ranks=2, budget=50, algorithm=Algorithm(num_minibatches=2), seed=[0])
    assert [len(shares) for shares in plan] == [1, 1]
    nothing = plan_update(rows[:1], num_ranks=1, budget=50, algorithm=Algorithm(num_minibatches=1), seed=[0])
    assert nothing == [[]]


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("worker_class", [TablePolicy, TableCritic])
def test_losses_are_those_of_a_step_without_what_is_left_out(
    worker_class: type[TableWorker], aggregation: Aggregation
) -> None:
    algorithm = Algorithm(aggregation=aggregation, num_minibatches=1, entropy_weight=0.01, kl=KL)
    rows = _rows()
    masked = [(rows[0][0], replace(rows[0][1], left_out=np.array([True, True]))), *rows[1:]]
    kept, kept_gradient = _update(worker_class, algorithm, 1, 40, masked)
    gone, gone_gradient = _update(worker_class, algorithm, 1, 40, rows[1:])
    assert kept == pytest.approx(gone, rel=1e-5)
    torch.testing.assert_close(kept_gradient, gone_gradient)
    assert kept != pytest.approx(_update(worker_class, algorithm, 1, 40, rows)[0], rel=1e-5)


class ScriptedEngine:
    """An engine whose second optimizer step is skipped."""

    learning_rate = 0.1

    def __init__(self) -> None:
        self.steps = 0

    @property
    def is_skipped(self) -> bool:
        return self.steps == 2

    @property
    def grad_norm(self) -> float:
        return float("inf") if self.is_skipped else 1.0

    def train(self, loss: Any, *, last: bool) -> None:
        self.steps += last

    def sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        return values


def test_skipped_optimizer_steps_are_counted_over_the_update() -> None:
    worker = TableCritic(Recipe(), {})
    worker.engine = cast(Any, ScriptedEngine())
    (shares,) = plan_update(_rows(), num_ranks=1, budget=50, algorithm=Algorithm(num_minibatches=3), seed=[0])
    assert worker.update(shares, step=0, kl_weight=0.0)["counts/steps_skipped"] == 1.0
    assert worker.update(shares, step=1, kl_weight=0.0)["counts/steps_skipped"] == 0.0
    # Where everything was left out there is no step, and nothing to divide by.
    assert worker.update([], step=2, kl_weight=0.0)["counts/steps_skipped"] == 0.0


def _losses(algorithm: Algorithm, **changes: Any) -> dict[str, Tensor]:
    """The losses of one completion: two tokens with advantages 1 and -2, policy and proximal ratios 2 and 0.5."""
    logs = np.log(np.array([[2.0, 0.5]], np.float32))
    zeros = np.zeros((1, 2), np.float32)
    experience = Experience(
        prompt_id="a",
        token_ids=np.ones((1, 2), np.int64),
        mask=np.ones((1, 2), np.bool_),
        behaviour_logprobs=zeros,
        proximal_logprobs=zeros,
        reference_logprobs=zeros,
        values=zeros,
        advantages=np.array([[1.0, -2.0]], np.float32),
        returns=zeros,
    )
    experience = replace(experience, **changes)
    recipe = Recipe()
    recipe = recipe.model_copy(update={"rlhf": recipe.rlhf.model_copy(update={"algorithm": algorithm})})
    worker = TablePolicy(recipe, {"a": torch.from_numpy(logs)})
    groups = groups_of([(prompt_ref("a", num_tokens=1), experience)])
    batch = collate_experience([experience], device=torch.device("cpu"))
    return worker.losses(groups, batch, Normalisers(4.0, 2.0), 0.5)


def test_the_policys_loss_by_hand() -> None:
    # -min(2, 1.2) = -1.2 and 2 * max(0.5, 0.8) = 1.6: sum 0.4, over the step's 4 tokens 0.1. Both are clipped.
    # KL(behaviour || policy) by k3: 2 - 1 - ln 2 and 0.5 - 1 + ln 2, sum 0.5, over 4. Ratios 2 + 0.5 over 4.
    # Entropies of the table: -p log p = -2 ln 2 + 0.5 ln 2, over 4.
    losses = _losses(Algorithm(entropy_weight=0.1))
    values = {name: value.item() for name, value in losses.items()}
    entropy = -1.5 * np.log(2) / 4
    assert values == pytest.approx(
        {
            "loss": 0.1 - 0.1 * entropy,
            "policy_loss": 0.1,
            "entropy": entropy,
            "clip_fraction": 0.5,
            "kl_behaviour": 0.125,
            "ratio": 0.625,
        },
        abs=1e-6,
    )


def test_entropy_and_kl_are_aggregated_as_the_policys_loss_is() -> None:
    # Fixed length 16 (the recipe's longest completion), 2 completions: sums over 32 in place of 4.
    # KL by k3, r = reference / policy: 0.5 - 1 + ln 2 and 2 - 1 - ln 2, sum 0.5.
    losses = _losses(Algorithm(aggregation=Aggregation.FIXED_LENGTH, entropy_weight=0.1, kl=KL))
    entropy = -1.5 * np.log(2)
    assert losses["policy_loss"].item() == pytest.approx(0.4 / 32)
    assert losses["kl_loss"].item() == pytest.approx(0.5 / 32)
    assert losses["loss"].item() == pytest.approx((0.4 - 0.1 * entropy + 0.5 * 0.5) / 32)
    assert losses["entropy"].item() == pytest.approx(entropy / 4)  # a statistic: mean over tokens


def test_importance_weights_multiply_the_policys_loss_alone() -> None:
    # Proximal 0; behaviour -ln 4 and ln 2: weights min(4, 3) = 3 and 0.5. -1.2 * 3 + 1.6 * 0.5 = -2.8.
    off_policy = OffPolicy(correction=ImportanceCorrection.TOKEN, cap=3.0)
    behaviour = np.log(np.array([[0.25, 2.0]], np.float32))
    losses = _losses(Algorithm(kl=KL, off_policy=off_policy), behaviour_logprobs=behaviour)
    assert losses["policy_loss"].item() == pytest.approx(-2.8 / 4)
    assert losses["loss"].item() == pytest.approx(-2.8 / 4 + 0.5 * 0.5 / 4)
    assert losses["importance_weight"].item() == pytest.approx(3.5 / 4)
    assert losses["importance_limited"].item() == pytest.approx(1 / 4)
    assert losses["ratio"].item() == pytest.approx(2.5 / 4)  # of the update: policy to proximal


def test_every_clip_of_the_recipe_reaches_the_loss() -> None:
    # Clip-higher: -1.5 + 1.6. Dual clip with both advantages negative: 1 * 1.5 instead of 1 * 2, and 1.6 as before.
    assert _losses(Algorithm(clip_high=0.5))["policy_loss"].item() == pytest.approx(0.1 / 4)
    assert _losses(Algorithm(clip_low=0.4))["policy_loss"].item() == pytest.approx((-1.4 + 1.2) / 4)
    negative = np.array([[-1.0, -2.0]], np.float32)
    assert _losses(Algorithm(), advantages=negative)["policy_loss"].item() == pytest.approx((2 + 1.6) / 4)
    dual = _losses(Algorithm(dual_clip=1.5), advantages=negative)
    assert dual["policy_loss"].item() == pytest.approx((1.5 + 1.6) / 4)


def test_pairs_of_online_dpo_by_hand_and_how_well_they_are_told_apart() -> None:
    # Two pairs of one token, better then worse, and a third that is left out. Log ratios to the reference 2 against -1,
    # and 0 against 1; beta 0.5: rewards apart by 1.5 and -0.5.
    logprobs = torch.tensor([[1.0], [-2.0], [-1.0], [0.0], [9.0], [-9.0]])
    nothing = torch.zeros_like(logprobs)
    batch = ExperienceBatch(
        mask=torch.tensor([[True]] * 4 + [[False]] * 2),
        reference_logprobs=torch.full_like(logprobs, -1.0),
        **dict.fromkeys(("behaviour_logprobs", "proximal_logprobs", "values", "advantages", "returns"), nothing),
    )
    found = pair_losses(logprobs, batch, Normalisers(4.0, 4.0), 0.5)
    assert found["policy_loss"].item() == pytest.approx((np.log1p(np.exp(-1.5)) + np.log1p(np.exp(0.5))) / 2)
    assert (found["reward_accuracy"].item(), found["reward_margin"].item()) == pytest.approx((1 / 2, 1.0 / 2))
    # The other way round the margin is the opposite; with the second pair put right, both are.
    swapped = pair_losses(logprobs[[1, 0, 3, 2, 4, 5]], batch, Normalisers(4.0, 4.0), 0.5)
    assert swapped["reward_margin"].item() == pytest.approx(-1.0 / 2)
    right = pair_losses(logprobs[[0, 1, 3, 2, 4, 5]], batch, Normalisers(4.0, 4.0), 0.5)
    assert right["reward_accuracy"].item() == 1.0
