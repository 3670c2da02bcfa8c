"""Training loops that run inside Ray Train's workers, each rank an `Engine` in Train's own process group.

SFT trains the towers too, from processed media; the reward model trains on tower features, like the roles of the loop.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from queue import Empty
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import torch
from numpy.typing import NDArray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from torch import Tensor

from actors.engine.engine import Engine, Place, join
from actors.fleet.placement import rank_resources, resolve_device
from actors.roles.encoder import PromptRef, fetch_encoded
from actors.roles.scoring import blank_media, own_towers
from pipeline.algorithms.likelihood import negative_log_likelihood
from pipeline.algorithms.preference import bradley_terry_loss, standardisation
from pipeline.config import ConfigError, Device, Recipe, RewardModel, Supervised
from pipeline.evaluation.calibration import ScoredPair
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy, load_reward_model, save_checkpoint
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


STEPS_AHEAD = 3
"""Batches that lie ready for the workers."""
ANSWERS_KEPT = 2**14
"""Answers whose tokens are remembered for the next epoch."""
T = TypeVar("T", Demonstration, Comparison)
Losses = Callable[[Sequence[T], float], dict[str, Tensor]]
PairScores = Callable[[Sequence[Comparison]], tuple[Tensor, Tensor]]
Live = frozenset[MediaKind]
"""Kinds of media whose tower the model runs itself."""


class Training:
    """Ray Train's workers of one stage. They start at once and wait for their checkpoint and their data.

    Raises:
        ConfigError: the batch cannot be split evenly.
    """

    def __init__(self, recipe: Recipe, stage: str):
        settings: Supervised | RewardModel = getattr(recipe, stage)
        if settings.batch_size % settings.num_workers:
            raise ConfigError(f"batch_size={settings.batch_size} is no multiple of num_workers={settings.num_workers}")
        device = resolve_device(recipe.cluster)
        self._num_workers = settings.num_workers
        self._queue, self._inbox = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        trainer = TorchTrainer(
            {"sft": train_sft, "reward_model": train_reward_model}[stage],
            train_loop_config={
                "recipe": recipe,
                "stage": stage,
                "settings": settings,
                "device": device,
                "queue": self._queue,
                "inbox": self._inbox,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.num_workers,
                use_gpu=device is Device.CUDA,
                resources_per_worker=rank_resources(settings, recipe.cluster.placement, device),
            ),
            torch_config=TorchConfig(backend="nccl" if device is Device.CUDA else "gloo"),
            # A name of its own: Train would take up an earlier run of the same name where that ended.
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str((recipe.run.directory / "ray_train").absolute()),
                # Train asks for its seats again each minute, by itself for ever.
                failure_config=ray.train.FailureConfig(
                    controller_failure_limit=math.ceil(recipe.cluster.resource_timeout_s / 60)
                ),
            ),
        )
        self._is_waiting = True
        self._is_cancelled = False
        self.has_ended = False
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def run(
        self, *, source: Path, target: Path, data: Iterator[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Trains from checkpoint `source` to `target`, and yields (step, metrics) meanwhile.

        `data` gives what the workers read, a message a step, a few steps ahead: `items`, the batch; the reward model's
        first one also the pairs `held_out`. The first ones are asked for while the workers start and load.
        """
        self._send({"source": source.absolute(), "target": target.absolute()})
        for _ in range(STEPS_AHEAD):
            self._send_next(data)
        while self._thread.is_alive() or not self._queue.empty():
            try:
                item: tuple[int, dict[str, Any]] | None = self._queue.get(timeout=0.5)
            except Empty:
                continue
            if item is None:
                # The checkpoint lies there: Train takes seconds more to clear away, which nobody needs to wait for.
                break
            if item[0] >= 0:
                self._send_next(data)
            yield item
        self.has_ended = True
        if self._failures:
            raise self._failures[0]

    def cancel(self) -> None:
        """Lets workers that wait for something end without it. Those at work end with the driver."""
        if self._is_waiting:
            self._is_waiting, self.has_ended, self._is_cancelled = False, True, True
            self._send(None)

    def close(self) -> None:
        """Cancels a training that nobody asked for; one that has ended clears away first, and its errors are raised.

        One that was cancelled because of an error has none of its own to tell: its data ended under its hands.
        """
        if self.has_ended:
            self._thread.join()
            if self._failures and not self._is_cancelled:
                raise self._failures[0]
        self.cancel()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._failures.append(error)

    def _send_next(self, data: Iterator[dict[str, Any]]) -> None:
        try:
            message = next(data, None)
        except BaseException:
            self.cancel()
            raise
        if message is None:
            self._is_waiting = False
        else:
            self._send(message)

    def _send(self, message: dict[str, Any] | None) -> None:
        # As a reference in a list: the queue's process need not understand what it passes on.
        self._inbox.put_nowait_batch([[ray.put(message)]] * self._num_workers)


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
    if _train(config, engine, losses, _pair_size, lambda sizes: float(len(sizes)), _batches(config)):
        held_out = standardise(engine, scores, config["held_out"])
        if engine.world.rank == 0:
            score = {"mean": float(module.mean), "std": float(module.scale)}
            _report(config, (config["settings"].num_steps, {"held_out": held_out, "score": score}))
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
def standardise(engine: Engine, scores: PairScores, held_out: Sequence[Comparison]) -> list[ScoredPair]:
    """Sets the reward model's mean and scale from the scores of held-out pairs, and returns these scores.

    All ranks do the same, on all pairs: few, and every rank then holds the same buffers.
    """
    (plan,) = plan_passes(list(map(_pair_size, held_out)), num_ranks=1, budget=engine.settings.micro_batch_tokens)
    found: list[ScoredPair] = []
    for each in plan:
        pairs = [held_out[index] for index in each.groups]
        for pair, chosen, rejected in zip(pairs, *(part.tolist() for part in scores(pairs)), strict=True):
            info = pair.prompt.info
            found.append(ScoredPair(info.task, info.modalities, chosen, rejected, pair.is_tie))
    both = torch.tensor([score for pair in found for score in (pair.chosen, pair.rejected)])
    mean, scale = standardisation(both)
    engine.module.mean.fill_(mean)
    engine.module.scale.fill_(scale)
    return found


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
