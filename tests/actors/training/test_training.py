"""A training whose queue dies or hangs: a loss of the training, not a wait without end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError, PreemptionError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.preemption import PreemptionInfo
from ray.util.queue import Queue

from actors.fleet.failures import Loss, TrainingLost
from actors.training.training import Training
from pipeline.config import load_recipe

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize(("how", "kind"), [(signal.SIGKILL, Loss.DIED), (signal.SIGSTOP, Loss.HUNG)])
def test_a_queue_that_does_not_answer_is_a_loss_and_lets_nobody_wait(how: signal.Signals, kind: Loss) -> None:
    training: Any = object.__new__(Training)
    training._stage, training._deadlines = "sft", SimpleNamespace(least_s=3.0)
    training._queue, training._inbox = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
    training._inbox.put("there")
    assert training._ask(training._inbox, "get", 1.0) == "there"
    queue: Any = training._queue.actor
    inbox: Any = training._inbox.actor
    waiting = inbox.get.remote()
    os.kill(ray.get(queue.__ray_call__.remote(lambda _: os.getpid())), how)
    with pytest.raises(TrainingLost, match="sft: its queue does not answer") as caught:
        training._ask(training._queue, "get", 0.5)
    assert caught.value.kind is kind and training.has_ended
    # Its ranks, which wait at the other queue, end as well.
    with pytest.raises(RayActorError):
        ray.get(waiting, timeout=30)


def test_where_who_leads_the_ranks_dies_the_training_is_lost_and_can_begin_again() -> None:
    training: Any = object.__new__(Training)
    training._stage = "sft"
    lost = training._meaning(RayActorError())
    assert isinstance(lost, TrainingLost) and lost.kind is Loss.DIED and lost.role == "sft"


@pytest.mark.parametrize(
    ("cause", "is_lost"),
    [
        (WorkerGroupStartupFailedError("a worker died while it started"), True),
        (RuntimeError("the control plane does not answer"), True),
        (WorkerGroupStartupTimeoutError(2), False),
        (ValueError("no such backend"), False),
    ],
)
def test_a_start_that_fails_is_tried_again_unless_there_is_no_room_or_the_mistake_would_come_again(
    cause: Exception, is_lost: bool
) -> None:
    training: Any = object.__new__(Training)
    training._stage = "sft"
    failure = ControllerError(cause)
    found = training._meaning(failure)
    if is_lost:
        assert isinstance(found, TrainingLost) and found.kind is Loss.RAISED and str(cause) in str(found)
    else:
        assert found is failure


def test_a_training_whose_node_is_taken_away_begins_again() -> None:
    training: Any = object.__new__(Training)
    training._stage = "sft"
    taken = PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [1]}))
    found = training._meaning(taken)
    assert isinstance(found, TrainingLost) and found.kind is Loss.DIED


def test_train_starts_no_rank_again_by_itself_where_a_node_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("actors.training.training.TorchTrainer", lambda _, **options: given.update(options))
    monkeypatch.setattr(Training, "_fit", lambda *_: None)
    training: Any = Training(load_recipe(None, [f"run.directory={tmp_path}", "cluster.device=cpu"]), "sft")
    training._drop_queues()
    failures = given["run_config"].failure_config
    assert (failures.max_failures, failures.max_preemption_failures) == (0, 0)
