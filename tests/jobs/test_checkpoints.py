"""Checkpoints of the loop with real actors: another number of workers, another ZeRO stage, damage."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.engine.files import Folder
from actors.fleet.failures import CannotSave
from actors.fleet.recoveries import read_losses
from actors.loop import checkpoints
from jobs import rlhf
from pipeline.config import Recipe
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import MakeRecipe, curve, small_recipe

pytestmark = pytest.mark.usefixtures("local_ray")

TWO_WORKERS_AT_STAGE_3 = [
    f"rlhf.{role}.{setting}" for role in ("policy", "critic") for setting in ("num_workers=2", "zero_stage=3")
]


@pytest.fixture(scope="module")
def uninterrupted(
    workers: ReadyWorkers, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path
) -> Recipe:
    """A finished run of three steps with one worker a role."""
    recipe = small_recipe(tmp_path_factory.mktemp("one"), tiny_checkpoint, demo_data)
    rlhf.run(recipe, crew=workers.crew(recipe))
    return recipe


def test_one_worker_without_zero_goes_on_as_two_with_zero_3_and_past_a_damaged_checkpoint(
    uninterrupted: Recipe, workers: ReadyWorkers, make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    first = make_recipe("rlhf.num_steps=2")
    rlhf.run(first, crew=workers.crew(first))
    saved = first.run.directory / "checkpoints" / "rlhf_steps"
    # A later checkpoint with one wrong bit on the disk.
    shutil.copytree(saved / "step-000002", saved / "step-000003")
    file = saved / "step-000003" / "critic" / "rank-00000-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    resumed = make_recipe(*TWO_WORKERS_AT_STAGE_3)
    capfd.readouterr()
    rlhf.run(resumed, resume=True, crew=workers.crew(resumed))
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"this user may mount no disk: {mounted.stderr.decode()}")
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


def test_a_full_disk_costs_checkpoints_and_neither_the_run_nor_the_one_that_stands(
    uninterrupted: Recipe,
    workers: ReadyWorkers,
    make_recipe: MakeRecipe,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = make_recipe("rlhf.checkpoints.save_every=1", f"rlhf.checkpoints.path={small_disk}")
    check, checked = checkpoints.check_space, list[int]()

    def filled(root: Folder, needed: int) -> None:
        checked.append(needed)
        if len(checked) == 3:  # At the start, before the first save, before the second.
            (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**18))
        if len(checked) < 4:
            check(root, needed)  # The last one nobody foresees: the ranks find the disk full.

    monkeypatch.setattr(checkpoints, "check_space", filled)
    rlhf.run(recipe, crew=workers.crew(recipe))
    told = capfd.readouterr().out
    assert re.search(r"step 2 is not saved, the run goes on with step-000001: .*MiB, and 0.2 MiB are free", told)
    assert re.search(r"step 3 is not saved, the run goes on with step-000001: .*No space left on device", told)
    assert sorted(each.name for each in small_disk.iterdir()) == ["others", "own.json", "step-000001"]
    written = sum(each.stat().st_size for each in (small_disk / "step-000001").rglob("*.safetensors"))
    assert checked[0] == checked[3] and 0.9 < checked[0] / written <= 1
    assert [(each["role"], each["stage"]) for each in read_losses(recipe.run.directory)] == [("checkpoint", "rlhf")] * 2
    for expected, found in zip(curve(uninterrupted), curve(recipe), strict=True):
        assert {name: value for name, value in found.items() if "recoveries" not in name} == expected
    assert (recipe.checkpoint("rlhf") / "model.safetensors").is_file()


def test_a_run_whose_first_checkpoint_finds_no_room_does_not_begin(
    workers: ReadyWorkers, make_recipe: MakeRecipe, small_disk: Path
) -> None:
    recipe = make_recipe(f"rlhf.checkpoints.path={small_disk}")
    (small_disk / "others").write_bytes(bytes(63 * 2**20))
    with pytest.raises(CannotSave, match=r"a checkpoint takes .* make room there, or .* rlhf.checkpoints.path"):
        rlhf.run(recipe, crew=workers.crew(recipe))
