"""What the reward model learns of each kind of opinion, down to which completion's score rises; engines look it up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.roles.reward import RewardWorker
from actors.training.opinions import Example, OpinionLosses, Totals, compared
from actors.training.reward_model import held_out_scores, raw_scores, standardise
from pipeline.algorithms.ensemble import bootstrap_counts
from pipeline.config import load_recipe
from pipeline.models.forward import RewardHead, RewardModel
from pipeline.records import Preference, Ranking, RaterKind, Rating
from tests.actors.training.lookup import BAD, GOOD, OTHER, Engine, Nothing
from tests.prompts import prompt_ref

LN3 = math.log(3)
SHARED: dict[str, Any] = {"rater": "anna", "rater_kind": RaterKind.HUMAN}


@pytest.fixture(autouse=True)
def prompts_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("actors.training.reward_model", "actors.roles.scoring"):
        monkeypatch.setattr(f"{module}.fetch_encoded", lambda prompts, live, within_s=0.0: prompts)
        monkeypatch.setattr(f"{module}.collate_prompts", lambda prompts, pad_id: Nothing())


def _pair(chosen: int, rejected: int, *, prompt: str = "", **options: Any) -> Example:
    # Completions of different lengths: the shorter one is padded, with what would have a score of its own.
    name = prompt or f"{chosen}-{rejected}"
    said = Preference(name, (1, 1, chosen), (rejected,), "", "", "anna", RaterKind.HUMAN, **options)
    return Example(prompt_ref(name), said)


def _ranking(tokens: Sequence[int], ranks: Sequence[int], **options: Any) -> Example:
    ids = tuple((1,) * place + (token,) for place, token in enumerate(tokens))
    said = Ranking("ranked", ids, ("",) * len(ids), tuple(ranks), **SHARED, **options)
    return Example(prompt_ref("ranked"), said)


def _rating(token: int, rated: dict[str, float] | bool, **options: Any) -> Example:
    ratings = rated if isinstance(rated, dict) else {"overall": float(rated)}
    return Example(prompt_ref(f"rated-{token}"), Rating(f"rated-{token}", (1, token), "", ratings, **SHARED, **options))


def _losses(
    engine: Engine, criteria: Sequence[str] = ("overall",), *, margin_weight: float = 1.0, weights: Any = None
) -> Callable[[Sequence[Example]], dict[str, Tensor]]:
    """The losses of a step that is one pass."""
    weights = torch.full((len(criteria),), 1 / len(criteria)) if weights is None else torch.tensor(weights)
    scores = partial(raw_scores, cast(Any, engine), GOOD, frozenset())
    losses = OpinionLosses(scores, criteria, weights, margin_weight, seed=0)
    return lambda batch: losses(batch, Totals.of(batch))


def _gradients(engine: Engine, tokens: Sequence[int]) -> list[float]:
    assert engine.values.grad is not None
    return engine.values.grad[list(tokens)].flatten().tolist()


def test_the_reward_model_learns_to_score_what_was_chosen_above_what_was_rejected() -> None:
    engine = Engine({GOOD: 0.0, BAD: LN3})
    found = _losses(engine)([_pair(GOOD, BAD)])
    assert found["loss"].item() == pytest.approx(math.log(4))
    assert found["accuracy"].item() == 0.0 and "rating_error" not in found
    found["loss"].backward()
    assert _gradients(engine, [GOOD, BAD, 1, OTHER]) == pytest.approx([-0.75, 0.75, 0, 0])


def test_margins_and_ties_reach_the_loss() -> None:
    engine = Engine({GOOD: LN3})
    half = _losses(engine, margin_weight=0.5)
    assert half([_pair(GOOD, BAD, margin=2 * LN3)])["loss"].item() == pytest.approx(math.log(2))
    none = _losses(engine, margin_weight=0.0)
    assert none([_pair(GOOD, BAD, margin=9.0)])["loss"].item() == pytest.approx(math.log(4 / 3))
    found = none([_pair(GOOD, BAD, is_tie=True), _pair(GOOD, BAD)])
    assert found["loss"].item() == pytest.approx((math.log(4) / 2 + math.log(4 / 3) * 3 / 2) / 2)
    assert found["accuracy"].item() == 0.75


def test_one_step_learns_of_pairs_rankings_ratings_and_labels_each_by_its_weight() -> None:
    # A pair (one choice), a ranking of three (two choices), a label and two ratings: 1 + 2 * 0.5 + 0.2 + 2 in weight.
    engine = Engine({GOOD: LN3, OTHER: math.log(2), BAD: 0.0})
    batch = [
        _rating(BAD, False, weight=0.2),
        _pair(GOOD, BAD),
        _ranking([BAD, OTHER, GOOD], [3, 2, 1], weight=0.5),
        _rating(GOOD, {"overall": 1.0}, weight=2.0),
    ]
    found = _losses(engine)(batch)
    pair, label, rating = math.log(4 / 3), math.log(2), math.log(4 / 3)
    ranking = math.log(6 / 3) + math.log(3 / 2)
    assert found["loss"].item() == pytest.approx((pair + 0.5 * ranking + 0.2 * label + 2 * rating) / 4.2)
    assert found["accuracy"].item() == 1.0
    assert found["rating_error"].item() == pytest.approx((0.5**2 + 0.25**2) / 2)
    found["loss"].backward()
    good, other, bad = _gradients(engine, [GOOD, OTHER, BAD])
    assert good == pytest.approx((-0.25 - 0.5 * 0.5 - 2 * 0.25) / 4.2)
    assert other == pytest.approx(0.5 * (1 / 3 + 2 / 3 - 1) / 4.2, abs=1e-7)
    assert bad == pytest.approx((0.25 + 0.5 * (1 / 6 + 1 / 3) + 0.2 * 0.5) / 4.2)


def test_half_a_weight_twice_is_the_whole_once() -> None:
    engine = Engine({GOOD: 1.0, BAD: 0.5})
    losses = _losses(engine)
    twice = [_pair(BAD, GOOD, weight=0.5), _pair(BAD, GOOD, weight=0.5), _rating(GOOD, True)]
    once = [_pair(BAD, GOOD), _rating(GOOD, True)]
    assert losses(twice)["loss"].item() == pytest.approx(losses(once)["loss"].item())


def test_ratings_teach_the_head_of_their_criterion_and_pairs_the_weighted_mean_of_all() -> None:
    criteria = ("helpful", "fluent")
    engine = Engine({GOOD: [[LN3], [0.0]], BAD: [[0.0], [0.0]]}, heads=(2, 1))
    _losses(engine, criteria)([_rating(GOOD, {"fluent": 1.0, "helpful": 0.0})])["loss"].backward()
    assert _gradients(engine, [GOOD]) == pytest.approx([0.75 / 2, -0.5 / 2])
    engine.values.grad = None
    found = _losses(engine, criteria, weights=[0.75, 0.25])([_pair(GOOD, BAD)])
    difference = 0.75 * LN3
    assert found["loss"].item() == pytest.approx(math.log(1 + math.exp(-difference)))
    found["loss"].backward()
    push = 1 / (1 + math.exp(difference))
    assert _gradients(engine, [GOOD]) == pytest.approx([-0.75 * push, -0.25 * push])
    engine.values.grad = None
    _losses(engine, criteria)([_rating(BAD, True)])["loss"].backward()
    assert _gradients(engine, [BAD]) == pytest.approx([-0.25, -0.25])


def test_each_member_learns_from_its_own_bootstrap_sample() -> None:
    engine = Engine({}, heads=(1, 4))
    batch = [_pair(GOOD, BAD), _rating(OTHER, True), _ranking([GOOD, BAD], [1, 2])]
    _losses(engine)(batch)["loss"].backward()
    keys = [f"{each.opinion.prompt_id}/anna/{each.opinion.completions}" for each in batch]
    pair, rating, ranking = (np.array(bootstrap_counts(key, num_members=4, seed=0)) for key in keys)
    assert len({tuple(counts) for counts in (pair, rating, ranking)}) == 3
    # Every choice is undecided (1/2), there are three, and the loss is the mean over four members.
    assert _gradients(engine, [OTHER]) == pytest.approx((-rating / 24).tolist())
    assert _gradients(engine, [GOOD]) == pytest.approx((-(pair + ranking) / 24).tolist())


def test_a_few_steps_rank_completions_as_the_raters_did() -> None:
    engine = Engine({})
    optimizer = torch.optim.SGD([engine.values], lr=1.0)
    losses = _losses(engine)
    batch = [_pair(GOOD, OTHER), _ranking([BAD, OTHER], [2, 1]), _rating(GOOD, True), _rating(BAD, False)]
    for _ in range(10):
        optimizer.zero_grad()
        losses(batch)["loss"].backward()
        optimizer.step()
    good, other, bad = engine.values.detach()[[GOOD, OTHER, BAD]].flatten().tolist()
    assert good > other > bad and good > 0 > bad


def test_a_ranking_compares_every_two() -> None:
    found = compared(_ranking([BAD, GOOD, OTHER], [2, 1, 2]).opinion)
    assert sorted(found) == [(0, 2, True), (1, 0, False), (1, 2, False)]


def _module(engine: Engine, criteria: Sequence[str] = ("overall",), num_members: int = 1) -> RewardModel:
    """A reward model of which nothing but the head's shape and the standardisation is used."""
    module = RewardModel.__new__(RewardModel)
    torch.nn.Module.__init__(module)
    module.head = RewardHead(2, criteria, num_members)
    module.register_buffer("means", torch.zeros(len(criteria)))
    module.register_buffer("covariances", torch.eye(len(criteria)))
    module.register_buffer("weights", torch.full((len(criteria),), 1 / len(criteria)))
    engine.module = module
    return module


def _worker(engine: Engine) -> RewardWorker:
    worker = RewardWorker.__new__(RewardWorker)
    worker.engine, worker.device, worker.pad_id, worker.live = cast(Any, engine), engine.device, 0, frozenset()
    worker.recipe = load_recipe(None, [])
    return worker


def test_held_out_scores_standardise_the_reward_and_a_better_completion_has_a_higher_one() -> None:
    engine = Engine({GOOD: 6.0, OTHER: 4.0, BAD: 2.0})
    module = _module(engine)
    # Scores 6, 2, 4, 2, 6, 4: their mean is 4, their variance (3 pairs, n - 1 = 5) 16/5. In several passes.
    pairs = [_pair(GOOD, BAD), _pair(OTHER, BAD), _pair(GOOD, OTHER, is_tie=True)]
    scores = partial(raw_scores, cast(Any, engine), GOOD, frozenset())
    found = held_out_scores(cast(Any, engine), scores, module, pairs)
    standardise(module, found["raw"])
    assert [(each.chosen, each.rejected, each.is_tie, each.lengths) for each in found["held_out"]] == [
        (6.0, 2.0, False, (3, 1)),
        (4.0, 2.0, False, (3, 1)),
        (6.0, 4.0, True, (3, 1)),
    ]
    assert {(each.task, each.modalities, each.blind) for each in found["held_out"]} == {("task", (), None)}
    assert module.mean.item() == 4.0
    assert module.scale.item() == pytest.approx(math.sqrt(16 / 5))
    groups = [(prompt_ref("a"), [np.array([1, token]) for token in (BAD, OTHER, GOOD)])]
    (rewards,) = _worker(engine).scores([groups])
    assert rewards.tolist() == pytest.approx([-2 / math.sqrt(16 / 5), 0.0, 2 / math.sqrt(16 / 5)])


def test_held_out_rankings_are_pairs_ratings_are_measured_by_criterion_and_pairs_again_without_media(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine({GOOD: [[3.0], [1.0]], OTHER: [[1.0], [1.0]], BAD: [[-1.0], [1.0]]}, heads=(2, 1))
    module = _module(engine, ("helpful", "fluent"))
    examples = [
        _ranking([GOOD, OTHER, BAD], [1, 2, 3]),
        _rating(GOOD, {"fluent": 0.25, "overall": 1.0}),
        _pair(GOOD, BAD, prompt="seen"),
    ]
    asked: list[str] = []

    def scores(batch: Sequence[Example]) -> Tensor:
        asked.extend(each.prompt.id for each in batch)
        return raw_scores(cast(Any, engine), GOOD, frozenset(), batch)

    found = held_out_scores(cast(Any, engine), scores, module, examples, blanked={"seen": prompt_ref("dark")})
    pairs = [(each.chosen, each.rejected, each.blind) for each in found["held_out"]]
    assert pairs == [(2.0, 1.0, None), (2.0, 0.0, None), (1.0, 0.0, None), (2.0, 0.0, (2.0, 0.0))]
    assert sorted(asked) == ["dark", "ranked", "rated-7", "seen"]
    rated = [(each.criterion, each.score, each.value, each.overall, each.length) for each in found["held_out_ratings"]]
    assert rated == [("fluent", 1.0, 0.25, 2.0, 2), ("overall", 2.0, 1.0, 2.0, 2)]
    assert found["raw"].shape == (6, 2)


def test_uncertainty_is_the_spread_over_the_ensemble_of_the_standardised_overall_score() -> None:
    # Overall 1, 2, 3 over the members of the first, by (0.5, 0.5) of the criteria; 4 of each of the second.
    values = {GOOD: [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]], BAD: [[4.0] * 3] * 2}
    engine = Engine(values, heads=(2, 3))
    module = _module(engine, ("helpful", "fluent"), 3)
    module.means.fill_(1.0)
    module.covariances.copy_(torch.tensor([[10.0, 3.0], [3.0, 0.0]]))  # (10 + 6) / 4 = 2^2
    groups = [(prompt_ref("a"), [np.array([GOOD]), np.array([BAD])]), (prompt_ref("b"), [np.array([1, BAD])])]
    first, second = _worker(engine).scores_and_uncertainties([groups])
    assert first.tolist() == [[0.5, 0.5], [1.5, 0.0]] and second.tolist() == [[1.5, 0.0]]
    assert first.dtype == np.float32
    assert [rows.tolist() for rows in _worker(engine).scores([groups])] == [[0.5, 1.5], [1.5]]
    module.weigh({"fluent": 2.0})
    (again, _) = _worker(engine).scores([groups])
    assert again.tolist() == pytest.approx([2e6, 3e6])  # the variance of that criterion is zero
