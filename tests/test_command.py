"""The command line of a stage: where its relative paths begin, and what a person may give."""

import sys
from pathlib import Path

import pytest

from jobs.command import SUBMITTED, parse
from jobs.local import STANDS
from jobs.prepare import FLAGS
from pipeline.config import ConfigError


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds a recipe; the user's is `tmp_path / "user"`, which holds another."""
    for name in ("copy", "user"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.yaml").write_text(f"run: {{name: {name}}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "copy")
    for name in (STANDS, SUBMITTED):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])


ARGUMENTS = ("--config", "r.yaml", "--from", "a.jsonl", "model.path=m")


def test_without_a_job_paths_begin_in_the_working_directory(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, *ARGUMENTS)
    recipe, _ = parse("", flags=FLAGS)
    copy = elsewhere / "copy"
    assert (recipe.run.name, recipe.run.directory, recipe.model.path) == ("copy", copy / "runs/demo", copy / "m")
    assert recipe.prepare.sources[0].path == str(copy / "a.jsonl")


def test_in_a_job_of_this_machine_paths_begin_where_the_user_stands(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = elsewhere / "user"
    monkeypatch.setenv(SUBMITTED, "{}")
    monkeypatch.setenv(STANDS, str(user))
    given(monkeypatch, *ARGUMENTS)
    recipe, _ = parse("", flags=FLAGS)
    assert (recipe.run.name, recipe.run.directory, recipe.model.path) == ("user", user / "runs/demo", user / "m")
    assert recipe.prepare.sources[0].path == str(user / "a.jsonl")


def test_in_a_job_submitted_from_elsewhere_relative_paths_are_refused_all_at_once(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    given(monkeypatch, *ARGUMENTS)
    with pytest.raises(ConfigError) as caught:
        parse("", flags=FLAGS)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["run.directory", "model.path", "prepare.sources.0.path"]
    assert all("is relative, and this job was submitted" in line and "write an absolute path" in line for line in lines)
    given(monkeypatch, "--config", "r.yaml", "run.directory=/shared/run")
    assert parse("", flags=FLAGS)[0].run.name == "copy"


def test_home_is_home_in_flags(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere / "user"))
    given(monkeypatch, "--config=~/r.yaml", "--from=~/a.jsonl")
    recipe, _ = parse("", flags=FLAGS)
    assert (recipe.run.name, recipe.prepare.sources[0].path) == ("user", str(elsewhere / "user/a.jsonl"))


def test_a_flag_and_an_override_of_its_field_are_two(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--from", "a.jsonl", "prepare.sources=[{path: b.jsonl}]")
    with pytest.raises(ConfigError, match=r"would be lost; give one of them"):
        parse("", flags=FLAGS)
