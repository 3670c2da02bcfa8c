"""What errors of Ray mean: whether a worker is gone, or its inputs are."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.fleet.failures import FEATURES, InputsLost, KillsWorkers, Loss, StateLost, WorldLost, is_death


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("out of reach", None),
        WorkerCrashedError(),
        OutOfMemoryError("the memory monitor killed it"),
        NodeDiedError("a spot node went"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_is_gone_however_ray_says_so(error: Exception) -> None:
    assert is_death(error)


@pytest.mark.parametrize(
    "error",
    [RayTaskError("f", "", ValueError("bad")), ObjectLostError("00", None, ""), ValueError("bad"), MemoryError()],
)
def test_what_a_worker_that_lives_has_raised_is_no_death(error: Exception) -> None:
    assert not is_death(error)


def test_losses_keep_what_they_are_of_on_their_way_between_processes() -> None:
    losses = [
        WorldLost("policy", "rank 1 died"),
        WorldLost("critic", "ranks [0] have not answered for 9 s", Loss.HUNG),
        InputsLost(FEATURES, "gone"),
        StateLost("rollout", "gone"),
    ]
    arrived = [pickle.loads(pickle.dumps(loss)) for loss in losses]
    assert [each.kind for each in arrived] == [Loss.DIED, Loss.HUNG, Loss.INPUTS, Loss.INPUTS]
    assert [str(each) for each in arrived] == [str(each) for each in losses]
    killer = pickle.loads(pickle.dumps(KillsWorkers("4 workers died of generate", ["a"])))
    assert (str(killer), killer.share) == ("4 workers died of generate", ["a"])
