"""Folders that become checkpoints all at once, on any filesystem; which are kept; and what is refused, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.engine.files import Damaged, Folder, Manifest, begin, newest_first, publish
from actors.loop import checkpoints
from actors.loop.checkpoints import LoopState
from pipeline.algorithms.kl import AdaptiveKl, FixedKl
from pipeline.algorithms.shaping import RunningScale
from pipeline.config import BestMode, Checkpoints, ConfigError, Kl, KlControl, Recipe, load_recipe
from pipeline.evaluation.validation import Progress


@pytest.fixture(params=["path", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """An empty place for checkpoints: a plain path, a file URL, and a filesystem that cannot rename."""
    if request.param == "memory":
        folder = Folder("memory://checkpoints/run")
        yield folder
        if folder.names():
            folder.remove()
    else:
        yield Folder(f"{'file://' if request.param == 'file' else ''}{tmp_path}/run")


def _save(root: Folder, step: int, reward: float = 0.0, *, recipe: Recipe | None = None) -> Folder:
    """A checkpoint of one role, whose only file is no real one."""
    staged, target = begin(root, step)
    file = staged.write("policy/rank-00000-000.safetensors", b"weights of step %d" % step)
    checkpoints.write(
        staged,
        target,
        [file],
        state=LoopState(step, FixedKl(0.1), RunningScale(), cursor=step * 4),
        schedules={"policy": {"last_epoch": step}},
        metrics={"reward/mean": reward},
        recipe=recipe or Recipe(),
        towers={"policy": "a" * 64},
    )
    return target


def _names(root: Folder) -> list[str]:
    return [folder.name for folder in newest_first(root)]


def _damages(folder: Folder) -> list[str]:
    return [damage for file in Manifest.read(folder).files if (damage := folder.damage(file))]


def test_a_published_checkpoint_is_whole_and_says_what_it_is(root: Folder) -> None:
    folder = _save(root, 3)
    manifest = Manifest.read(folder)
    assert folder.name == "step-000003" and _names(root) == ["step-000003"]
    assert [file.name for file in manifest.files] == ["policy/rank-00000-000.safetensors", "state.json"]
    assert [file.name for file in manifest.files_of("policy")] == ["policy/rank-00000-000.safetensors"]
    assert (manifest.step, manifest.seed, manifest.towers) == (3, 0, {"policy": "a" * 64})
    assert set(manifest.written_by) == {"python", *checkpoints.PACKAGES} and len(manifest.recipe) == 64
    assert _damages(folder) == []
    # The checksum is that of the content.
    assert manifest.files[0].num_bytes == 17
    assert manifest.files[0].sha256 == "3e14e6a07d9b7ca2eada523b6eea5b8d7afab55acb3bcf6cb5473017325a93b8"


def test_before_it_is_published_a_checkpoint_is_none_and_the_next_save_sweeps_it_away(root: Folder) -> None:
    _save(root, 2)
    staged, target = begin(root, 4)
    staged.write("policy/rank-00000-000.safetensors", b"half")
    assert not target.has("manifest.json")
    for folder in newest_first(root):
        if folder != target:
            continue
        with pytest.raises(Damaged, match=r"no manifest\.json: it was never finished"):
            Manifest.read(folder)
    _save(root, 6)
    assert sorted(root.names()) == ["step-000002", "step-000006"]


def test_a_step_that_is_saved_again_overwrites_nothing_and_takes_precedence(root: Folder) -> None:
    first = _save(root, 2)
    before = Manifest.read(first)
    second = _save(root, 2)
    assert second.name == "step-000002.1" and _names(root) == ["step-000002.1", "step-000002"]
    assert Manifest.read(first) == before and _damages(first) == []
    assert _save(root, 2).name == "step-000002.2"
    _save(root, 10)
    assert _names(root)[0] == "step-000010"


def test_damage_is_reported_with_file_expected_and_found(root: Folder) -> None:
    folder = _save(root, 1)
    name = "policy/rank-00000-000.safetensors"
    folder.write(name, b"weights of step 2")
    assert len(_damages(folder)) == 1
    assert "sha256" in _damages(folder)[0] and _damages(folder)[0].startswith(f"{name}: ")
    folder.write(name, b"weights")
    assert _damages(folder) == [f"{name}: 17 bytes expected, 7 found"]
    (folder / "policy").remove()
    assert _damages(folder) == [f"{name}: 17 bytes expected, no file found"]


def test_a_manifest_that_was_changed_or_cut_short_is_refused(root: Folder) -> None:
    folder = _save(root, 1)
    text = folder.read("manifest.json")
    folder.write("manifest.json", text.replace(b'"step": 1', b'"step": 7'))
    with pytest.raises(Damaged, match=r"manifest\.json: sha256 .* expected, .* found"):
        Manifest.read(folder)
    for broken in (text[:-20], b"", b"[]", b"{}", b"null"):
        folder.write("manifest.json", broken)
        with pytest.raises(Damaged, match=r"manifest\.json: a manifest expected"):
            Manifest.read(folder)


def test_another_format_version_is_an_error_and_no_damage(root: Folder) -> None:
    folder = _save(root, 1)
    body: dict[str, Any] = json.loads(folder.read("manifest.json"))
    folder.write("manifest.json", json.dumps({**body, "format_version": 2}).encode())
    with pytest.raises(ConfigError, match=r"written in format 2, but this Polyphony reads format 1: resume with the"):
        Manifest.read(folder)


def test_a_removal_that_is_cut_short_leaves_no_checkpoint(root: Folder) -> None:
    folder = _save(root, 1)
    # What a removal does first.
    (folder / "policy").remove()
    filesystem, path = folder._filesystem("manifest.json")  # pyright: ignore[reportPrivateUsage]
    filesystem.rm_file(path)
    with pytest.raises(Damaged, match="never finished"):
        Manifest.read(folder)
    _save(root, 2)
    assert root.names() == ["step-000002"]


def test_the_newest_and_the_best_are_kept(root: Folder) -> None:
    settings = Checkpoints(keep_last=2, best_metric="reward/mean")
    for step, reward in ((1, 0.2), (2, 0.9), (3, 0.1), (4, float("nan")), (5, 0.3)):
        checkpoints.keep(root, _save(root, step, reward), settings)
    assert _names(root) == ["step-000005", "step-000004", "step-000002"]
    best = json.loads(root.read("best.json"))
    assert best == {"checkpoint": "step-000002", "metric": "reward/mean", "mode": "max", "value": 0.9}
    # Less is better: of what is left that is the newest, and the old best goes.
    newest = _save(root, 6, 0.25)
    checkpoints.keep(root, newest, settings.model_copy(update={"best_mode": BestMode.MIN}))
    assert json.loads(root.read("best.json"))["checkpoint"] == "step-000006"
    assert _names(root) == ["step-000006", "step-000005"]


def test_without_a_metric_only_the_newest_are_kept_and_an_unknown_one_is_named(root: Folder) -> None:
    for step in (1, 2, 3):
        checkpoints.keep(root, _save(root, step, -step), Checkpoints(keep_last=1))
    assert root.names() == ["step-000003"]
    with pytest.raises(ConfigError, match=r"best_metric=reward/max: not a metric of this run; there are reward/mean"):
        checkpoints.keep(root, _save(root, 4), Checkpoints(best_metric="reward/max"))
    assert _damages(root / "step-000004") == []


def test_of_a_step_saved_twice_the_older_goes_and_later_steps_of_another_run_stay(
    root: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4, 2):
        newest = _save(root, step)
    checkpoints.keep(root, newest, Checkpoints(keep_last=1))
    assert _names(root) == ["step-000004", "step-000002.1"]
    assert "step-000004 is of a later step than this run has reached: --resume would take it" in capsys.readouterr().out


def test_a_checkpoint_of_another_seed_other_roles_or_other_towers_is_refused_with_the_cure(root: Folder) -> None:
    folder = _save(root, 1)
    manifest = Manifest.read(folder)
    fits: Any = {"trained": ["policy"], "towers": {"policy": "a" * 64}}
    checkpoints.check_fits(folder, manifest, Recipe(), **fits)
    # A checkpoint that keeps no fingerprint is taken on trust.
    checkpoints.check_fits(folder, manifest, Recipe(), **(fits | {"towers": {"policy": None}}))
    with pytest.raises(ConfigError, match=r"written with run\.seed=0, not 5: use that seed"):
        checkpoints.check_fits(folder, manifest, load_recipe(None, ["run.seed=5"]), **fits)
    with pytest.raises(ConfigError, match=r"holds policy, but critic and policy train now: use the rlhf\.algorithm"):
        checkpoints.check_fits(folder, manifest, Recipe(), **(fits | {"trained": ["policy", "critic"]}))
    with pytest.raises(ConfigError, match=r"policy was trained on towers aaaaaaaa, but starts from bbbbbbbb now"):
        checkpoints.check_fits(folder, manifest, Recipe(), **(fits | {"towers": {"policy": "b" * 64}}))


def test_the_loops_state_survives_json_bit_by_bit() -> None:
    adaptive = Kl(control=KlControl.ADAPTIVE, weight=0.1)
    progress = Progress(5, {"validation/exact_match": 2 / 3}, "validation/exact_match", best=0.7, num_without_gain=2)
    for kl, state in (
        (Kl(), LoopState(7, FixedKl(1 / 3), RunningScale(3, 0.1, 1e-17), cursor=91, progress=progress)),
        (adaptive, LoopState(7, AdaptiveKl(2 / 7, 0.02, 1000), RunningScale(), cursor=91)),
    ):
        assert LoopState.from_json(json.loads(json.dumps(state.to_json())), kl) == state
    with pytest.raises(ConfigError, match=r"kl\.control=adaptive, but the checkpoint was written with fixed: use that"):
        LoopState.from_json(LoopState.start(Kl()).to_json(), adaptive)


def test_a_checkpoint_that_knows_no_evaluations_is_that_of_a_run_without_any() -> None:
    stored = LoopState.start(Kl()).to_json()
    del stored["progress"]
    assert LoopState.from_json(stored, Kl()) == LoopState.start(Kl())


def test_checkpoints_lie_in_the_run_or_where_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Workers have another working directory.
    assert checkpoints.root_of(Recipe()) == Folder(f"{tmp_path}/runs/demo/checkpoints/rlhf_steps")
    for path, url in (("elsewhere", f"{tmp_path}/elsewhere"), ("s3://bucket/run", "s3://bucket/run")):
        assert checkpoints.root_of(load_recipe(None, [f"rlhf.checkpoints.path={path}"])) == Folder(url)


def test_a_filesystem_that_nobody_knows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rlhf\.checkpoints\.path=nowhere://bucket: Protocol not known"):
        Folder("nowhere://bucket").names()


def test_unfinished_publishing_is_the_only_thing_between_files_and_a_checkpoint(root: Folder) -> None:
    staged, target = begin(root, 1)
    file = staged.write("state.json", b"{}")
    manifest = Manifest(step=1, seed=0, written_by={}, towers={}, recipe="", files=(file,))
    assert not target.has("manifest.json")
    publish(staged, target, manifest)
    assert Manifest.read(target) == manifest and root.names() == ["step-000001"]
