"""The check that flips signs: its list fits the files, the tree stays as it is, and a sign that survives is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks import mutations
from benchmarks.mutations import ROOT, Mutation

LIST = mutations.read(ROOT / "benchmarks" / "mutations.yaml")
PROJECT = {
    "pyproject.toml": "[tool.pytest.ini_options]\n",
    "pipeline/__init__.py": "",
    "pipeline/losses.py": "def loss(x):\n    return -x\n\n\ndef unseen(x):\n    return +x\n",
    "tests/test_losses.py": "from pipeline.losses import loss\n\n\ndef test_falls():\n    assert loss(2) == -2\n",
}
SEEN = {"what": "loss", "old": "return -x", "new": "return x"}
UNSEEN = {"what": "unseen", "old": "return +x", "new": "return -x"}
BROKEN = {"what": "broken", "old": "return -x", "new": "return )"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one loss with a test and a function without."""
    for name, text in PROJECT.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    monkeypatch.setattr(mutations, "ROOT", tmp_path / "project")
    monkeypatch.setattr(mutations, "COPIED", ("pyproject.toml", "pipeline", "tests"))
    return tmp_path


def _run(small: Path, *flips: dict[str, str]) -> str:
    """Returns what was appended to the results."""
    content = {"pipeline/losses.py": {"tests": ["tests/test_losses.py"], "flips": list(flips)}}
    (small / "list.yaml").write_text(yaml.safe_dump(content))
    mutations.main(["--list", str(small / "list.yaml"), "--results", str(small / "RESULTS.md")])
    return (small / "RESULTS.md").read_text()


@pytest.mark.parametrize("mutation", LIST, ids=lambda each: each.what)
def test_the_text_to_flip_stands_once_in_its_file_and_its_tests_are_there(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert mutation.tests and all((ROOT / test).is_file() for test in mutation.tests)


def test_every_sign_has_a_name_of_its_own() -> None:
    assert [name for name, number in Counter(each.what for each in LIST).items() if number > 1] == []


def test_a_sign_that_no_test_sees_is_named_and_the_tree_stays_as_it_is(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = _run(small, SEEN, UNSEEN)
    assert "| loss | pipeline/losses.py | test_losses.py | `test_falls` |" in results
    assert "| unseen | pipeline/losses.py | test_losses.py | **no** |" in results
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"benchmark": "mutations", "flipped": 2, "red": 1, "survived": ["unseen"]}
    assert {name: (small / "project" / name).read_text() for name in PROJECT} == PROJECT


def test_a_test_that_cannot_be_collected_is_no_red_test(small: Path) -> None:
    with pytest.raises(SystemExit, match="could not be run"):
        _run(small, BROKEN)


def test_tests_that_are_red_before_anything_is_flipped_say_nothing(small: Path) -> None:
    (small / "project" / "pipeline" / "losses.py").write_text(PROJECT["pipeline/losses.py"].replace("-x", "x"))
    with pytest.raises(SystemExit, match="test_falls is red before anything is flipped"):
        _run(small, UNSEEN)


def test_a_text_that_stands_there_twice_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match=r"'return' stands there 2 times, not once"):
        _run(small, {"what": "any", "old": "return", "new": "yield"})
