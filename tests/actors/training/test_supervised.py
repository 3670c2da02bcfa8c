"""What the supervised stages learn from, down to which completion's score rises; engines here are a lookup."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.roles.reward import RewardWorker
from actors.training import supervised
from actors.training.supervised import (
    Comparison,
    Demonstration,
    comparison_losses,
    demonstration_losses,
    pair_scores,
    scored_pairs,
    standardise,
)
from pipeline.models.batch import CompletionBatch
from pipeline.models.tokens import answer_ids
from tests.prompts import prompt_ref

GOOD, OTHER, BAD = 7, 5, 3


class Engine:
    """Looks values up by token: a score for the last token of each completion, or a logprob for every token."""

    device = torch.device("cpu")
    settings = SimpleNamespace(micro_batch_tokens=16)

    def __init__(self, values: dict[int, float], *, by_token: bool = False):
        self.values = torch.zeros(10)
        self.values[list(values)] = torch.tensor(list(values.values()))
        self.values.requires_grad_()
        self.module = SimpleNamespace(mean=torch.zeros(()), scale=torch.ones(()))
        self._by_token = by_token

    def max_over_ranks(self, value: float) -> float:
        return value

    def __call__(self, prompts: Any, completions: CompletionBatch) -> Any:
        if self._by_token:
            found = self.values[completions.token_ids] * completions.mask
            return found, torch.zeros_like(found)
        last = completions.mask.sum(1) - 1
        return self.values[completions.token_ids[torch.arange(len(last)), last]]


@pytest.fixture(autouse=True)
def prompts_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def to(self, device: torch.device) -> Nothing:
            return self

    monkeypatch.setattr(supervised, "fetch_encoded", lambda prompts, live: prompts)
    monkeypatch.setattr(supervised, "collate_prompts", lambda prompts, pad_id: Nothing())


def _pair(chosen: int, rejected: int, **options: Any) -> Comparison:
    # Completions of different lengths: the shorter one is padded, with what would have a score of its own.
    return Comparison(prompt_ref(f"{chosen}-{rejected}"), (1, 1, chosen), (rejected,), **options)


def _scores(engine: Engine) -> Callable[[Sequence[Comparison]], tuple[Tensor, Tensor]]:
    return lambda batch: pair_scores(cast(Any, engine), GOOD, frozenset(), batch)


def test_each_completion_has_its_own_score() -> None:
    engine = Engine({GOOD: 2.0, OTHER: 1.0, BAD: -1.0})
    chosen, rejected = _scores(engine)([_pair(GOOD, BAD), _pair(OTHER, GOOD)])
    assert (chosen.tolist(), rejected.tolist()) == ([2.0, 1.0], [-1.0, 2.0])


def test_the_reward_model_learns_to_score_what_was_chosen_above_what_was_rejected() -> None:
    engine = Engine({GOOD: 0.0, BAD: math.log(3)})
    found = comparison_losses(_scores(engine), margin_weight=1.0)([_pair(GOOD, BAD)], 2.0)
    assert found["loss"].item() == pytest.approx(math.log(4) / 2)
    assert found["accuracy"].item() == 0.0
    found["loss"].backward()
    assert engine.values.grad is not None
    assert engine.values.grad[[GOOD, BAD]].tolist() == pytest.approx([-0.375, 0.375])
    assert not engine.values.grad[[1, OTHER]].any()


def test_margins_and_ties_reach_the_loss() -> None:
    engine = Engine({GOOD: math.log(3)})
    half = comparison_losses(_scores(engine), margin_weight=0.5)
    assert half([_pair(GOOD, BAD, margin=2 * math.log(3))], 1.0)["loss"].item() == pytest.approx(math.log(2))
    none = comparison_losses(_scores(engine), margin_weight=0.0)
    assert none([_pair(GOOD, BAD, margin=9.0)], 1.0)["loss"].item() == pytest.approx(math.log(4 / 3))
    found = none([_pair(GOOD, BAD, is_tie=True), _pair(GOOD, BAD)], 2.0)
    assert found["loss"].item() == pytest.approx((math.log(4) / 2 + math.log(4 / 3) * 3 / 2) / 2)
    assert found["accuracy"].item() == 0.75


def test_held_out_scores_standardise_the_reward_and_a_better_completion_has_a_higher_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine({GOOD: 6.0, OTHER: 4.0, BAD: 2.0})
    # Scores 6, 2, 4, 2, 6, 4: their mean is 4, their variance (3 pairs, n - 1 = 5) 16/5. In several passes.
    pairs = [_pair(GOOD, BAD), _pair(OTHER, BAD), _pair(GOOD, OTHER, is_tie=True)]
    found = scored_pairs(cast(Any, engine), _scores(engine), pairs)
    standardise(cast(Any, engine.module), found)
    assert sorted((each.chosen, each.rejected, each.is_tie) for each in found) == [
        (4.0, 2.0, False),
        (6.0, 2.0, False),
        (6.0, 4.0, True),
    ]
    assert {(each.task, each.modalities) for each in found} == {("task", ())}
    assert engine.module.mean.item() == 4.0
    assert engine.module.scale.item() == pytest.approx(math.sqrt(16 / 5))

    worker = RewardWorker.__new__(RewardWorker)
    worker.engine, worker.device, worker.pad_id, worker.live = cast(Any, engine), engine.device, 0, frozenset()
    monkeypatch.setattr("actors.roles.scoring.fetch_encoded", lambda prompts, live: prompts)
    monkeypatch.setattr("actors.roles.scoring.collate_prompts", supervised.collate_prompts)
    groups = [(prompt_ref("a"), [np.array([1, token]) for token in (BAD, OTHER, GOOD)])]
    (rewards,) = worker.scores([groups])
    assert rewards.tolist() == pytest.approx([-2 / math.sqrt(16 / 5), 0.0, 2 / math.sqrt(16 / 5)])


def test_sft_learns_to_say_the_demonstrations_and_to_end_them() -> None:
    end = 9
    tokenizer = SimpleNamespace(encode=lambda text, **_: [int(digit) for digit in text], eos_token_id=end)
    engine = Engine({GOOD: -1.0, BAD: -2.0, end: -0.5}, by_token=True)
    batch = [Demonstration(prompt_ref(text), text) for text in ("73", "7", "")]
    found = demonstration_losses(cast(Any, engine), 0, frozenset(), partial(answer_ids, tokenizer))(batch, 8.0)
    # 7 3 end, 7 end, end: 1 + 2 + 0.5 + 1 + 0.5 + 0.5, of a step of eight tokens.
    assert found["loss"].item() == pytest.approx(5.5 / 8)
    assert found["counts/answers_without_tokens"].item() == 1
    found["loss"].backward()
    assert engine.values.grad is not None
    assert (-8 * engine.values.grad[[GOOD, BAD, end, OTHER, 0]]).tolist() == [2.0, 1.0, 3.0, 0.0, 0.0]


def test_a_few_steps_rank_pairs_as_the_rater_did() -> None:
    engine = Engine({})
    optimizer = torch.optim.SGD([engine.values], lr=1.0)
    losses = comparison_losses(_scores(engine), margin_weight=1.0)
    pairs = [_pair(GOOD, OTHER), _pair(OTHER, BAD)]
    for _ in range(10):
        optimizer.zero_grad()
        losses(pairs, 2.0)["loss"].backward()
        optimizer.step()
    assert engine.values[GOOD] > engine.values[OTHER] > engine.values[BAD]
