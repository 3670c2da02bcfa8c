"""A run that loses a worker of every role, or its driver; `python -m benchmarks.kills` is the long form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from actors.fleet.forks import SERVE
from actors.fleet.recoveries import read_losses
from actors.training import supervised
from benchmarks.kills import fingerprint, recipe_of, run, settings_of
from benchmarks.kills_report import Outcome, only_the_failed
from benchmarks.kills_watch import Call, How, Kill, Phase
from jobs import sft
from pipeline.config import Recipe
from pipeline.tracking import Tracker
from tests.jobs.small import MakeRecipe, curve

pytestmark = pytest.mark.usefixtures("local_ray")

AT = {
    Call(Phase.ENCODE, "encoder", "encode"): 0,
    Call(Phase.GENERATE, "rollout", "generate"): 1,
    Call(Phase.SCORE, "reward", "scores_and_uncertainties"): 0,
    Call(Phase.SCORE, "reference", "logprobs"): 1,
    Call(Phase.SCORE, "critic", "values"): 0,
    Call(Phase.UPDATE, "policy", "update"): 0,
}
"""Where a worker of each role is lost, and which one."""
HANGS = Call(Phase.SCORE, "reference", "logprobs")
"""The one of these that is stopped instead of killed."""
NUM_STEPS = 2
FEWER = ("rlhf.parity.num_rows=0", "rlhf.critic.num_workers=1", "rlhf.reward.num_workers=1")
"""The long form has two of these as well; here it is ranks of policy and of reference that wait for each other."""
CALM = (*FEWER, "cluster.deadlines={first_s: 600, least_s: 120, factor: 10}")
"""Nothing hangs here, and the machine may be busy."""
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
    found = run(recipe_of(directory, shared, num_steps=NUM_STEPS, overrides=CALM), [])
    assert found.error is None and found.recoveries == []
    return found


def test_a_run_goes_through_every_phase_in_which_the_long_form_kills(peaceful: Outcome) -> None:
    assert {call.phase for call in peaceful.calls} == set(Phase)


def test_a_run_that_loses_a_worker_of_every_role_ends_with_the_numbers_of_one_that_loses_none(
    tmp_path: Path, shared: Path, peaceful: Outcome
) -> None:
    # The second step's: by then a checkpoint stands.
    kills = [
        Kill(call, place, peaceful.calls[call] // 2 + 1, 0.01, How.HANG if call == HANGS else How.KILL)
        for call, place in AT.items()
    ]
    impatient = (*FEWER, "cluster.deadlines={first_s: 600, least_s: 30, factor: 10}")
    found = run(recipe_of(tmp_path, shared, num_steps=NUM_STEPS, overrides=impatient), kills)
    assert found.error is None
    assert {kill.call for kill in found.killed} == set(AT)
    assert found.fingerprint == peaceful.fingerprint
    assert only_the_failed(found)
    assert found.steps_lost_most <= 1


def test_a_driver_that_is_killed_takes_its_workers_along_and_the_same_command_goes_on_to_the_same_numbers(
    tmp_path: Path, shared: Path, peaceful: Outcome
) -> None:
    given = {each.partition("=")[0]: each for each in settings_of(tmp_path, shared, num_steps=NUM_STEPS)}
    settings = {**given, **{each.partition("=")[0]: each for each in CALM}, "": RESUMES}.values()
    command = [sys.executable, "-m", "jobs.rlhf", *settings]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    before = workers()
    first = subprocess.Popen(command, env=environment)
    checkpoint = tmp_path / "checkpoints" / "rlhf_steps" / "step-000001"
    wait_until(lambda: checkpoint.is_dir() or first.poll() is not None)
    assert first.poll() is None
    of_first = workers() - before
    assert len(of_first) >= 10  # Pools that have waited for long have a spare.
    first.kill()
    wait_until(lambda: not of_first & workers(), timeout_s=180)
    second = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert second.returncode == 0, second.stderr
    assert f"resumed from {checkpoint}" in second.stdout
    assert fingerprint(recipe_of(tmp_path, shared, num_steps=NUM_STEPS)) == peaceful.fingerprint
    third = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert (third.returncode, "nothing is left to do" in third.stdout) == (0, True)


ROLES = ("Encoder", "Rollout", "Policy", "Critic", "Reference", "Reward")


def workers(*titles: str) -> set[int]:
    """Processes of this Ray that run now, by how Ray calls them: those of roles, where none are named."""
    starts = titles or tuple(f"ray::{role}Worker" for role in ROLES)
    found = {each.pid: (each.info["ppid"], _command(each)) for each in psutil.process_iter(["cmdline", "ppid"])}
    session = ray.get_runtime_context().get_session_name()
    parents = {pid for pid, (_, command) in found.items() if session in command}
    servers = {f"{SERVE} {raylet}" for raylet in parents}
    parents |= {pid for pid, (_, title) in found.items() if title.strip() in servers}
    return {pid for pid, (parent, title) in found.items() if parent in parents and title.startswith(starts)}


def _command(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or [])


def wait_until(holds: Callable[[], bool], timeout_s: float = 600.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_rank_of_a_training_that_hangs_is_killed_and_costs_the_stage_its_steps_and_no_bit(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["sft.num_workers=2", "sft.num_steps=8", "sft.batch_size=4"]
    settings += ["cluster.deadlines={first_s: 90, least_s: 10, factor: 4}"]
    expected = trained(make_recipe(*settings))

    show, victims = supervised.show, list[int]()

    def showing(tracker: Tracker, step: int, metrics: dict[str, Any]) -> None:
        show(tracker, step, metrics)
        if step == 1 and not victims:
            victims.append(max(workers("ray::RayTrainWorker")))
            os.kill(victims[0], signal.SIGSTOP)

    monkeypatch.setattr(supervised, "show", showing)
    recipe = make_recipe(*settings)
    assert trained(recipe) == expected
    assert [(loss["role"], loss["stage"]) for loss in read_losses(recipe.run.directory)] == [("sft", "sft")]
    assert read_losses(recipe.run.directory)[0]["seconds"] > 0
    assert victims and not psutil.pid_exists(victims[0])


def trained(recipe: Recipe) -> tuple[list[dict[str, Any]], bytes]:
    """The curve of SFT, and the weights."""
    sft.run(recipe)
    return curve(recipe, "sft"), (recipe.checkpoint("sft") / "model.safetensors").read_bytes()
