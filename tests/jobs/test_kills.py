"""A run that loses a worker of every role; `python -m benchmarks.kills` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import Kill, only_the_failed, recipe_of, run

pytestmark = pytest.mark.usefixtures("local_ray")

AT = [
    ("encoder", "encode"),
    ("rollout", "generate"),
    ("reward", "scores"),
    ("reference", "logprobs"),
    ("policy", "update"),
]


def test_a_run_that_loses_a_worker_of_every_role_ends_with_the_numbers_of_one_that_loses_none(
    tmp_path: Path, tiny_checkpoint: Path, demo_data: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "base").symlink_to(tiny_checkpoint)
    (shared / "data").symlink_to(demo_data)
    parity = "rlhf.parity.num_rows=0"
    peaceful = run(recipe_of(tmp_path / "peace", shared, num_steps=2, overrides=[parity]), [])
    assert peaceful.error is None and peaceful.recoveries == []
    # The second step's: by then a checkpoint stands.
    kills = [Kill(call, place % 2, peaceful.calls[call] // 2 + 1, 0.01, hangs=False) for place, call in enumerate(AT)]
    found = run(recipe_of(tmp_path / "kills", shared, num_steps=2, overrides=[parity]), kills)
    assert found.error is None
    assert {kill.call for kill in found.killed} == set(AT)
    assert found.fingerprint == peaceful.fingerprint
    assert only_the_failed(found)
    assert found.steps_lost_most <= 1
