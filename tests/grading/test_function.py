"""A user's function in its own process: whatever it does costs a batch, and has its reason."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from pipeline.config import Adapter, FunctionReward
from pipeline.grading import Failure, Graded, Question
from pipeline.grading.child import Code
from pipeline.grading.function import Function, FunctionFailed
from tests.grading.questions import picture, question, sound

SOURCE = dedent("""
    import os, subprocess, sys, time

    def lengths(prompts, completions):
        print("asked of", len(prompts))
        return [len(each.text) for each in completions]

    def hangs(prompts, completions):
        child = subprocess.Popen(["sleep", "1000"])
        print("begun", child.pid, flush=True)
        time.sleep(1000)

    def spins(prompts, completions):
        while True:
            pass

    def raises(prompts, completions):
        return [1 / len(prompts[0].task.strip("task")) for _ in prompts]

    def leaves(prompts, completions):
        sys.exit(0)

    def dies(prompts, completions):
        os._exit(3)

    def eats(prompts, completions):
        return [len(bytearray(2**31))] * len(prompts)

    def is_killed(prompts, completions):
        os.kill(os.getpid(), 9)

    def returns_nan(prompts, completions):
        return [float("nan") for _ in completions]

    def returns_one_too_few(prompts, completions):
        return [1.0 for _ in completions[1:]]

    def returns_a_string(prompts, completions):
        return "1.0"

    def returns_strings(prompts, completions):
        return ["1.0" for _ in completions]

    def returns_nothing(prompts, completions):
        [1.0 for _ in completions]

    def returns_some(prompts, completions):
        return [0.5, float("-inf"), "2"]

    def writes(prompts, completions):
        os.write(1, b"nonsense" * 10_000)
        return [0.0] * len(prompts)

    def fails_at_first(prompts, completions):
        file = os.environ["TEST_MARK"]
        if not os.path.exists(file):
            open(file, "w").close()
            os._exit(1)
        return [1.0] * len(prompts)

    def like_trl(prompts, completions, answer, colour, **others):
        assert prompts[0] == [{"role": "user", "content": "Say yes."}] and "images" in others
        return [float(each[0]["content"] == right) + len(hue) for each, right, hue in zip(completions, answer, colour)]

    def like_trl_with_few(completions, completion_ids):
        return [float(len(ids)) for ids in completion_ids]

    def kinds(prompts, completions, images, audios):
        return [len(some) + 10 * len(others) for some, others in zip(images, audios)]
""")

BATCH = [question("yes", "no"), question("maybe", id="b")]


def _function(name: str, **settings: Any) -> Function:
    place = f"/of/somebody/mine.py:{name}"
    given = FunctionReward.model_validate({"path": place, "retries": 0, "timeout_s": 20.0, **settings})
    return Function(Code(place, SOURCE, (), given.adapter, given.memory_mib), given)


@pytest.fixture
def made() -> Iterator[list[Function]]:
    functions: list[Function] = []
    yield functions
    for each in functions:
        each.close()


def _grade(made: list[Function], name: str, batch: list[Question] = BATCH, **settings: Any) -> Graded:
    made.append(_function(name, **settings))
    made[-1].load()
    return made[-1].grade(batch)


def test_a_function_is_called_once_with_all_completions_and_what_it_prints_is_kept(made: list[Function]) -> None:
    found = _grade(made, "lengths")
    assert found.values.tolist() == [3.0, 2.0, 5.0] and found.failures == (None,) * 3
    assert found.counts == {"calls": 1} and found.output == "asked of 3\n"
    assert made[0].grade(BATCH[:1]).output == "asked of 2\n"


@pytest.mark.parametrize(
    ("name", "settings", "failure", "detail"),
    [
        ("raises", {}, Failure.EXCEPTION, "in raises"),
        ("leaves", {}, Failure.EXCEPTION, "SystemExit"),
        ("dies", {}, Failure.CRASHED, "ended with code 3"),
        ("is_killed", {}, Failure.OUT_OF_MEMORY, "killed by SIGKILL"),
        ("eats", {"memory_mib": 512}, Failure.OUT_OF_MEMORY, "MemoryError"),
        ("hangs", {"timeout_s": 1.0}, Failure.TIMEOUT, "longer than timeout_s=1"),
        ("spins", {"timeout_s": 1.0}, Failure.TIMEOUT, "longer than timeout_s=1"),
        ("returns_nan", {}, Failure.NOT_FINITE, "the reward is nan"),
        ("returns_one_too_few", {}, Failure.WRONG_LENGTH, "2 rewards were returned for 3"),
        ("returns_a_string", {}, Failure.WRONG_TYPE, "'1.0' was returned for 3"),
        ("returns_strings", {}, Failure.WRONG_TYPE, "'1.0' is no number"),
        ("returns_nothing", {}, Failure.WRONG_TYPE, "None was returned for 3"),
    ],
)
def test_whatever_it_does_has_its_reason_and_the_next_batch_begins_anew(
    made: list[Function], name: str, settings: dict[str, Any], failure: Failure, detail: str
) -> None:
    found = _grade(made, name, **settings)
    assert found.failures == (failure,) * 3 and detail in found.details[failure]
    assert all(value != value for value in found.values)  # NaN
    assert made[0].grade(BATCH).failures in ((failure,) * 3, (Failure.TIMEOUT,) * 3)


def test_one_reward_that_is_none_leaves_the_others_of_its_batch_and_is_not_asked_for_again(
    made: list[Function],
) -> None:
    found = _grade(made, "returns_some", retries=1)
    assert found.failures == (None, Failure.NOT_FINITE, Failure.WRONG_TYPE)
    assert found.values[0] == 0.5 and all(value != value for value in found.values[1:])
    assert found.counts == {"calls": 1}


def test_a_traceback_is_the_users_own_with_its_lines(made: list[Function]) -> None:
    told = _grade(made, "raises").details[Failure.EXCEPTION]
    assert "pipeline/grading" not in told
    assert 'File "/of/somebody/mine.py"' in told and 'prompts[0].task.strip("task")' in told


def test_what_a_function_has_started_ends_with_it(made: list[Function]) -> None:
    output = _grade(made, "hangs", timeout_s=2.0).output
    child = int(output.split()[1])
    deadline = time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_try_that_failed_is_repeated(made: list[Function], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MARK", os.fspath(tmp_path / "mark"))
    found = _grade(made, "fails_at_first", retries=1)
    assert found.values.tolist() == [1.0] * 3 and found.counts == {"calls": 2, "retries": 1}


def test_of_what_is_printed_the_end_is_kept_and_the_rest_is_counted(made: list[Function]) -> None:
    output = _grade(made, "writes").output
    assert output.startswith("(76000 bytes before)\n") and len(output) < 4_100


def test_a_function_of_trl_takes_conversations_and_columns(made: list[Function]) -> None:
    batch = [question("yes", "no", columns={"colour": "red"})]
    assert _grade(made, "like_trl", batch, adapter=Adapter.TRL).values.tolist() == [4.0, 3.0]
    assert _grade(made, "like_trl_with_few", adapter=Adapter.TRL).values.tolist() == [3.0, 2.0, 5.0]
    media = [question("yes", media=(picture(), sound(), picture()))]
    assert _grade(made, "kinds", media, adapter=Adapter.TRL).values.tolist() == [12.0]


def test_what_cannot_be_imported_is_told_with_what_is_there() -> None:
    with pytest.raises(FunctionFailed, match=r"mine\.py has no function nothing; it has .*lengths"):
        _function("nothing").load()
    given = FunctionReward(path="no.such_module:reward")
    with pytest.raises(FunctionFailed, match="No module named 'no'"):
        Function(Code(given.path, None, ()), given).load()


def test_a_module_is_found_in_the_directories_that_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "taste.py").write_text("def reward(prompts, completions):\n    return [7] * len(prompts)\n")
    given = FunctionReward(path="ours.taste:reward")
    function = Function(Code(given.path, None, (os.fspath(tmp_path),)), given)
    assert function.grade(BATCH).values.tolist() == [7.0] * 3
    function.close()
