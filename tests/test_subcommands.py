"""The command line of a job that has commands: where its paths begin, and letters that the locale does not have."""

import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import feedback, retrieve
from jobs.command import SUBMITTED
from jobs.local import STANDS

PATHS = [
    (feedback, "export", ["{path}"], "path"),
    (feedback, "bring", ["{path}"], "path"),
    (retrieve, "query", ["--image", "{path}"], "image"),
    (retrieve, "query", ["--audio", "{path}"], "audio"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of its own, and no job."""
    monkeypatch.chdir(tmp_path)
    for name in (STANDS, SUBMITTED):
        monkeypatch.delenv(name, raising=False)


def asked(monkeypatch: pytest.MonkeyPatch, job: Any, command: str, *arguments: str) -> dict[str, Any]:
    """What a command is asked, and of which recipe."""
    found: dict[str, Any] = {}

    def run(recipe: Any, options: Any) -> None:
        found.update(vars(options), recipe=recipe)

    run.__name__ = command
    monkeypatch.setattr(job, command, run)
    monkeypatch.setattr(sys, "argv", ["job", command, *arguments])
    job.main()
    return found


@pytest.mark.parametrize(("job", "command", "arguments", "name"), PATHS)
def test_paths_begin_where_the_user_stands_and_are_refused_where_nobody_knows(
    job: Any,
    command: str,
    arguments: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def path(given: str) -> Path:
        filled = [each.format(path=given) for each in arguments]
        return asked(monkeypatch, job, command, *filled, f"run.directory={tmp_path}/run")[name]

    monkeypatch.setenv("HOME", "/home/ada")
    assert (path("a.x"), path("/b/a.x"), path("~/a.x")) == (tmp_path / "a.x", Path("/b/a.x"), Path("/home/ada/a.x"))
    monkeypatch.setenv(SUBMITTED, "{}")
    monkeypatch.setenv(STANDS, "/user")
    assert path("a.x") == Path("/user/a.x")
    monkeypatch.delenv(STANDS)
    assert path("/b/a.x") == Path("/b/a.x")
    with pytest.raises(SystemExit) as caught:
        path("a.x")
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert f"{name}: 'a.x' is relative, and this job was submitted" in said and "write an absolute path" in said


@pytest.mark.parametrize(("job", "command"), [(feedback, "invite"), (retrieve, "index")])
def test_arguments_are_utf_8_whatever_letters_the_locale_has(
    job: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def under_ascii(text: str) -> str:
        return text.encode().decode("ascii", "surrogateescape")

    name = [under_ascii("Jörg")] if job is feedback else []
    found = asked(monkeypatch, job, command, *name, under_ascii("run.name=übung 演示"), f"run.directory={tmp_path}/run")
    assert found["recipe"].run.name == "übung 演示"
    assert found.get("name", "Jörg") == "Jörg"
    with pytest.raises(SystemExit, match="neither in the locale's encoding nor in UTF-8"):
        asked(monkeypatch, job, command, *name, "run.name=\udcfcbung", f"run.directory={tmp_path}/run")


def test_an_option_that_a_command_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked(monkeypatch, retrieve, "index", "--resume")
    assert "unrecognized arguments: --resume" in capsys.readouterr().err
