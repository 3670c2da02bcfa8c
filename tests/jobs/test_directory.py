"""Who writes a run, and which of its stages are done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import quickstart
from jobs.directory import LOCK_FILE, Done, held
from jobs.quickstart import STAGES
from pipeline.config import ConfigError, Recipe, load_recipe

HOLDS = """
import sys, time
from pathlib import Path
from jobs import quickstart
from jobs.directory import held
with held(Path(sys.argv[1]), renew_s=float(sys.argv[2]), expires_s=60):
    print("holds", flush=True)
    time.sleep(600)
"""


class Holder:
    """Another process that holds the lock of a run."""

    def __init__(self, directory: Path, renew_s: float):
        command = [sys.executable, "-c", HOLDS, str(directory), str(renew_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holds\n"


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[float], Holder]:
    def start(renew_s: float) -> Holder:
        started = Holder(tmp_path, renew_s)
        request.addfinalizer(started.process.wait)
        request.addfinalizer(started.process.kill)
        return started

    return start


def elsewhere(directory: Path) -> None:
    """Makes the owner one of another machine, whose processes nobody here can see."""
    path = directory / LOCK_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "far"}))


def test_a_run_that_a_living_driver_writes_is_refused_to_a_second_one_which_is_told_whose_it_is(
    tmp_path: Path, holder: Callable[[float], Holder]
) -> None:
    process = holder(0.05).process
    told = rf"run.directory={tmp_path}: process {process.pid} on .* end that one first"
    with pytest.raises(ConfigError, match=told), held(tmp_path):
        pytest.fail("two drivers hold it")


def test_the_lock_of_a_driver_that_was_killed_is_taken_at_once(
    tmp_path: Path, holder: Callable[[float], Holder]
) -> None:
    process = holder(600).process
    process.kill()
    process.wait()
    started = time.monotonic()
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert time.monotonic() - started < 5
    assert (tmp_path / LOCK_FILE).read_text() == ""  # Free again.


def test_the_lock_of_another_machine_is_taken_once_it_has_not_been_touched_for_long_enough(
    tmp_path: Path, holder: Callable[[float], Holder]
) -> None:
    process = holder(600).process
    elsewhere(tmp_path)
    started = time.monotonic()
    with held(tmp_path, expires_s=1.0):
        assert time.monotonic() - started >= 1.0
        assert process.poll() is None


def test_an_owner_that_finds_the_run_taken_over_ends(tmp_path: Path, holder: Callable[[float], Holder]) -> None:
    process = holder(0.1).process
    process.send_signal(signal.SIGSTOP)  # As a machine that sleeps does.
    elsewhere(tmp_path)
    with held(tmp_path, expires_s=1.0):
        process.send_signal(signal.SIGCONT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert "another driver has taken this run over; this one ends" in told


def recipe_of(directory: Path, *overrides: str) -> Recipe:
    return load_recipe(None, [f"run.directory={directory}", "run.resume=auto", *overrides])


def test_stages_stay_done_until_something_changes_that_they_stand_on(tmp_path: Path) -> None:
    done = Done(recipe_of(tmp_path), STAGES)
    assert not any(map(done.has, STAGES))
    for stage in STAGES:
        assert not done.all()
        done.add(stage)
    assert done.all()
    assert Done(recipe_of(tmp_path, "run.name=other", "cluster.device=cpu"), STAGES).all()
    changed = Done(recipe_of(tmp_path, "preferences.error_rate=0.2"), STAGES)
    assert [stage for stage in STAGES if changed.has(stage)] == ["prepare", "sft"]
    # What a changed recipe has undone stays undone.
    assert not Done(recipe_of(tmp_path), STAGES).has("rlhf")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    Done(recipe_of(tmp_path), STAGES).add("prepare")
    assert not Done(recipe_of(tmp_path, "run.seed=1"), STAGES).has("prepare")


def test_a_run_that_never_resumes_has_nothing_done(tmp_path: Path) -> None:
    Done(recipe_of(tmp_path), STAGES).add("prepare")
    assert not Done(recipe_of(tmp_path, "run.resume=never"), STAGES).has("prepare")


def test_a_quickstart_that_was_cut_off_does_what_is_left_and_one_that_ended_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[object] = []
    fails = {"reward_model"}

    def stage(name: str) -> Callable[..., None]:
        def run(_: Recipe, *, crew: object = None, **options: object) -> None:
            if name in fails:
                raise KeyboardInterrupt
            done.append((name, options["resume"]) if options else name)

        return run

    for name in STAGES:
        monkeypatch.setattr(getattr(quickstart, name), "run", stage(name))
    monkeypatch.setattr(quickstart, "crew_of", lambda _: nullcontext(SimpleNamespace(fits_whole=lambda: False)))
    recipe = recipe_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        quickstart.run(recipe)
    assert done == ["prepare", "sft"]
    fails.clear()
    capsys.readouterr()
    quickstart.run(recipe)
    # The loop begins anew, because what it starts from was learned anew.
    assert done[2:] == ["reward_model", ("rlhf", False), "evaluate"]
    assert "== sft: done before" in capsys.readouterr().out
    quickstart.run(recipe)
    assert len(done) == 5
    changed = recipe_of(tmp_path, "rlhf.num_steps=7")
    quickstart.run(changed)
    assert done[5:] == [("rlhf", None), "evaluate"]  # It goes on from its own checkpoints.
    quickstart.run(recipe_of(tmp_path, "run.resume=never"))
    assert done[7:] == ["prepare", "sft", "reward_model", ("rlhf", False), "evaluate"]
