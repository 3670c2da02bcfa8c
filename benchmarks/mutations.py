"""Would the tests notice a wrong sign? Each sign of `mutations.yaml` flipped by itself, in a copy of the tree.

    mutations.yaml -> copy of the tree, one sign flipped -> its tests -> red: seen; green: it survived
                                                         -> benchmarks/RESULTS.md

    python -m benchmarks.mutations
    python -m benchmarks.mutations --only GAE KTO

A test that cannot even be collected is no red test, and ends the benchmark. Left out on purpose: signs that only tests
with a Ray see. They would take minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks import machine

ROOT = Path(__file__).parent.parent
COPIED = ("actors", "benchmarks", "jobs", "pipeline", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """A sign: `old` stands once in `file` and becomes `new`, and one of `tests` must go red."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path) -> list[Mutation]:
    """The mutations of a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutation(file=file, tests=tuple(group["tests"]), **flip)
        for file, group in content.items()
        for flip in group["flips"]
    ]


def copy(tree: Path) -> None:
    """Copies what the tests need to `tree`, which must not be there."""
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)


@contextmanager
def flipped(mutation: Mutation, tree: Path) -> Generator[None, None, None]:
    """Within it the sign is flipped in `tree`.

    Raises:
        ValueError: the old text does not stand in its file once.
    """
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file}: {mutation.old!r} stands there {text.count(mutation.old)} times, not once")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def first_red(tests: Sequence[str], tree: Path) -> str | None:
    """The name of the first test in files of `tree` that goes red; None where all are green.

    Raises:
        SystemExit: they could not be run; the message has pytest's output.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
    # Two flips of one second may leave a file as old and as long as it was: no bytecode is kept.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if not ended.returncode:
        return None
    red = [line for line in ended.stdout.splitlines() if line.startswith("FAILED ")]
    if ended.returncode != 1 or not red:
        sys.exit(f"{shlex.join(command)}: could not be run\n{ended.stdout}{ended.stderr}")
    return red[0].removeprefix("FAILED ").split(" - ")[0].partition("::")[2]


def markdown(found: Sequence[tuple[Mutation, str | None]]) -> str:
    """The table for `RESULTS.md`."""
    lines = ["| what was flipped | in | tests | red? |", "|---|---|---|---|"]
    for each, red in found:
        tests = ", ".join(Path(test).name for test in each.tests)
        lines.append(f"| {each.what} | {each.file} | {tests} | {f'`{red}`' if red else '**no**'} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: flips, writes the table, and prints one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=Path(__file__).with_suffix(".yaml"), help="the signs")
    parser.add_argument("--only", nargs="+", help="which of them, by name")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/RESULTS.md"), help="file to append to")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    mutations = [each for each in read(options.list) if not options.only or each.what in options.only]
    started = time.monotonic()
    found: list[tuple[Mutation, str | None]] = []
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        copy(tree)
        if red := first_red(sorted({test for each in mutations for test in each.tests}), tree):
            sys.exit(f"{red} is red before anything is flipped")
        for each in mutations:
            with flipped(each, tree):
                found.append((each, first_red(each.tests, tree)))
            print(f"{each.what}: {found[-1][1] or 'SURVIVED'}", flush=True)
    survived = [each.what for each, red in found if not red]
    host = machine.describe()
    with options.results.open("a", encoding="utf-8") as file:
        file.write(
            f"\n## {datetime.now(UTC).date().isoformat()}: mutations\n\n"
            f"- Machine: {host['cores']} cores, {host['cpu']}\n"
            f"- Command: `{shlex.join(['python', '-m', 'benchmarks.mutations', *given])}`\n"
            f"- Time: {time.monotonic() - started:.0f} s\n"
            f"- {len(found)} signs flipped, one at a time; {len(found) - len(survived)} seen by their tests, of which "
            f"the first that goes red is named\n\n{markdown(found)}\n"
        )
    result = {
        "benchmark": "mutations",
        "flipped": len(found),
        "red": len(found) - len(survived),
        "survived": survived,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
