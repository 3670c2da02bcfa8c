"""The command line of a stage: where its relative paths begin, and what a person may give."""

import sys
from pathlib import Path

import pytest

from jobs.command import SUBMITTED, main, parse
from jobs.local import STANDS
from jobs.prepare import FLAGS, run
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


@pytest.mark.parametrize("at", range(4))
def test_overrides_stand_before_between_and_after_flags(
    at: int, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config r.yaml", "model.path=m", "--from a.jsonl", "run.seed=7"]
    given(monkeypatch, *" ".join(words[at:] + words[:at]).split())
    recipe, _ = parse("", flags=FLAGS)
    assert (recipe.run.name, recipe.run.seed, recipe.model.path) == ("copy", 7, elsewhere / "copy" / "m")
    assert len(recipe.prepare.sources) == 1


def test_a_word_that_is_neither_a_flag_nor_an_override_is_named(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, "run.seed=7", "--form", "a.jsonl", "model.path=m")
    with pytest.raises(SystemExit):
        parse("", flags=FLAGS)
    assert "--form" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--from", "a.jsonl"), ("run.seed=7",)])
def test_flags_and_overrides_may_be_left_out(
    arguments: tuple[str, ...], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, *arguments)
    recipe, _ = parse("", flags=FLAGS)
    assert (recipe.run.seed, len(recipe.prepare.sources)) == (7 * ("run.seed=7" in arguments), len(arguments) // 2)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "run.directory={there}/file/run",
            "run.directory={there}/file/run: cannot be made (Not a directory); name another",
        ),
        ("run.directory={there}/file", "run.directory={there}/file: cannot be made (File exists)"),
        ("data.path={there}/file/data", "data.path={there}/file/data: cannot be made (Not a directory)"),
        ("prepare.sources=[{{path: 'nowhere://x/y'}}]", "nowhere://x/y: cannot be reached: ValueError: Protocol not"),
    ],
)
def test_a_place_that_cannot_be_ends_the_job_with_one_message(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, override: str, told: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (elsewhere / "copy" / "file").touch()
    (elsewhere / "copy" / "a.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    there = elsewhere / "copy"
    few = ["--from", "a.jsonl"] if "sources" not in override else []
    given(monkeypatch, *few, override.format(there=there), "model.path=m", "prepare.count_tokens=false")
    with pytest.raises(SystemExit) as caught:
        main(run, "", flags=FLAGS, needs_ray=False)
    assert str(caught.value.code).startswith(f"ConfigError: {told.format(there=there)}")


def test_a_flag_and_an_override_of_its_field_are_two(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, "--from", "a.jsonl", "prepare.sources=[{path: b.jsonl}]")
    with pytest.raises(ConfigError, match=r"would be lost; give one of them"):
        parse("", flags=FLAGS)
