"""Python: what share of its tests does the completion's program pass?

Each test is a process of its own (`python_sandbox.py`). Guaranteed, by the kernel: it has no network, starts no other
process, signals none, and ends at its deadline; its memory, CPU time and output are bounded; it sees no variable of our
environment. Where the kernel has Landlock it reads nothing but Python and the system's libraries, and writes no file;
elsewhere it can read and write what the user who runs it may. Where seccomp is missing (not on Linux, or on
another processor than x86_64 and arm64) nothing runs: that is an error.

Not guaranteed: a hole in the kernel is one here, too. A test by `assert` runs in the program's own interpreter, in
which a program that sets out to cheat may find its test; what it prints for an input cannot be had so.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.grading.records import RewardCompletion, RewardPrompt
from pipeline.rewards.conclusion import conclusion

_SCRIPT = Path(__file__).with_name("python_sandbox.py")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What one test may use: seconds on the clock (and as much CPU), bytes of address space, bytes that it prints."""

    deadline_s: float = 5.0
    memory_bytes: int = 2**30
    output_bytes: int = 2**20


@dataclass(frozen=True)
class Test:
    """One test: code that is run after the program, or what it is given and must print."""

    code: str = ""
    stdin: str = ""
    stdout: str | None = None


@dataclass(frozen=True)
class Ran:
    """What became of a program: whether it came to its end, what it printed, and the last line of its errors."""

    is_done: bool
    stdout: str
    error: str


def python_tests(
    prompts: Sequence[RewardPrompt],
    completions: Sequence[RewardCompletion],
    *,
    deadline_s: float = Limits.deadline_s,
    memory_mib: int = Limits.memory_bytes // 2**20,
    num_at_once: int = 2,
) -> list[float | None]:
    """`python_tests_reward` as a recipe asks for it; None where a prompt has no tests (docs/checkers.md)."""
    limits = Limits(deadline_s=deadline_s, memory_bytes=memory_mib * 2**20)
    rows = [row for row, prompt in enumerate(prompts) if has_tests(prompt.answer)]
    texts, answers = [completions[row].text for row in rows], [str(prompts[row].answer) for row in rows]
    found = dict(zip(rows, python_tests_reward(texts, answers, limits=limits, num_at_once=num_at_once), strict=True))
    return [found.get(row) for row in range(len(prompts))]


def python_tests_reward(
    texts: Sequence[str], answers: Sequence[str], *, limits: Limits | None = None, num_at_once: int = 2
) -> list[float]:
    """The share of its tests that each text's program passes, in [0, 1].

    The program is the last code fence of the text, or all of it. Tests are JSON: a list of which each is a text of code
    that raises where the program is wrong (`"assert double(2) == 4"`), or `{"input": "2\\n", "output": "4\\n"}` (blanks
    at the ends of lines, and empty lines at the end, do not count).

    Raises:
        ValueError: an answer holds no such tests.
        RuntimeError: this machine cannot keep programs apart.
    """
    limits = limits or Limits()
    jobs = [(program_of(text), test) for text, answer in zip(texts, answers, strict=True) for test in tests_of(answer)]
    with ThreadPoolExecutor(max_workers=max(1, num_at_once)) as pool:
        passed = iter(list(pool.map(lambda job: passes(*job, limits=limits), jobs)))
    shares: list[float] = []
    for answer in answers:
        mine = [next(passed) for _ in tests_of(answer)]
        shares.append(sum(mine) / len(mine))
    return shares


def program_of(text: str) -> str:
    """The last code fence of a text's conclusion, closed or cut off, or else all of that."""
    text = conclusion(text)
    fences = _FENCE.findall(text)
    return fences[-1] if fences else text


def tests_of(answer: str) -> list[Test]:
    """The tests of an answer.

    Raises:
        ValueError: it holds none.
    """
    try:
        given: Any = json.loads(answer)
        tests = [_test(each) for each in given]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"no tests in the answer {answer[:100]!r}: python_tests takes a JSON list of texts of code or of "
            f'{{"input": ..., "output": ...}} ({type(error).__name__}: {error})'
        ) from error
    if not tests:
        raise ValueError(f"no tests in the answer {answer[:100]!r}: the list is empty")
    return tests


def has_tests(answer: str | None) -> bool:
    """Whether an answer holds tests."""
    try:
        return answer is not None and bool(tests_of(answer))
    except ValueError:
        return False


def passes(program: str, test: Test, *, limits: Limits) -> bool:
    """Whether a program passes a test."""
    ran = run(program, code=test.code, stdin=test.stdin, limits=limits)
    return ran.is_done and (test.stdout is None or _lines(ran.stdout) == _lines(test.stdout))


def run(program: str, *, code: str = "", stdin: str = "", limits: Limits) -> Ran:
    """Runs a program, then `code` in its names, in a process without network that ends at the deadline.

    Raises:
        RuntimeError: the kernel refuses to keep it apart.
    """
    token = secrets.token_hex(16)
    job = {"code": program, "test": code, "token": token, "cpu_s": int(limits.deadline_s) + 1}
    job |= {"memory_bytes": limits.memory_bytes, "output_bytes": limits.output_bytes}
    with (
        tempfile.TemporaryDirectory(prefix="python_tests_") as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as proof,
    ):
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_SCRIPT), f"{folder}/job.json", str(proof.fileno())],
            stdin=given,
            stdout=printed,
            stderr=errors,
            cwd=folder,
            env={"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""},
            pass_fds=(proof.fileno(),),
        )
        try:
            process.wait(timeout=limits.deadline_s)
            reason = _tail(_read(errors, limits.output_bytes))
        except subprocess.TimeoutExpired:
            reason = f"it ran longer than {limits.deadline_s:g} s"
        finally:
            process.kill()  # it cannot have children
            process.wait()
        if reason in ("seccomp is refused", "no_new_privs is refused"):
            raise RuntimeError(f"python_tests: {reason} on this machine, so that programs cannot be kept apart")
        is_done = _read(proof, len(token)).decode("ascii", "replace") == token
        return Ran(is_done, _read(printed, limits.output_bytes).decode("utf-8", "replace"), reason)


def _test(given: object) -> Test:
    if isinstance(given, str):
        return Test(code=given)
    if not isinstance(given, dict):
        raise TypeError(f"{given!r} is no test")
    return Test(stdin=str(given["input"]), stdout=str(given["output"]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _read(file: Any, num_bytes: int) -> bytes:
    file.seek(0)
    return file.read(num_bytes)


def _tail(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
