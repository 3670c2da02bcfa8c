"""Checkpoints of the loop with real actors: another number of workers, another ZeRO stage, damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs import rlhf
from pipeline.config import Recipe
from tests.jobs.small import MakeRecipe, curve, small_recipe

pytestmark = pytest.mark.usefixtures("local_ray")

TWO_WORKERS_AT_STAGE_3 = [
    f"rlhf.{role}.{setting}" for role in ("policy", "critic") for setting in ("num_workers=2", "zero_stage=3")
]


@pytest.fixture(scope="module")
def uninterrupted(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path
) -> Recipe:
    """A finished run of three steps with one worker a role."""
    recipe = small_recipe(tmp_path_factory.mktemp("one"), tiny_checkpoint, demo_data)
    rlhf.run(recipe)
    return recipe


def test_one_worker_without_zero_goes_on_as_two_with_zero_3_and_past_a_damaged_checkpoint(
    uninterrupted: Recipe, make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    rlhf.run(make_recipe("rlhf.num_steps=2"))
    saved = make_recipe().run.directory / "checkpoints" / "rlhf_steps"
    # A later checkpoint with one wrong bit on the disk.
    shutil.copytree(saved / "step-000002", saved / "step-000003")
    file = saved / "step-000003" / "critic" / "rank-00000-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    resumed = make_recipe(*TWO_WORKERS_AT_STAGE_3)
    capfd.readouterr()
    rlhf.run(resumed, resume=True)
    told = capfd.readouterr().out
    assert f"refused checkpoint {saved}/step-000003: critic/rank-00000-000.safetensors: sha256" in told
    assert f"resumed from {saved}/step-000002" in told
    rows = curve(resumed)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for expected, found in zip(curve(uninterrupted), rows, strict=True):
        for name in ("policy/loss", "critic/loss", "policy/entropy", "policy/grad_norm", "reward/mean", "kl/reference"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-5), (name, expected["step"])
    # Nothing was overwritten: the step was saved again under a name of its own.
    assert (saved / "step-000003.1" / "critic" / "rank-00001-000.safetensors").is_file()
