"""What is brought back for which loss, what is done again, and when it is given up; worlds here are fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.engine.files import Folder
from actors.fleet.failures import FEATURES, CannotSave, InputsLost, TooManyRecoveries, WorldLost
from actors.fleet.recoveries import Recoveries
from actors.loop import checkpoints
from actors.loop.checkpoints import LoopState
from actors.loop.recovery import Recovery
from pipeline.config import Kl, load_recipe
from tests.actors.at_once import AtOnce


class World(AtOnce):
    """Counts how often it is started again."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.num_starts = 0

    def restart(self) -> Path:
        self.num_starts += 1
        return Path(self.role)

    def setup(self, path: Path) -> Any:
        assert path == Path(self.role)
        return self.answer([None])


class Bench:
    def __init__(self, *overrides: str) -> None:
        worlds = {role: World(role) for role in ("policy", "critic", "reference", "reward")}
        self.worlds = SimpleNamespace(**worlds)
        self.recoveries = Recoveries(max_an_hour=20)
        roles = SimpleNamespace(**worlds, recoveries=self.recoveries)
        self.recovery = Recovery(cast(Any, roles), load_recipe(None, overrides))

    def starts(self) -> dict[str, int]:
        return {role: world.num_starts for role, world in vars(self.worlds).items() if world.num_starts}


def failing(*errors: Exception) -> Callable[..., str]:
    """A phase that meets these errors one after the other, and then comes to its end."""
    left = list(errors)

    def phase(*_: Any) -> str:
        if left:
            raise left.pop(0)
        return "done"

    return phase


def test_a_scoring_world_is_started_again_alone_and_the_phase_repeated() -> None:
    bench = Bench()
    assert bench.recovery.insist(failing(WorldLost("reward", "rank 1 died"))) == "done"
    assert bench.starts() == {"reward": 1}
    assert bench.recoveries.counts() == {"counts/recoveries:reward": 1.0, "counts/recoveries_by_cause:died": 1.0}
    seconds = bench.recoveries.all[0].seconds
    assert seconds is not None
    assert bench.recoveries.seconds() == {"recovery/reward_s": seconds} and bench.recoveries.seconds() == {}


def test_lost_features_are_encoded_again_before_the_phase_is_repeated() -> None:
    bench, renewed = Bench(), list[int]()
    phase = failing(InputsLost(FEATURES, "gone"), InputsLost(FEATURES, "others gone"))
    assert bench.recovery.insist(phase, renew=lambda: renewed.append(1)) == "done"
    assert len(renewed) == 2 and bench.starts() == {}


def test_a_learner_takes_the_step_with_it_and_both_learners_start_again() -> None:
    bench = Bench()
    lost = WorldLost("critic", "rank 0 died")
    with pytest.raises(WorldLost, match="critic: rank 0 died"):
        bench.recovery.insist(failing(lost))
    bench.recovery.step = 3
    state = bench.recovery.rolled_back(lost)
    # Without a checkpoint of its own the run begins again.
    assert state.step == 0 and bench.recoveries.all[0].steps == 3
    assert bench.starts() == {"policy": 1, "critic": 1}


def test_what_fails_in_the_same_way_again_and_again_ends_the_run() -> None:
    bench = Bench()
    always = [WorldLost("reference", "rank 0 raised OutOfMemoryError: 9 GiB")] * 9
    with pytest.raises(TooManyRecoveries, match="step 0 was lost 4 times in the same way: reference: rank 0"):
        bench.recovery.insist(failing(*always))
    assert bench.starts() == {"reference": 3}


def test_an_error_that_nothing_can_bring_back_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match="wrong"):
        Bench().recovery.insist(failing(ValueError("wrong")))


class Full(OSError):
    """What a store's client raises."""


def test_a_checkpoint_that_cannot_be_written_is_counted_and_several_one_after_the_other_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(f"run.directory={tmp_path}", "rlhf.checkpoints.max_failures=1")
    recovery, state = bench.recovery, LoopState.start(Kl())
    outcomes: list[Any] = [Full("no room"), Folder(str(tmp_path / "step-000002")), Full("no room"), Full("no way")]

    def save(*_: Any) -> Folder:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(checkpoints, "keep", lambda *_: None)
    monkeypatch.setattr(checkpoints, "claim", lambda *_: None)
    for step in (1, 2, 3):
        recovery.saved(replace(state, step=step), {})
    assert [loss.cause for loss in bench.recoveries.all] == [
        "step 1 is not saved, there is none before it: no room",
        "step 3 is not saved, the run goes on with step-000002: no room",
    ]
    with pytest.raises(CannotSave, match=r"max_failures=1: 2 checkpoints .* no way; make room there, or"):
        recovery.saved(replace(state, step=4), {})
    assert bench.recoveries.counts() == {
        "counts/recoveries:checkpoint": 3.0,
        "counts/recoveries_by_cause:unsaved": 3.0,
    }


def test_a_mistake_while_saving_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "save", failing(TypeError("a mistake")))
    with pytest.raises(TypeError, match="a mistake"):
        Bench(f"run.directory={tmp_path}").recovery.saved(LoopState.start(Kl()), {})
