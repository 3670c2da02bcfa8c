"""A supervised stage as its driver sees it: Ray Train's workers, what they are sent, and what they report."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
)
from ray.util.queue import Queue

from actors.fleet.failures import MISTAKES, Loss, TrainingLost, cause_of, is_death
from actors.fleet.forks import copied
from actors.fleet.placement import rank_resources, resolve_device
from actors.training.preference import train_preference
from actors.training.reward_model import train_reward_model
from actors.training.supervised import HERE, train_sft
from pipeline.config import ConfigError, Device, PreferenceLearning, Recipe, RewardModel, Supervised
from pipeline.config.pretrain import Pretrain


def train_contrastive(config: dict[str, Any]) -> None:
    """The loop of contrastive pretraining. Its imports take seconds, for which other stages do not wait."""
    from actors.training import contrastive

    contrastive.train_contrastive(config)


LOOPS = {
    "sft": train_sft,
    "distill": train_sft,
    "reward_model": train_reward_model,
    "preference": train_preference,
    "pretrain": train_contrastive,
}
"""What runs in the workers of each stage."""
_NO_ROOM = (WorkerGroupStartupTimeoutError, InsufficientClusterResourcesError)
"""Why Train's controller gives up where another try would not help: it has waited for as long as the recipe says."""
_LOOK_S = 0.5
STEPS_AHEAD = 3
"""Batches that lie ready for the workers."""


class Lead:
    """Asks for a training. What Ray Train starts besides the ranks starts as its asker did: as copies."""

    def fit(self, trainer: TorchTrainer) -> None:
        """Trains."""
        trainer.fit()


class Training:
    """Ray Train's workers of one stage. They start at once and wait for their checkpoint and their data.

    Raises:
        ConfigError: the batch cannot be split evenly.
    """

    def __init__(self, recipe: Recipe, stage: str):
        settings: Supervised | RewardModel | PreferenceLearning | Pretrain = getattr(recipe, stage)
        if settings.batch_size % settings.num_workers:
            raise ConfigError(f"batch_size={settings.batch_size} is no multiple of num_workers={settings.num_workers}")
        device = resolve_device(recipe.cluster)
        self._stage = stage
        self._num_workers = settings.num_workers
        self._deadlines = recipe.cluster.deadlines
        self._longest_s = 0.0
        """Seconds of the longest step so far."""
        self._workers: list[Any] = []
        """Train's actors, of which each says that it is there."""
        self._was_there = False
        """Whether any has."""
        self._start_s = recipe.cluster.resource_timeout_s
        """Seconds that a cluster may take to have room for them."""
        self._queue, self._inbox = (Queue(actor_options={"num_cpus": 0, **copied(device)}) for _ in range(2))
        trainer = TorchTrainer(
            LOOPS[stage],
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
                worker_runtime_env=copied(device).get("runtime_env"),
                # Train asks for its seats again each minute, by itself for ever. Where nodes are taken away it would
                # start the ranks again by itself, too, in the midst of what they are sent.
                failure_config=ray.train.FailureConfig(
                    controller_failure_limit=math.ceil(recipe.cluster.resource_timeout_s / 60),
                    max_preemption_failures=0,
                ),
            ),
        )
        self._is_waiting = True
        self._is_cancelled = False
        self.has_ended = False
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._fit, args=(trainer, device), daemon=True)
        self._thread.start()

    def run(
        self, *, source: Path, target: Path, data: Iterator[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Trains from checkpoint `source` to `target`, and yields (step, metrics) meanwhile.

        `data` gives what the workers read, a message a step, a few steps ahead: `items`, the batch; the reward model's
        first one also the examples `held_out`, and their prompts with `blanked` media; preference learning's also what
        the reference is `wanted` for and what is `known` of it, without `items` where it is asked before all steps. The
        first ones are asked for while the workers start and load.

        Raises:
            TrainingLost: a rank died or raised what may not come again, or nothing has come for too long.
        """
        self._send({"source": source.absolute(), "target": target.absolute()})
        for _ in range(STEPS_AHEAD):
            self._send_next(data)
        heard = time.monotonic()
        while self._thread.is_alive() or not self._ask(self._queue, "empty"):
            item: tuple[int, dict[str, Any]] | None
            try:
                item = self._ask(self._queue, "get", _LOOK_S)
            except Empty:
                self._kill_who_hangs(time.monotonic() - heard)
                continue
            if item is not None and item[0] == HERE:
                self._workers.append(item[1]["worker"])
                self._was_there = True
                continue
            if item is None:
                # The checkpoint lies there: Train takes seconds more to clear away, which nobody needs to wait for.
                break
            if item[0] >= 0:
                self._longest_s = max(self._longest_s, time.monotonic() - heard)
                self._send_next(data)
            yield item
            heard = time.monotonic()
        self.has_ended = True
        if self._failures:
            raise self._meaning(self._failures[0])

    def _ask(self, queue: Queue, method: str, *args: Any) -> Any:
        """What the process of a queue says; its own methods wait for it without end.

        Raises:
            TrainingLost: it died or hangs.
        """
        try:
            return ray.get(getattr(queue.actor, method).remote(*args), timeout=self._deadlines.least_s)
        except Exception as error:
            if not is_death(error) and not isinstance(error, GetTimeoutError):
                raise  # what the queue says: `Empty`
            self._drop_queues()
            kind = Loss.DIED if is_death(error) else Loss.HUNG
            raise TrainingLost(self._stage, f"its queue does not answer: {error}", kind) from error

    def _drop_queues(self) -> None:
        """Ends the queues, at which workers would wait for ever: they end then, too."""
        self._is_waiting, self.has_ended, self._is_cancelled = False, True, True
        for queue in (self._queue, self._inbox):
            queue.shutdown(force=True)

    def _kill_who_hangs(self, silent_s: float) -> None:
        limits = self._deadlines
        is_stepping = self._longest_s > 0 and self._is_waiting  # Before that it loads, and after that it exports.
        limit = max(limits.least_s, limits.factor * self._longest_s) if is_stepping else limits.first_s
        if silent_s > limit and self._workers:
            print(f"{self._stage}: no step for {silent_s:.0f} s, its ranks are taken for dead", flush=True)
            for worker in self._workers:
                ray.kill(worker)
            self._workers.clear()  # Train says the rest.
        elif silent_s > limits.first_s + self._start_s and not self._was_there:
            self._drop_queues()
            raise TrainingLost(self._stage, f"no rank has come within {silent_s:.0f} s", Loss.HUNG)

    def _meaning(self, failure: BaseException) -> BaseException:
        """What a failure of Train is to whoever asked: ranks that die, or meet what others did, may do so no more."""
        if is_death(failure):
            return TrainingLost(self._stage, f"who leads its ranks is gone: {failure}", Loss.DIED)
        if isinstance(failure, PreemptionError):
            return TrainingLost(self._stage, str(failure), Loss.DIED)
        if isinstance(failure, ControllerError):
            cause = failure.controller_failure
            if isinstance(cause, (*_NO_ROOM, *MISTAKES)):
                return failure
            return TrainingLost(self._stage, f"its start: {type(cause).__name__}: {cause}", Loss.RAISED)
        if not isinstance(failure, WorkerGroupError):
            return failure
        causes = {
            rank: error._base_exc if isinstance(error, UserExceptionWithTraceback) else error  # pyright: ignore[reportPrivateUsage]
            for rank, error in failure.worker_failures.items()
        }
        if any(isinstance(cause, MISTAKES) for cause in causes.values()):
            return failure
        rank, cause = next(iter(causes.items()))
        kind = Loss.DIED if is_death(cause) else Loss.RAISED
        return TrainingLost(self._stage, f"rank {rank}: {type(cause).__name__}: {cause}", kind)

    def cancel(self) -> None:
        """Lets workers that wait for something end without it. Those at work end with the driver."""
        if self._is_waiting:
            self._is_waiting, self.has_ended, self._is_cancelled = False, True, True
            with suppress(TrainingLost):
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

    def _fit(self, trainer: TorchTrainer, device: Device) -> None:
        try:
            if copies := copied(device):
                here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
                lead: Any = ray.remote(Lead).options(num_cpus=0, label_selector=here, **copies).remote()
                ray.get(lead.fit.remote(trainer))
            else:
                trainer.fit()
        except BaseException as error:
            self._failures.append(cause_of(error))

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
        self._ask(self._inbox, "put_nowait_batch", [[ray.put(message)]] * self._num_workers)
