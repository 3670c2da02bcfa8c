"""Which way it learns: a bandit of three prompts whose reward must rise, through the loop's own functions.

Everything between a sampled completion and a weight is the project's: shaping, experience, the plan of the update, the
workers' losses, the KL controller. Only the model is a table of logits, and its engine an optimizer in this process.
A sign that is wrong anywhere on the way makes a reward fall here that can only rise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from actors.loop.checkpoints import LoopState
from actors.loop.judge import OVERLONG, Judged
from actors.loop.step import experience_of, next_kl
from actors.roles.critic import CriticWorker
from actors.roles.policy import LearningWorker, PolicyWorker, plan_update
from pipeline.algorithms.direct_preference import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss
from pipeline.algorithms.kahneman_tversky import apo_zero_loss, kto_loss
from pipeline.algorithms.preference import bradley_terry_loss
from pipeline.algorithms.reference_free import orpo_loss, simpo_loss
from pipeline.algorithms.shaping import combine, overlong_penalty
from pipeline.config import (
    AdvantageEstimator,
    Aggregation,
    ImportanceCorrection,
    KlEstimator,
    PolicyLossName,
    Recipe,
    load_recipe,
)
from pipeline.records import Completion, FinishReason, Rollout
from tests.prompts import prompt_ref

PROMPTS = ("a", "b", "c")
NUM_TOKENS, MAX_LENGTH = 4, 3
END = 0
BASE = (
    "rlhf.rewards={exact_match: 1.0}",
    f"rlhf.sampling.max_new_tokens={MAX_LENGTH}",
    "rlhf.group_size=8",
    "rlhf.prompts_per_step=3",
    "rlhf.algorithm.kl.weight=0",
)


def hits(tokens: Tensor) -> Tensor:
    """Of first tokens [P, n], whether each is the one its prompt asks for; no prompt asks for the end token."""
    return (tokens == torch.tensor([[1], [2], [3]])).float()


class TableEngine:
    """What a learning worker asks of its engine, around a table and an optimizer in this process."""

    is_skipped = False
    learning_rate = grad_norm = 0.0

    def __init__(self, forward: Callable[..., Any], table: Tensor, learning_rate: float):
        self._forward = forward
        self._optimizer = torch.optim.Adam([table], lr=learning_rate, betas=(0.5, 0.9))

    def __call__(self, *batch: Any) -> Any:
        return self._forward(*batch)

    def train(self, loss: Callable[[], Tensor], *, last: bool) -> None:
        loss().backward()
        if last:
            self._optimizer.step()
            self._optimizer.zero_grad()

    def sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        return values

    def max_over_ranks(self, value: float) -> float:
        return value


class TableWorker(LearningWorker):
    """The real update of a role, on a table [P, MAX_LENGTH, ...] in place of a model."""

    def __init__(self, recipe: Recipe, table: Tensor, learning_rate: float):
        super().__init__(recipe, recipe.rlhf.policy)
        self.device = torch.device("cpu")
        self.table = table.clone().requires_grad_()
        self.engine = cast(Any, TableEngine(self.outputs, self.table, learning_rate))
        self._last_update = (-1, {})

    def fetched(self, prompts: object) -> Any:
        return nullcontext()

    def batch(self, groups: Sequence[Any]) -> Any:
        """Which prompt each completion is for, and its tokens, padded."""
        owners = [PROMPTS.index(prompt.id) for prompt, completions in groups for _ in completions]
        tokens = [torch.from_numpy(ids) for _, completions in groups for ids in completions]
        return torch.tensor(owners), torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)

    def outputs(self, owners: Tensor, tokens: Tensor, *_: Any) -> Any:
        raise NotImplementedError


class TablePolicy(TableWorker, PolicyWorker):
    """Logits [P, MAX_LENGTH, NUM_TOKENS]: a distribution for each place of each prompt's completions."""

    def outputs(self, owners: Tensor, tokens: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        logs = self.table.log_softmax(-1)[owners, : tokens.shape[1]]
        return logs.gather(-1, tokens[..., None])[..., 0], -(logs.exp() * logs).sum(-1)

    @property
    def probabilities(self) -> Tensor:
        return self.table.detach().softmax(-1)


class TableCritic(TableWorker, CriticWorker):
    """Values [P, MAX_LENGTH]."""

    def outputs(self, owners: Tensor, tokens: Tensor, *_: Any) -> Tensor:
        return self.table[owners, : tokens.shape[1]]


@dataclass
class Bandit:
    """A policy, a critic and a reference, and the loop around them."""

    recipe: Recipe
    policy: TablePolicy
    critic: TableCritic
    reference: Tensor
    state: LoopState

    @classmethod
    def start(cls, *overrides: str, policy_rate: float = 0.2, away: float = 0.0) -> Bandit:
        """A reference that is not uniform, and a policy at a distance from it that grows with `away`."""
        recipe = load_recipe(None, [*BASE, *overrides])
        generator = torch.Generator().manual_seed(1)
        reference = 0.3 * torch.randn(len(PROMPTS), MAX_LENGTH, NUM_TOKENS, generator=generator)
        logits = reference + away * torch.randn(reference.shape, generator=generator)
        critic = TableCritic(recipe, torch.zeros(len(PROMPTS), MAX_LENGTH), 0.2)
        state = LoopState.start(recipe.rlhf.algorithm.kl)
        return cls(recipe, TablePolicy(recipe, logits, policy_rate), critic, reference.log_softmax(-1), state)

    @property
    def reward(self) -> float:
        """Chance to hit, exactly, averaged over the prompts."""
        return float(torch.stack([self.policy.probabilities[p, 0, p + 1] for p in range(len(PROMPTS))]).mean())

    @property
    def length(self) -> float:
        """Mean length of a completion, exactly, averaged over the prompts."""
        goes_on = 1 - self.policy.probabilities[:, :, END]
        return float((1 + goes_on[:, 0] + goes_on[:, 0] * goes_on[:, 1]).mean())

    @property
    def kl(self) -> float:
        """KL(policy || reference) in nats, of the first token, averaged over the prompts."""
        policy = self.policy.probabilities[:, 0]
        return float((policy * (policy.log() - self.reference[:, 0])).sum(-1).mean())

    @property
    def entropy(self) -> float:
        policy = self.policy.probabilities[:, 0]
        return float(-(policy * policy.log()).sum(-1).mean())

    def run(self, num_steps: int = 12, *, weight: float = 1.0) -> Bandit:
        """Steps of the loop; `weight` is that of the hits in the reward."""
        for step in range(self.state.step, self.state.step + num_steps):
            self._step(step, weight)
        return self

    def _step(self, step: int, weight: float) -> None:
        settings = self.recipe.rlhf
        tokens = self._sampled(step)
        rollouts = self._rollouts(tokens)
        batch = self._judged(rollouts, hits(tokens[..., 0]), weight)
        scored = {
            "reference": [self._of_group(self.reference, group) for group in rollouts],
            "critic": [self._values(group) for group in rollouts],
        }
        experience, statistics, scale = experience_of(batch, scored, self.state, settings.algorithm)
        rows = list(zip(batch.prompts, experience, strict=True))
        for worker in (self.policy, self.critic):
            (share,) = plan_update(rows, num_ranks=1, budget=10_000, algorithm=settings.algorithm, seed=[step])
            worker.update(share, step=step, kl_weight=self.state.kl.weight)
        kl = next_kl(self.state.kl, settings, step, kl=statistics["kl/reference"], num_completions=len(batch.rewards))
        self.state = replace(self.state, step=step + 1, kl=kl, reward_scale=scale)

    def _sampled(self, step: int) -> Tensor:
        """Tokens [P, n, MAX_LENGTH]; what stands behind an end token is left away later."""
        generator = torch.Generator().manual_seed(step)
        flat = self.policy.probabilities.flatten(0, 1)
        drawn = torch.multinomial(flat, self.recipe.rlhf.group_size, replacement=True, generator=generator)
        return drawn.view(len(PROMPTS), MAX_LENGTH, -1).transpose(1, 2)

    def _rollouts(self, tokens: Tensor) -> list[Rollout]:
        logs = self.policy.probabilities.log()
        return [
            Rollout(name, tuple(_completion(row, logs[index]) for row in tokens[index]))
            for index, name in enumerate(PROMPTS)
        ]

    def _judged(self, rollouts: list[Rollout], hit: Tensor, weight: float) -> Judged:
        parts: dict[str, Tensor] = {"hit": hit.flatten()}
        unshaped = combine(parts=parts, weights={"hit": weight})
        algorithm = self.recipe.rlhf.algorithm
        if algorithm.overlong_buffer:
            lengths = torch.tensor([len(each.token_ids) for rollout in rollouts for each in rollout.completions])
            parts[OVERLONG] = overlong_penalty(
                lengths=lengths, max_length=MAX_LENGTH, buffer=algorithm.overlong_buffer, penalty=1.0
            )
        greedy = weight * hits(self.policy.table[:, 0].argmax(-1, keepdim=True))[:, 0]
        return Judged([prompt_ref(name) for name in PROMPTS], rollouts, parts, unshaped, greedy, Counter(), {})

    def _of_group(self, logs: Tensor, rollout: Rollout) -> Any:
        owner = PROMPTS.index(rollout.prompt_id)
        rows = [_chosen(logs[owner], torch.from_numpy(each.token_ids)) for each in rollout.completions]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).numpy()

    def _values(self, rollout: Rollout) -> Any:
        longest = max(len(each.token_ids) for each in rollout.completions)
        values = self.critic.table.detach()[PROMPTS.index(rollout.prompt_id), :longest]
        return values.expand(len(rollout.completions), -1).numpy()


def _completion(tokens: Tensor, logs: Tensor) -> Completion:
    """A completion up to its end token, with the logprobs of the places `logs` [MAX_LENGTH, NUM_TOKENS]."""
    ends = (tokens == END).nonzero()[:, 0].tolist()
    ids = tokens[: ends[0] + 1] if ends else tokens
    reason = FinishReason.STOP if ends else FinishReason.LENGTH
    return Completion(ids.numpy(), _chosen(logs, ids).numpy(), reason, 0, "")


def _chosen(logs: Tensor, ids: Tensor) -> Tensor:
    return logs[torch.arange(len(ids)), ids]


ALONE = [each for each in AdvantageEstimator if each is not AdvantageEstimator.BEST_WORST]
"""Estimators whose advantages any loss but DPO's takes."""
EVERY = [
    *((estimator, PolicyLossName.PPO) for estimator in ALONE),
    *((AdvantageEstimator.RLOO, loss) for loss in (PolicyLossName.GSPO, PolicyLossName.CISPO)),
    (AdvantageEstimator.RLOO, PolicyLossName.POLICY_GRADIENT),
    (AdvantageEstimator.A2C, PolicyLossName.POLICY_GRADIENT),
    (AdvantageEstimator.BEST_WORST, PolicyLossName.DPO),
]


@pytest.mark.parametrize(("estimator", "loss"), EVERY)
def test_the_reward_rises_with_every_estimator_and_every_loss(
    estimator: AdvantageEstimator, loss: PolicyLossName
) -> None:
    # With several minibatches the policy has moved when the second one comes, so that ratios and clips are at work.
    num_minibatches = 1 if loss is PolicyLossName.POLICY_GRADIENT else 3
    bandit = Bandit.start(
        f"rlhf.algorithm={{advantage: {estimator}, policy_loss: {loss}, num_minibatches: {num_minibatches}}}",
        policy_rate=0.6 if num_minibatches == 1 else 0.3,
    )
    before = bandit.reward
    assert before < 0.3 < 0.75 < bandit.run(6).reward


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_the_reward_rises_under_every_aggregation(aggregation: Aggregation) -> None:
    assert Bandit.start(f"rlhf.algorithm={{advantage: rloo, aggregation: {aggregation}}}").run(6).reward > 0.6


@pytest.mark.parametrize("correction", list(ImportanceCorrection))
def test_the_reward_rises_under_every_correction(correction: ImportanceCorrection) -> None:
    bandit = Bandit.start(f"rlhf.algorithm={{advantage: rloo, off_policy: {{correction: {correction}}}}}")
    assert bandit.run(6).reward > 0.6


@pytest.mark.parametrize("is_scaled", ["false", "true"])
def test_a_part_with_a_negative_weight_is_avoided(is_scaled: str) -> None:
    bandit = Bandit.start(f"rlhf.algorithm={{advantage: rloo, clip_reward: null, scale_rewards: {is_scaled}}}")
    before = bandit.reward
    assert bandit.run(6, weight=-1.0).reward < 0.5 * before


def test_the_penalty_on_length_makes_completions_shorter() -> None:
    bandit = Bandit.start("rlhf.algorithm={advantage: rloo, overlong_buffer: 2}")
    before = bandit.length
    assert before > 2 > 1.6 > bandit.run(8, weight=0.0).length


PLACES = [
    *((estimator, "reward", KlEstimator.K1) for estimator in ALONE),
    (AdvantageEstimator.RLOO, "loss", KlEstimator.K2),
    (AdvantageEstimator.RLOO, "loss", KlEstimator.K3),
]


@pytest.mark.parametrize(("estimator", "place", "kind"), PLACES)
def test_a_large_kl_weight_brings_the_policy_back_to_the_reference_whatever_the_reward(
    estimator: AdvantageEstimator, place: str, kind: KlEstimator
) -> None:
    kl = f"{{weight: 20, place: {place}, estimator: {kind}}}"
    algorithm = f"rlhf.algorithm={{advantage: {estimator}, clip_reward: null, num_minibatches: 3, kl: {kl}}}"
    bandit = Bandit.start("rlhf.group_size=16", algorithm, away=1.5)
    before = bandit.kl
    assert before > 0.4 > 0.1 > bandit.run(8).kl


def test_without_a_kl_weight_the_reward_draws_the_policy_away_from_the_reference() -> None:
    bandit = Bandit.start("rlhf.algorithm={advantage: rloo, kl: {weight: 0}}")
    assert bandit.kl < 1e-6 < 0.3 < bandit.run().kl


def test_the_adaptive_weight_holds_a_policy_that_the_reward_draws_away_and_lets_go_of_one_that_stays() -> None:
    fixed = Bandit.start("rlhf.algorithm={advantage: rloo, kl: {weight: 0.3}}").run(20)
    kl = "{weight: 0.3, control: adaptive, target: 0.05, horizon: 24}"
    controlled = Bandit.start(f"rlhf.algorithm={{advantage: rloo, kl: {kl}}}").run(20)
    assert controlled.state.kl.weight > 2 * 0.3
    assert controlled.kl < 0.3 * fixed.kl
    idle = Bandit.start(f"rlhf.algorithm={{advantage: rloo, kl: {kl}}}").run(5, weight=0.0)
    assert 0 < idle.state.kl.weight < 0.2


def test_the_critic_comes_to_know_what_the_policy_is_worth() -> None:
    # The policy stays as it is: the value before the first token is its chance to hit, about a quarter.
    bandit = Bandit.start("rlhf.algorithm={advantage: a2c}", "rlhf.group_size=32", policy_rate=1e-9)
    bandit.critic.table.data.fill_(1.0)
    worth = bandit.reward
    assert worth < 0.3
    assert bandit.run(8).critic.table.detach()[:, 0].mean().item() == pytest.approx(worth, abs=0.15)


def test_the_entropy_bonus_flattens_the_policy() -> None:
    bandit = Bandit.start("rlhf.algorithm={advantage: rloo, entropy_weight: 1.0}", away=1.5)
    before = bandit.entropy
    assert before < 1.1 < 1.3 < bandit.run(6, weight=0.0).entropy  # ln 4 = 1.386 is the most


def test_a_fit_to_comparisons_ranks_as_told() -> None:
    # Who won against whom: 3 over 1, 1 over 0, 0 over 2, and once the other way round.
    chosen, rejected = torch.tensor([3, 3, 1, 1, 0, 0, 1]), torch.tensor([1, 1, 0, 0, 2, 2, 3])
    scores = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        bradley_terry_loss(
            chosen=scores[chosen],
            rejected=scores[rejected],
            margin=torch.zeros(len(chosen)),
            is_tie=torch.zeros(len(chosen), dtype=torch.bool),
            weight=torch.ones(len(chosen)),
            total_weight=float(len(chosen)),
        ).backward()
        optimizer.step()
    assert scores.detach().argsort(descending=True).tolist() == [3, 1, 0, 2]
    # And as surely as told: two of three times for 3 over 1.
    assert torch.sigmoid(scores[3] - scores[1]).item() == pytest.approx(2 / 3, abs=0.1)


def _pairs_of(logprobs: Tensor, start: Tensor) -> dict[str, Any]:
    """Of completions of one token: 3 is preferred to 1, once each, and 2 to 0."""
    ratios = logprobs - start
    shared = {"weight": torch.ones(2), "total_weight": 2.0, "beta": 1.0}
    return {"chosen": ratios[[3, 2]], "rejected": ratios[[1, 0]], **shared}


def _judged_of(logprobs: Tensor, start: Tensor) -> dict[str, Any]:
    """2 and 3 are good, 0 and 1 bad."""
    is_good = torch.tensor([False, False, True, True])
    shared = {"weight": torch.ones(4), "total_weight": 4.0, "beta": 1.0}
    return {"log_ratios": logprobs - start, "is_good": is_good, **shared}


NO_MARGIN, ONE_TOKEN = torch.zeros(2), torch.ones(2, dtype=torch.int64)
# Losses without a reference look at the log probabilities themselves: the start is 0 to them.
WITHOUT_LOOP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dpo": lambda now, start: dpo_loss(**_pairs_of(now, start), margin=NO_MARGIN),
    "cdpo": lambda now, start: dpo_loss(**_pairs_of(now, start), margin=NO_MARGIN, label_smoothing=0.2),
    "robust": lambda now, start: robust_dpo_loss(**_pairs_of(now, start), margin=NO_MARGIN, label_smoothing=0.2),
    "hinge": lambda now, start: hinge_loss(**_pairs_of(now, start), margin=NO_MARGIN),
    "ipo": lambda now, start: ipo_loss(**_pairs_of(now, start), chosen_lengths=ONE_TOKEN, rejected_lengths=ONE_TOKEN),
    "simpo": lambda now, _: simpo_loss(**_pairs_of(now, torch.zeros(4)), margin=NO_MARGIN, gamma=1.0),
    "orpo": lambda now, _: orpo_loss(**_pairs_of(now, torch.zeros(4))),
    "kto": lambda now, start: kto_loss(**_judged_of(now, start), baseline=0.1),
    "apo_zero": lambda now, start: apo_zero_loss(**_judged_of(now, start)),
}


@pytest.mark.parametrize("loss", WITHOUT_LOOP)
def test_without_a_loop_what_is_preferred_becomes_likelier_and_what_is_not_less_likely(loss: str) -> None:
    start = torch.tensor([0.5, 0.4, -0.3, 0.0])
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        WITHOUT_LOOP[loss](logits.log_softmax(-1), start.log_softmax(-1)).backward()
        optimizer.step()
    before, after = start.softmax(-1), logits.detach().softmax(-1)
    assert (after[2:] > before[2:]).all() and (after[:2] < before[:2]).all()
