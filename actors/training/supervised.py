"""SFT, and what all loops share that run inside Ray Train's workers, each rank an `Engine` in Train's process group.

SFT trains the towers too, from processed media; the reward model (`reward_model.py`) trains on tower features, like the
roles of the loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.engine.engine import Engine, join
from actors.engine.place import Place
from actors.roles.encoder import PromptRef, fetch_encoded
from actors.roles.scoring import blank_media, own_towers
from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.config import Recipe, RewardModel, Supervised
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy, save_checkpoint
from pipeline.models.imports import import_modeling
from pipeline.models.parts import parameter_groups, parameter_table, set_parts
from pipeline.models.processing import load_processor
from pipeline.models.tokens import answer_ids, pad_id
from pipeline.packing import GroupSize, plan_passes
from pipeline.records import MediaKind
from pipeline.tracking import Tracker

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Demonstration:
    """A prompt (processed or encoded) and the answer to learn: a text, or tokens that are learned as they are."""

    prompt: PromptRef
    answer: str | tuple[int, ...]


HERE = -2
"""Step of the report in which a worker says that it is there; -1 is that of the table of parameters."""
ANSWERS_KEPT = 2**14
"""Answers whose tokens are remembered for the next epoch."""
T = TypeVar("T")
N = TypeVar("N")
Losses = Callable[[Sequence[T], N], dict[str, Tensor]]
"""What is minimised (`loss`) and shown of the items of a pass, each a sum divided by what its whole step holds."""
Live = frozenset[MediaKind]
"""Kinds of media whose tower the model runs itself."""


def train_sft(config: dict[str, Any]) -> None:
    """Ray Train's loop of SFT: token-mean negative log likelihood of the answers."""
    recipe: Recipe = config["recipe"]
    settings: Supervised = config["settings"]
    if not begin(config):
        return
    source: Path = config["source"]
    trust = recipe.model.trust_remote_code
    policy = load_policy(source, dtype=recipe.model.dtype, trust_remote_code=trust)
    live = own_towers(recipe, settings.parts, policy.decoder.architecture)
    policy.decoder.blank_media = blank_media(recipe, source, policy.decoder.model, live)
    engine = engine_of(policy, config)
    tokenizer = load_processor(source, trust_remote_code=trust).tokenizer
    ids_of_text = lru_cache(ANSWERS_KEPT)(partial(answer_ids, tokenizer))

    def ids_of(answer: str | tuple[int, ...]) -> Sequence[int]:
        return ids_of_text(answer) if isinstance(answer, str) else answer

    def size(item: Demonstration) -> GroupSize:
        return GroupSize(item.prompt.num_tokens, 1, len(ids_of(item.answer)))

    def num_tokens(batch: Sequence[Demonstration]) -> float:
        return float(sum(len(ids_of(item.answer)) for item in batch))

    losses = demonstration_losses(engine, pad_id(tokenizer), live, ids_of)
    if train(config, engine, losses, size=size, total_of=num_tokens, batches=batches_of(config)):
        export(config, engine)


def demonstration_losses(
    engine: Engine, pad_id: int, live: Live, ids_of: Callable[[str | tuple[int, ...]], Sequence[int]]
) -> Losses[Demonstration, float]:
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


def begin(config: dict[str, Any]) -> bool:
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
    import_modeling()
    begun = _receive(config)
    # Nobody may take a second message before everybody has taken a first one.
    torch.distributed.barrier()
    return begun


def report(config: dict[str, Any], item: tuple[int, dict[str, Any]] | None) -> None:
    """Sends the driver a step's metrics, or None at the end. They arrive in order, and `export` waits for the last."""
    config["reported"] = config["queue"].actor.put_nowait.remote(item)


def engine_of(module: Any, config: dict[str, Any]) -> Engine:
    """The engine that trains a module as the stage's settings say; the driver hears which parameters learn."""
    world: Place = config["world"]
    settings: Supervised | RewardModel = config["settings"]
    module.decoder.share_prefix = config["recipe"].model.share_prefix
    set_parts(module, settings.parts, field=f"{config['stage']}.parts")
    groups = parameter_groups(module, settings.parts, learning_rate=settings.learning_rate)
    engine = Engine(module, world=world, settings=settings, dtype=config["recipe"].model.dtype, groups=groups)
    if world.rank == 0:
        table = parameter_table(engine.module, settings.parts, learning_rate=settings.learning_rate)
        report(config, (-1, {"parameters": table}))
    return engine


def _receive(config: dict[str, Any]) -> bool:
    """Takes this worker's next message out of the inbox; False where the training is cancelled."""
    (message,) = config["inbox"].get()
    data: dict[str, Any] | None = ray.get(message)
    config.update(data or {})
    return data is not None


def batches_of(config: dict[str, Any]) -> Iterator[Sequence[Any]]:
    """A batch a message. No rank is a message ahead of another: sums over the ranks end every step."""
    while _receive(config):
        yield config["items"]


def train(
    config: dict[str, Any],
    engine: Engine,
    losses: Losses[T, N],
    *,
    size: Callable[[T], GroupSize],
    total_of: Callable[[Sequence[T]], N],
    batches: Iterator[Sequence[T]],
) -> bool:
    """An optimizer step a batch; False where the batches end too soon, because the training is cancelled."""
    settings: Supervised | RewardModel = config["settings"]
    totals: dict[str, float] = {}
    for step in range(settings.num_steps):
        batch = next(batches, None)
        if batch is None:
            return False
        totals = take_step(engine, batch, losses, size=size, total_of=total_of)
        if engine.world.rank == 0:
            metrics = {**totals, "grad_norm": engine.grad_norm, "learning_rate": engine.learning_rate}
            metrics["counts/steps_skipped"] = float(engine.is_skipped)
            report(config, (step, metrics))
    ray.train.report({"loss": totals["loss"]})
    return True


def take_step(
    engine: Engine,
    batch: Sequence[T],
    losses: Losses[T, N],
    *,
    size: Callable[[T], GroupSize],
    total_of: Callable[[Sequence[T]], N],
) -> dict[str, float]:
    """An optimizer step; returns what `losses` gave of the whole batch.

    Every rank has the same whole batch, and takes its passes of it. `size` gives what an item costs in a pass,
    `total_of` the global normalisers of a whole batch.
    """
    budget = engine.settings.micro_batch_tokens
    passes = plan_passes(list(map(size, batch)), num_ranks=engine.world.size, budget=budget)[engine.world.rank]
    total, totals = total_of(batch), dict[str, float]()
    for each in passes:
        part = [batch[index] for index in each.groups]
        weight = 1.0 if each.counts else 0.0
        engine.train(partial(_loss, losses, part, total, weight, totals), last=each is passes[-1])
    return engine.sum_over_ranks(totals)


def _loss(losses: Losses[T, N], part: Sequence[T], total: N, weight: float, totals: dict[str, float]) -> Tensor:
    values = losses(part, total)
    for name, value in values.items():
        totals[name] = totals.get(name, 0.0) + weight * float(value.detach())
    return weight * values["loss"]


def export(config: dict[str, Any], engine: Engine) -> None:
    """Writes the checkpoint, and tells the driver that it lies there. All ranks must call it."""
    state = engine.gather()
    if engine.world.rank == 0:
        save_checkpoint(config["target"], module=engine.module, state=state, source=config["source"])
        report(config, None)
        ray.get(config["reported"])


def show(tracker: Tracker, step: int, metrics: dict[str, Any]) -> None:
    """Logs what a worker reported; before the first step that is the table of its parameters."""
    if step < 0:
        print(metrics["parameters"], flush=True)
    else:
        tracker.log(step, metrics)
