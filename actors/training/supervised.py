"""Training loops that run inside Ray Train's workers, each rank an `Engine` in Train's own process group.

SFT trains the towers too, from processed media; the reward model trains on tower features, like the roles of the loop.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.engine.engine import Engine, Place, join
from actors.roles.encoder import PromptRef, fetch_encoded
from actors.roles.scoring import blank_media, own_towers
from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.algorithms.preference import bradley_terry_loss, standardisation
from pipeline.config import Recipe, RewardModel, Supervised
from pipeline.evaluation.calibration import ScoredPair
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import HEAD_FILE, load_policy, load_reward_model, save_checkpoint
from pipeline.models.forward import RewardModel as RewardModelModule
from pipeline.models.parts import parameter_groups, parameter_table, set_parts
from pipeline.models.processing import load_processor
from pipeline.models.tokens import answer_ids, pad_id
from pipeline.packing import GroupSize, plan_passes
from pipeline.records import MediaKind
from pipeline.tracking import Tracker

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Demonstration:
    """A prompt (processed or encoded) and the answer to learn."""

    prompt: PromptRef
    answer: str


@dataclass(frozen=True)
class Comparison:
    """An encoded prompt with the better and the worse completion; see `Preference` for margin and tie."""

    prompt: PromptRef
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float = 0.0
    is_tie: bool = False


HERE = -2
"""Step of the report in which a worker says that it is there; -1 is that of the table of parameters."""
ANSWERS_KEPT = 2**14
"""Answers whose tokens are remembered for the next epoch."""
T = TypeVar("T", Demonstration, Comparison)
Losses = Callable[[Sequence[T], float], dict[str, Tensor]]
PairScores = Callable[[Sequence[Comparison]], tuple[Tensor, Tensor]]
Live = frozenset[MediaKind]
"""Kinds of media whose tower the model runs itself."""


def train_sft(config: dict[str, Any]) -> None:
    """Ray Train's loop of SFT: token-mean negative log likelihood of the answers."""
    recipe: Recipe = config["recipe"]
    settings: Supervised = config["settings"]
    if not _begin(config):
        return
    source: Path = config["source"]
    trust = recipe.model.trust_remote_code
    policy = load_policy(source, dtype=recipe.model.dtype, trust_remote_code=trust)
    live = own_towers(recipe, settings.parts, policy.decoder.architecture)
    policy.decoder.blank_media = blank_media(recipe, source, policy.decoder.model, live)
    engine = _engine(policy, config)
    tokenizer = load_processor(source, trust_remote_code=trust).tokenizer
    ids_of = lru_cache(ANSWERS_KEPT)(partial(answer_ids, tokenizer))

    def size(item: Demonstration) -> GroupSize:
        return GroupSize(item.prompt.num_tokens, 1, len(ids_of(item.answer)))

    losses = demonstration_losses(engine, pad_id(tokenizer), live, ids_of)
    if _train(config, engine, losses, size, lambda sizes: float(sum(each.longest for each in sizes)), _batches(config)):
        _export(config, engine)


def demonstration_losses(
    engine: Engine, pad_id: int, live: Live, ids_of: Callable[[str], list[int]]
) -> Losses[Demonstration]:
    """What SFT minimises, and what it shows beside that, of a pass whose step has so many answer tokens.

    ids_of: the tokens of an answer, the end token included.
    """

    def losses(batch: Sequence[Demonstration], num_tokens: float) -> dict[str, Tensor]:
        prompts = collate_prompts(fetch_encoded([item.prompt for item in batch], live), pad_id=pad_id)
        ids = [np.array(ids_of(item.answer), np.int64) for item in batch]
        answers = collate_completions([[each] for each in ids], pad_id=pad_id)
        logprobs, entropy = engine(prompts.to(engine.device), answers.to(engine.device))
        return {
            "loss": negative_log_likelihood(logprobs=logprobs, num_tokens=num_tokens),
            "entropy": entropy.sum() / num_tokens,
            # These teach the end token alone.
            "counts/answers_without_tokens": torch.tensor(float(sum(len(each) == 1 for each in ids))),
        }

    return losses


def train_reward_model(config: dict[str, Any]) -> None:
    """Ray Train's loop of the reward model: Bradley-Terry on pairs, then standardisation on held-out ones."""
    recipe: Recipe = config["recipe"]
    if not _begin(config):
        return
    source: Path = config["source"]
    trust = recipe.model.trust_remote_code
    torch.manual_seed(recipe.run.seed)
    module = load_reward_model(source, dtype=recipe.model.dtype, trust_remote_code=trust)
    live = own_towers(recipe, config["settings"].parts, module.decoder.architecture)
    module.decoder.blank_media = blank_media(recipe, source, module.decoder.model, live)
    engine = _engine(module, config)
    tokenizer = load_processor(source, trust_remote_code=trust).tokenizer
    scores = partial(pair_scores, engine, pad_id(tokenizer), live)
    losses = comparison_losses(scores, margin_weight=config["settings"].margin_weight)
    batches = _batches(config)
    first = next(batches, None)
    if first is None:
        return
    # A reward model that learns on is compared with what it was.
    before = scored_pairs(engine, scores, config["held_out"]) if (source / HEAD_FILE).is_file() else None
    if _train(config, engine, losses, _pair_size, lambda sizes: float(len(sizes)), chain([first], batches)):
        held_out = scored_pairs(engine, scores, config["held_out"])
        standardise(module, held_out)
        if engine.world.rank == 0:
            score = {"mean": float(module.mean), "std": float(module.scale)}
            found = {"held_out": held_out, "held_out_before": before, "score": score}
            _report(config, (config["settings"].num_steps, found))
        _export(config, engine)


def pair_scores(engine: Engine, pad_id: int, live: Live, batch: Sequence[Comparison]) -> tuple[Tensor, Tensor]:
    """Raw scores [B] of the chosen and of the rejected completions, a prompt once for both."""
    prompts = collate_prompts(fetch_encoded([pair.prompt for pair in batch], live), pad_id=pad_id)
    completions = collate_completions(
        [[np.array(pair.chosen_ids), np.array(pair.rejected_ids)] for pair in batch], pad_id=pad_id
    )
    both = engine(prompts.to(engine.device), completions.to(engine.device)).view(-1, 2)
    return both[:, 0], both[:, 1]


def comparison_losses(scores: PairScores, *, margin_weight: float) -> Losses[Comparison]:
    """What the reward model minimises, and the share ranked right, of a pass whose step has so many pairs."""

    def losses(batch: Sequence[Comparison], num_pairs: float) -> dict[str, Tensor]:
        chosen, rejected = scores(batch)
        margin = chosen.new_tensor([margin_weight * pair.margin for pair in batch])
        is_tie = torch.tensor([pair.is_tie for pair in batch], device=chosen.device)
        right = torch.where(is_tie, 0.5, (chosen > rejected).float())
        return {
            "loss": bradley_terry_loss(
                chosen=chosen, rejected=rejected, margin=margin, is_tie=is_tie, num_pairs=num_pairs
            ),
            "accuracy": right.sum() / num_pairs,
        }

    return losses


@torch.no_grad()
def scored_pairs(engine: Engine, scores: PairScores, held_out: Sequence[Comparison]) -> list[ScoredPair]:
    """Raw scores of held-out pairs. All ranks score all pairs: they are few, and each then knows the same."""
    (plan,) = plan_passes(list(map(_pair_size, held_out)), num_ranks=1, budget=engine.settings.micro_batch_tokens)
    found: list[ScoredPair] = []
    for each in plan:
        pairs = [held_out[index] for index in each.groups]
        for pair, chosen, rejected in zip(pairs, *(part.tolist() for part in scores(pairs)), strict=True):
            info = pair.prompt.info
            found.append(ScoredPair(info.task, info.modalities, chosen, rejected, pair.is_tie))
    return found


def standardise(module: RewardModelModule, pairs: Sequence[ScoredPair]) -> None:
    """Sets the reward model's mean and scale from the raw scores of pairs."""
    mean, scale = standardisation(torch.tensor([score for pair in pairs for score in (pair.chosen, pair.rejected)]))
    module.mean.fill_(mean)
    module.scale.fill_(scale)


def _begin(config: dict[str, Any]) -> bool:
    """Joins the world, then waits for the checkpoints to work on; False where the training is cancelled."""
    context = ray.train.get_context()
    world = Place(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        address=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
        device=config["device"],
        timeout_s=config["recipe"].cluster.collective_timeout_s,
        local_rank=context.get_local_rank(),
    )
    torch.set_num_threads(config["settings"].threads_per_worker)
    join(world)
    config["world"] = world
    here = (HERE, {"worker": ray.get_runtime_context().current_actor})
    config["queue"].actor.put_nowait.remote(here)
    # Imported while there is nothing else to do.
    importlib.import_module("transformers.modeling_utils")
    begun = _receive(config)
    # Nobody may take a second message before everybody has taken a first one.
    torch.distributed.barrier()
    return begun


def _report(config: dict[str, Any], item: tuple[int, dict[str, Any]] | None) -> None:
    """Sends the driver a step's metrics, or None at the end. They arrive in order, and `_export` waits for the last."""
    config["reported"] = config["queue"].actor.put_nowait.remote(item)


def _engine(module: Any, config: dict[str, Any]) -> Engine:
    world: Place = config["world"]
    settings: Supervised | RewardModel = config["settings"]
    module.decoder.share_prefix = config["recipe"].model.share_prefix
    set_parts(module, settings.parts, field=f"{config['stage']}.parts")
    groups = parameter_groups(module, settings.parts, learning_rate=settings.learning_rate)
    engine = Engine(module, world=world, settings=settings, dtype=config["recipe"].model.dtype, groups=groups)
    if world.rank == 0:
        table = parameter_table(engine.module, settings.parts, learning_rate=settings.learning_rate)
        _report(config, (-1, {"parameters": table}))
    return engine


def _receive(config: dict[str, Any]) -> bool:
    """Takes this worker's next message out of the inbox; False where the training is cancelled."""
    (message,) = config["inbox"].get()
    data: dict[str, Any] | None = ray.get(message)
    config.update(data or {})
    return data is not None


def _batches(config: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """A batch a message. No rank is a message ahead of another: sums over the ranks end every step."""
    while _receive(config):
        yield config["items"]


def _train(
    config: dict[str, Any],
    engine: Engine,
    losses: Losses[T],
    size: Callable[[T], GroupSize],
    total_of: Callable[[Sequence[GroupSize]], float],
    batches: Iterator[Sequence[T]],
) -> bool:
    """An optimizer step a batch; False where the batches end too soon, because the training is cancelled.

    Every rank has the same whole batches, and takes its passes of each. `size` gives what an item costs in a pass,
    `total_of` the global normaliser of a whole batch.
    """
    settings: Supervised | RewardModel = config["settings"]
    totals: dict[str, float] = {}
    for step in range(settings.num_steps):
        batch = next(batches, None)
        if batch is None:
            return False
        sizes = list(map(size, batch))
        passes = plan_passes(sizes, num_ranks=engine.world.size, budget=settings.micro_batch_tokens)[engine.world.rank]
        total, totals = total_of(sizes), {}
        for each in passes:
            part = [batch[index] for index in each.groups]
            weight = 1.0 if each.counts else 0.0
            engine.train(partial(_loss, losses, part, total, weight, totals), last=each is passes[-1])
        totals = engine.sum_over_ranks(totals)
        if engine.world.rank == 0:
            metrics = {**totals, "grad_norm": engine.grad_norm, "learning_rate": engine.learning_rate}
            metrics["counts/steps_skipped"] = float(engine.is_skipped)
            _report(config, (step, metrics))
    ray.train.report({"loss": totals["loss"]})
    return True


def _pair_size(pair: Comparison) -> GroupSize:
    return GroupSize(pair.prompt.num_tokens, 2, max(len(pair.chosen_ids), len(pair.rejected_ids)))


def _loss(losses: Losses[T], part: Sequence[T], total: float, weight: float, totals: dict[str, float]) -> Tensor:
    values = losses(part, total)
    for name, value in values.items():
        totals[name] = totals.get(name, 0.0) + weight * float(value.detach())
    return weight * values["loss"]


def _export(config: dict[str, Any], engine: Engine) -> None:
    state = engine.gather()
    if engine.world.rank == 0:
        save_checkpoint(config["target"], module=engine.module, state=state, source=config["source"])
        _report(config, None)
        ray.get(config["reported"])


def show(tracker: Tracker, step: int, metrics: dict[str, Any]) -> None:
    """Logs what a worker reported; before the first step that is the table of its parameters."""
    if step < 0:
        print(metrics["parameters"], flush=True)
    else:
        tracker.log(step, metrics)
