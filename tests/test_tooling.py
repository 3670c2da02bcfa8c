"""What surrounds the code: the recipes, the Makefile, and rules that no linter knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import local
from pipeline.config import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
# The default value of `model.tiny_architecture` is the one place outside pipeline/models that names an architecture.
ALLOWED_NAMES = {("pipeline/config/recipe.py", 'tiny_architecture: str = "qwen2_5_omni_thinker"')}


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_a_recipe_for_two_cpu_cores() -> None:
    assert ROOT / "jobs" / "recipes" / "tiny_cpu.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_takes_an_override(path: Path) -> None:
    assert load_recipe(path, ["run.seed=7"]).run.seed == 7


def test_no_file_outside_pipeline_models_names_an_architecture() -> None:
    found = {
        (str(path.relative_to(ROOT)), line.strip())
        for room in ("pipeline", "actors", "jobs")
        for path in (ROOT / room).rglob("*.py")
        if not path.is_relative_to(ROOT / "pipeline" / "models")
        for line in path.read_text().splitlines()
        if re.search(r"qwen|gemma", line, re.IGNORECASE)
    }
    assert found == ALLOWED_NAMES


def test_the_ray_contract_covers_every_room_of_pipeline_but_data_and_decisions() -> None:
    contracts = _project()["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each.get("forbidden_modules") == ["ray"])
    rooms = {
        f"pipeline.{path.stem}"
        for path in (ROOT / "pipeline").iterdir()
        if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    assert set(contract["source_modules"]) == rooms - {"pipeline.data", "pipeline.decisions"}


@pytest.mark.parametrize("target", ["help", "install", "demo", "test", "lint", "format", "clean"])
def test_the_makefile_has_the_target_and_explains_it(target: str) -> None:
    assert re.search(rf"^{target}:.* ## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test " in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("given", "run"),
    [
        (["--", "python", "-m", "jobs.sft", "--help"], ["python", "-m", "jobs.sft", "--help"]),
        (["python", "-m", "jobs.sft", "--help"], ["python", "-m", "jobs.sft", "--help"]),
        (["echo", "ü"], ["echo", "ü"]),
        (["echo", "ü".encode().decode("ascii", "surrogateescape")], ["echo", "ü"]),
    ],
)
def test_a_local_job_is_a_command_with_or_without_dashes_before_it_in_utf_8(
    given: list[str], run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Sequence[str]] = []
    monkeypatch.setattr(local, "_ENDING", ())
    monkeypatch.setattr(local, "run", lambda entrypoint: found.append(entrypoint) or 3)  # pyright: ignore[reportUnknownLambdaType]
    assert local.main(given) == 3
    assert found == [run]


def test_a_local_job_speaks_utf_8_and_refuses_words_of_which_nobody_knows_the_encoding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {"PYTHONUTF8": "0"})
    local._prepare_environment()  # pyright: ignore[reportPrivateUsage]
    assert os.environ["PYTHONUTF8"] == "1"
    with pytest.raises(SystemExit):
        local.main(["echo", "\udcfc"])
    assert "neither in the locale's encoding nor in UTF-8" in capsys.readouterr().err


def _run_locally(driver: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs `driver`, which fails, as a job on a head of its own. Returns also where that head's logs were kept."""
    command = [sys.executable, "-m", "jobs.local", "--", "python", "-c", driver]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    kept = re.search(r"logs are kept in (\S+)", ended.stderr)
    assert kept is not None, ended.stdout + ended.stderr
    try:
        processes = psutil.process_iter(["cmdline"])
        assert [each for each in processes if kept[1] in " ".join(each.info["cmdline"] or [])] == []
    finally:
        shutil.rmtree(kept[1])
    return ended, kept[1]


def test_a_local_job_reports_its_exit_status_and_leaves_nothing_running() -> None:
    ended, kept = _run_locally(
        "import os, ray; ray.init(); print('cpus', ray.cluster_resources()['CPU'], os.getcwd()); raise SystemExit(3)"
    )
    assert ended.returncode == 3
    # The driver ran on the uploaded copy, and not here.
    assert re.search(rf"^cpus \d\S* {kept}/\S+/working_dir_files/", ended.stdout, re.MULTILINE), ended.stdout


def test_a_local_job_whose_head_dies_says_so_and_leaves_nothing_running() -> None:
    ended, _ = _run_locally(
        "import psutil, time; {it.name(): it for it in psutil.Process().parents()}['raylet'].kill(); time.sleep(9)"
    )
    assert ended.returncode == 1
    assert "`ray start` ended with status 1" in ended.stderr
    assert "raylet.out tail (exit code(s)=-9" in ended.stderr
