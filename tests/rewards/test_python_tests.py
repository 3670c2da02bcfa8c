"""Programs that are right, wrong, endless, greedy or hostile: each in a process that can do no harm."""

import ctypes
import json
import time
from pathlib import Path

import pytest

from pipeline.rewards.python_tests import Limits, program_of, python_tests_reward, run

LIMITS = Limits(deadline_s=3.0)
DOUBLE = json.dumps(["assert double(2) == 4", "assert double(-3) == -6", "assert double('a') == 'aa'"])
ECHO = json.dumps([{"input": "2\n3\n", "output": "5\n"}, {"input": "0\n0", "output": "0"}])


def reward(text: str, answer: str) -> float:
    return python_tests_reward([text], [answer], limits=LIMITS)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def double(x):\n    return 2 * x", 1.0),
        ("Here it is:\n```python\ndef double(x): return x + x\n```\nDone.", 1.0),
        ("```python\ndef double(x): return 0\n```\nBetter:\n```py\ndef double(x): return x + x\n```", 1.0),
        ("```python\ndef double(x): return x + x", 1.0),  # cut off after its end
        ("def double(x):\n    return int(2 * x)", 2 / 3),
        ("def double(x): return 0", 0.0),
        ("def double(x) return 2 * x", 0.0),
        ("I cannot do that.", 0.0),
        ("", 0.0),
        ("import sys\nsys.exit(0)", 0.0),  # it ends well, but before its test
        ("import os\nos._exit(0)", 0.0),
    ],
)
def test_the_share_of_assertions_that_hold(text: str, expected: float) -> None:
    assert reward(text, DOUBLE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("print(int(input()) + int(input()))", 1.0),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), end='  \\n\\n')", 1.0),
        ("print(5)", 0.5),
        ("print(int(input()) - int(input()))", 0.5),
        ("print(int(input()) + int(input()))\nraise SystemExit(3)", 0.0),
    ],
)
def test_the_share_of_outputs_that_are_right(text: str, expected: float) -> None:
    assert reward(text, ECHO) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import socket\nsocket.socket()", "PermissionError"),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')", "not permitted"),
        ("import os\nos.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import os\nos.execv('/bin/true', ['true'])", "PermissionError"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGTERM)", "PermissionError"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "limit"),
        ("x = bytearray(4 * 2**30)", "MemoryError"),
        ("while True: pass", "it ran longer than 1 s"),
        ("import time\ntime.sleep(60)", "it ran longer than 1 s"),
        ("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)", "longer than 1 s"),
    ],
)
def test_what_a_program_must_not_do_fails(program: str, error: str) -> None:
    began = time.monotonic()
    ran = run(program, limits=Limits(deadline_s=1.0) if "longer" in error else LIMITS)
    assert not ran.is_done and error in ran.error
    assert time.monotonic() - began < 10


def test_a_program_that_forks_for_ever_or_has_no_bottom_ends() -> None:
    assert not run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", limits=Limits(1.0)).is_done
    assert not run("def f(): f()\nf()", limits=LIMITS).is_done


def test_a_gigabyte_of_output_is_cut() -> None:
    ran = run("for _ in range(2**20): print('x' * 1024)", limits=LIMITS)
    assert not ran.is_done and len(ran.stdout) == LIMITS.output_bytes


def test_threads_and_the_standard_library_work() -> None:
    program = (
        "import threading, math, re, collections, itertools, functools, heapq, json, random, datetime\n"
        "seen = []\nthread = threading.Thread(target=lambda: seen.append(1))\nthread.start()\nthread.join()\n"
        "print(seen)"
    )
    assert run(program, limits=LIMITS).stdout == "[1]\n"


@pytest.mark.skipif(ctypes.CDLL(None).syscall(444, None, 0, 1) < 1, reason="this kernel has no Landlock")
def test_files_are_out_of_reach_and_so_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_SECRET", "sesame")
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    assert run("import os\nprint(os.environ.get('POLYPHONY_SECRET'))", limits=LIMITS).stdout == "None\n"
    for program in (
        f"print(open({str(kept)!r}).read())",
        f"open({str(kept)!r}, 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.chmod({str(kept)!r}, 0)",
        "open('here.txt', 'w')",
    ):
        ran = run(program, limits=LIMITS)
        assert not ran.is_done and "PermissionError" in ran.error and not ran.stdout, program
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("answer", ["4", "[]", "a cat", '[{"input": "1"}]', "[3]"])
def test_an_answer_without_tests_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="no tests in the answer"):
        python_tests_reward(["print(1)"], [answer])


def test_several_programs_keep_their_order() -> None:
    right, wrong = "def double(x): return 2 * x", "def double(x): return x"
    assert python_tests_reward([right, wrong, right], [DOUBLE] * 3, limits=LIMITS) == [1.0, 0.0, 1.0]


def test_without_a_fence_the_text_is_the_program() -> None:
    assert program_of("print(1)") == "print(1)"
