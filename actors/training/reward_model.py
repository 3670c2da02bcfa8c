"""The reward model's training, inside Ray Train's workers: what raters say is learned, or held out to measure.

examples, a batch a step -> scores of all their completions, by criterion and member -> losses by what is said
held-out examples, at the end -> standardisation, and how right the scores are: with media, and without
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.engine.engine import Engine
from actors.roles.encoder import PromptRef, fetch_encoded
from actors.roles.scoring import blank_media, own_towers
from actors.training.opinions import Example, OpinionLosses, Scores, Totals, compared
from actors.training.supervised import Live, batches_of, begin, engine_of, export, report, train
from pipeline.algorithms.preference import standardisation
from pipeline.config import ConfigError, Recipe
from pipeline.config import RewardModel as Settings
from pipeline.evaluation.calibration import ScoredPair
from pipeline.evaluation.ratings import ScoredRating
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import HEAD_FILE, load_reward_model
from pipeline.models.forward import RewardModel
from pipeline.models.processing import load_processor
from pipeline.models.tokens import pad_id
from pipeline.packing import GroupSize, plan_passes
from pipeline.records import Rating


def train_reward_model(config: dict[str, Any]) -> None:
    """Ray Train's loop of the reward model: what raters say, then standardisation on what is held out."""
    recipe: Recipe = config["recipe"]
    if not begin(config):
        return
    source: Path = config["source"]
    settings: Settings = config["settings"]
    trust = recipe.model.trust_remote_code
    torch.manual_seed(recipe.run.seed)
    module = load_module(recipe, settings, source)
    live = own_towers(recipe, settings.parts, module.decoder.architecture)
    module.decoder.blank_media = blank_media(recipe, source, module.decoder.model, live)
    engine = engine_of(module, config)
    scores = partial(raw_scores, engine, pad_id(load_processor(source, trust_remote_code=trust).tokenizer), live)
    losses = OpinionLosses(
        scores,
        criteria=module.head.criteria,
        weights=module.weights,
        margin_weight=settings.margin_weight,
        seed=recipe.run.seed,
    )
    batches = batches_of(config)
    first = next(batches, None)
    if first is None:
        return
    measured = partial(held_out_scores, engine, scores, module)
    # A reward model that learns on is compared with what it was.
    before = measured(config["held_out"]) if (source / HEAD_FILE).is_file() else None
    if train(config, engine, losses, size=example_size, total_of=Totals.of, batches=chain([first], batches)):
        found = measured(config["held_out"], blanked=config["blanked"])
        standardise(module, found.pop("raw"))
        if engine.world.rank == 0:
            score = {"mean": float(module.mean), "std": float(module.scale)}
            was = {f"{name}_before": before and before[name] for name in ("held_out", "held_out_ratings")}
            report(config, (settings.num_steps, {**found, **was, "score": score}))
        export(config, engine)


def load_module(recipe: Recipe, settings: Settings, source: Path) -> RewardModel:
    """The reward model that is to learn, with new heads where `source` has none.

    Raises:
        ConfigError: `source` has other heads than the settings ask for.
    """
    module = load_reward_model(
        source,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        criteria=settings.criteria,
        num_members=settings.ensemble,
    )
    head = module.head
    if (head.criteria, head.num_members) != (settings.criteria, settings.ensemble):
        raise ConfigError(
            f"{source} learns on with its heads: reward_model.criteria={list(head.criteria)} and "
            f"reward_model.ensemble={head.num_members}, not {list(settings.criteria)} and {settings.ensemble}; set "
            "these, or begin from a checkpoint without heads (SFT's)"
        )
    module.weigh(settings.criterion_weights)
    return module


def raw_scores(engine: Engine, pad_id: int, live: Live, batch: Sequence[Example]) -> Tensor:
    """Raw scores [N, C, M] of all completions of some examples, a prompt once for all of its example's."""
    prompts = collate_prompts(fetch_encoded([each.prompt for each in batch], live), pad_id=pad_id)
    groups = [[np.array(ids) for ids in each.opinion.completions] for each in batch]
    completions = collate_completions(groups, pad_id=pad_id)
    if completions.group_size == 1:
        # Alone they would run without a cache, so in one pass where a rank with others runs two: ZeRO waits for ever.
        completions = replace(completions, group_size=None)
    return engine(prompts.to(engine.device), completions.to(engine.device))


def example_size(example: Example) -> GroupSize:
    """What an example costs in a pass."""
    completions = example.opinion.completions
    return GroupSize(example.prompt.num_tokens, len(completions), max(map(len, completions)))


@torch.no_grad()
def scored(engine: Engine, scores: Scores, examples: Sequence[Example]) -> list[Tensor]:
    """Raw scores [k, C], the mean over the members, of each example's completions.

    All ranks score all examples: they are few, and each rank then knows the same.
    """
    if not examples:
        return []
    sizes = list(map(example_size, examples))
    (plan,) = plan_passes(sizes, num_ranks=1, budget=engine.settings.micro_batch_tokens)
    found: dict[int, Tensor] = {}
    for each in plan:
        rows = scores([examples[index] for index in each.groups]).mean(2).cpu()
        found |= zip(each.groups, rows.split([sizes[index].num_completions for index in each.groups]), strict=True)
    return [found[index] for index in range(len(examples))]


def held_out_scores(
    engine: Engine,
    scores: Scores,
    module: RewardModel,
    examples: Sequence[Example],
    *,
    blanked: Mapping[str, PromptRef] | None = None,
) -> dict[str, Any]:
    """What held-out examples say of the model: `raw` scores [N, C], pairs `held_out`, and `held_out_ratings`.

    A ranking gives all its pairs. Scores are raw; those of pairs are overall ones.

    blanked: prompts by their ids with their media blanked, on which pairs are scored again.
    """
    raw = scored(engine, scores, examples)
    blind = {
        place: replace(each, prompt=blanked[each.prompt.id])
        for place, each in enumerate(examples)
        if blanked and each.prompt.id in blanked and compared(each.opinion)
    }
    unseen = dict(zip(blind, scored(engine, scores, list(blind.values())), strict=True))
    weights = module.weights.cpu()
    pairs: list[ScoredPair] = []
    ratings: list[ScoredRating] = []
    for place, (example, rows) in enumerate(zip(examples, raw, strict=True)):
        whole = (rows @ weights).tolist()
        pairs += _pairs(example, whole, (unseen[place] @ weights).tolist() if place in unseen else None)
        ratings += _ratings(example, rows[0].tolist(), whole[0], module.head.criteria)
    return {"raw": torch.cat(raw), "held_out": pairs, "held_out_ratings": ratings}


def _pairs(example: Example, scores: Sequence[float], without: Sequence[float] | None) -> list[ScoredPair]:
    info, lengths = example.prompt.info, [len(ids) for ids in example.opinion.completions]
    return [
        ScoredPair(
            info.task,
            info.modalities,
            scores[one],
            scores[other],
            is_tie,
            lengths=(lengths[one], lengths[other]),
            blind=None if without is None else (without[one], without[other]),
        )
        for one, other, is_tie in compared(example.opinion)
    ]


def _ratings(example: Example, scores: Sequence[float], whole: float, criteria: Sequence[str]) -> list[ScoredRating]:
    opinion, info = example.opinion, example.prompt.info
    if not isinstance(opinion, Rating):
        return []
    by_criterion = dict(zip(criteria, scores, strict=True))
    return [
        ScoredRating(
            criterion=name,
            task=info.task,
            modalities=info.modalities,
            score=by_criterion.get(name, whole),
            value=value,
            overall=whole,
            length=len(opinion.token_ids),
        )
        for name, value in opinion.ratings.items()
    ]


def standardise(module: RewardModel, raw: Tensor) -> None:
    """Sets the means and covariances of the reward model's criteria from raw scores [N, C]."""
    means, covariances = standardisation(raw)
    module.means.copy_(means)
    module.covariances.copy_(covariances)
