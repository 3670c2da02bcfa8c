"""A run that loses a worker of every role, or its driver; `python -m benchmarks.kills` is the long form."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from benchmarks.kills import Kill, Outcome, fingerprint, only_the_failed, recipe_of, run, settings_of

pytestmark = pytest.mark.usefixtures("local_ray")

AT = [
    ("encoder", "encode"),
    ("rollout", "generate"),
    ("reward", "scores"),
    ("reference", "logprobs"),
    ("policy", "update"),
]
NUM_STEPS = 2
NO_PARITY = "rlhf.parity.num_rows=0"
RESUMES = "run.resume=auto"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path) -> Path:
    """Data and checkpoint of all runs."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "base").symlink_to(tiny_checkpoint)
    (directory / "data").symlink_to(demo_data)
    return directory


@pytest.fixture(scope="module")
def peaceful(local_ray: None, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that loses nothing."""
    directory = tmp_path_factory.mktemp("peace")
    found = run(recipe_of(directory, shared, num_steps=NUM_STEPS, overrides=[NO_PARITY]), [])
    assert found.error is None and found.recoveries == []
    return found


def test_a_run_that_loses_a_worker_of_every_role_ends_with_the_numbers_of_one_that_loses_none(
    tmp_path: Path, shared: Path, peaceful: Outcome
) -> None:
    # The second step's: by then a checkpoint stands.
    kills = [Kill(call, place % 2, peaceful.calls[call] // 2 + 1, 0.01, hangs=False) for place, call in enumerate(AT)]
    found = run(recipe_of(tmp_path, shared, num_steps=NUM_STEPS, overrides=[NO_PARITY]), kills)
    assert found.error is None
    assert {kill.call for kill in found.killed} == set(AT)
    assert found.fingerprint == peaceful.fingerprint
    assert only_the_failed(found)
    assert found.steps_lost_most <= 1


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_same_command_goes_on_to_the_same_numbers(
    tmp_path: Path, shared: Path, peaceful: Outcome
) -> None:
    settings = [each for each in settings_of(tmp_path, shared, num_steps=NUM_STEPS) if "parity" not in each]
    settings += [NO_PARITY, RESUMES]
    command = [sys.executable, "-m", "jobs.rlhf", *settings]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    before = workers()
    first = subprocess.Popen(command, env=environment)
    checkpoint = tmp_path / "checkpoints" / "rlhf_steps" / "step-000001"
    wait_until(lambda: checkpoint.is_dir() or first.poll() is not None)
    assert first.poll() is None
    of_first = workers() - before
    assert len(of_first) == 12
    first.kill()
    wait_until(lambda: not of_first & workers(), timeout_s=60)
    second = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert second.returncode == 0, second.stderr
    assert f"resumed from {checkpoint}" in second.stdout
    assert fingerprint(recipe_of(tmp_path, shared, num_steps=NUM_STEPS)) == peaceful.fingerprint
    third = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert (third.returncode, "nothing is left to do" in third.stdout) == (0, True)


def workers() -> set[int]:
    """Processes of roles that run now."""
    titles = {each.pid: " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])}
    return {pid for pid, title in titles.items() if title.startswith("ray::") and "Worker" in title}


def wait_until(holds: Callable[[], bool], timeout_s: float = 600.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)
