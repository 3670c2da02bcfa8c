"""The Makefile on machines that differ: which Python makes .venv, what is said without one, paths with blanks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
NEW, OLD = "sys.version_info = (3, 12)", "sys.version_info = (3, 10)"
WITHOUT_VENV = "sys.version_info = (3, 13); sys.modules['ensurepip'] = None"
SHIM = "sys.exit(127)"  # pyenv's, of a version that is not selected


@pytest.fixture(params=["checkout", "my checkout", "checkout (1)", 'it\'s $HOME; a&b "c"'])
def checkout(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A checkout, with a blank in its path or without, on a machine that is `tmp_path`: a home with a `bin`."""
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "ln", "mkdir", "realpath", "tr"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    checkout = tmp_path / request.param
    checkout.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    return checkout


def _put_python(path: Path, kind: str) -> None:
    """A Python that runs `-c` as one of this kind would; else it prints its path and its arguments, and fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || {{ printf "%s\\n" {shlex.quote(str(path))} "$@"; exit 1; }}\n'
        f'code=$2; shift 2; exec "{sys.executable}" -c "import sys; {kind}; $code" "$@"\n'
    )
    path.chmod(0o755)


def _make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=checkout,
        env={"PATH": str(checkout.parent / "bin"), "HOME": str(checkout.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _environment(checkout: Path) -> str:
    """How .venv is called: by a path that has no blank and no bracket, as Ray starts nothing from one that has."""
    plain = re.sub(r"[^\w/.-]", "_", str(checkout))
    return f"{checkout.parent}/.local/share/polyphony{plain}/.venv" if plain != str(checkout) else "./.venv"


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"bin/python3": NEW, "bin/python3.13": NEW}, "bin/python3"),
        ({"bin/python3": OLD, "bin/python3.13": SHIM, "bin/python3.11": NEW}, "bin/python3.11"),
        ({"bin/python3": WITHOUT_VENV, "bin/python3.12": NEW}, "bin/python3.12"),
        ({"bin/python3": OLD, ".pyenv/versions/3.12.1/bin/python": NEW}, ".pyenv/versions/3.12.1/bin/python"),
    ],
)
def test_the_first_python_that_will_do_makes_the_environment(
    checkout: Path, pythons: dict[str, str], chosen: str
) -> None:
    for path, kind in pythons.items():
        _put_python(checkout.parent / path, kind)
    said = _make(checkout, "install").stdout.splitlines()
    assert said == [str(checkout.parent / chosen), "-m", "venv", _environment(checkout)]


def test_what_made_the_environment_makes_it_again_as_one_of_another_version_would_break_it(checkout: Path) -> None:
    _put_python(checkout.parent / "bin" / "python3", NEW)
    _put_python(checkout / ".venv" / "bin" / "python", NEW)
    assert _make(checkout, "install").stdout.startswith(f"{checkout}/.venv/bin/python\n")


@pytest.mark.parametrize("kind", [OLD, WITHOUT_VENV])
def test_where_no_python_will_do_the_message_names_pyprojects_versions_and_the_cure(checkout: Path, kind: str) -> None:
    _put_python(checkout.parent / "bin" / "python3", kind)
    requires = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    versions = " ".join(f"3.{minor}" for minor in range(30) if f"3.{minor}" in requires)
    ended = _make(checkout, "demo")
    assert ended.returncode == 2
    assert ended.stdout == ""
    for part in (f"needs Python {versions} with", "found none", "apt install python3-venv", "make demo PYTHON="):
        assert part in ended.stderr


def test_the_python_that_is_named_is_taken_or_refused_and_no_other_is_tried(checkout: Path) -> None:
    new, old = (checkout.parent / "my pythons" / name for name in ("new", "old"))
    for path, kind in ((new, NEW), (old, OLD), (checkout.parent / "bin" / "python3", NEW)):
        _put_python(path, kind)
    assert _make(checkout, "install", f"PYTHON={new}").stdout.startswith(f"{new}\n-m\nvenv\n")
    assert f"{old} is not one" in _make(checkout, "install", f"PYTHON={old}").stderr


def test_the_demo_takes_paths_with_blanks_and_makes_them_absolute(checkout: Path) -> None:
    _put_python(checkout / ".venv" / "bin" / "python", NEW)
    _make(checkout, "install")  # which makes the link, if there is one
    (checkout / ".venv" / ".installed").touch()
    said = _make(checkout, "demo", "RECIPE=my recipes/a.yaml", "RUN=runs/my run").stdout.splitlines()
    assert said[-10:] == [
        str(checkout / ".venv" / "bin" / "python"),
        *["-m", "jobs.local", "--", "python", "-m", "jobs.quickstart"],
        *["--config", f"{checkout}/my recipes/a.yaml", f"run.directory={checkout}/runs/my run"],
    ]
    assert said[0].startswith(f"{_environment(checkout)}/bin/python -m jobs.local")


def test_people_steer_a_run_of_a_recipe_and_a_directory_of_its_own(checkout: Path) -> None:
    _put_python(checkout / ".venv" / "bin" / "python", NEW)
    _make(checkout, "install")
    (checkout / ".venv" / ".installed").touch()
    said = _make(checkout, "people").stdout.splitlines()
    assert said[-2:] == [f"{checkout}/jobs/recipes/people.yaml", f"run.directory={checkout}/runs/people"]
    assert _make(checkout, "people", "RECIPE=a.yaml", "RUN=here").stdout.splitlines()[-2:] == [
        f"{checkout}/a.yaml",
        f"run.directory={checkout}/here",
    ]


def test_where_home_is_no_place_for_a_link_either_the_message_says_what_to_move(tmp_path: Path) -> None:
    home = tmp_path / "Ada Lovelace"
    (home / "bin").mkdir(parents=True)
    for name in ("dirname", "ln", "mkdir", "realpath", "tr"):
        (home / "bin" / name).symlink_to(f"/usr/bin/{name}")
    (home / "checkout").mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, home / "checkout")
    ended = _make(home / "checkout", "install")
    assert ended.returncode == 2 and "Move the checkout to a path without blanks" in ended.stderr


def test_cleaning_removes_the_environment_and_its_link_but_nothing_of_the_checkout(checkout: Path) -> None:
    (checkout.parent / "bin" / "rm").symlink_to("/usr/bin/rm")
    _put_python(checkout / ".venv" / "bin" / "python", NEW)
    _make(checkout, "install")
    link = (checkout / _environment(checkout)).parent
    assert link.resolve() == checkout
    _make(checkout, "clean")
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "pyproject.toml"]
    assert link.is_symlink() is False
