"""A user's function in a process of its own: one that hangs, crashes or eats memory costs one batch.

The process starts with its first batch, and again after it was ended. All that it starts itself ends with it.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from pipeline.config import FunctionReward
from pipeline.grading.child import LENGTH_BYTES, Code
from pipeline.grading.records import Failure, Graded, Question, failed, graded

START_S = 600.0
"""Longest that a module may take to be imported, with the models that it may load."""
MAX_OUTPUT = 4_000
"""Bytes of what a call printed, the last ones, that are passed on."""
_MAX_ANSWER_BYTES = 2**26


class FunctionFailed(Exception):
    """There is no reward: `failure` says why, the message tells."""

    def __init__(self, failure: Failure, detail: str):
        super().__init__(detail)
        self.failure = failure


class Function:
    """A function of the user's, and the process in which it runs."""

    def __init__(self, code: Code, settings: FunctionReward):
        self._code, self._settings = code, settings
        self._process: _Process | None = None

    def load(self) -> None:
        """Starts the process, and waits until it has the function.

        Raises:
            FunctionFailed: it cannot be imported; the message is the traceback.
        """
        self._running().wait_ready(time.monotonic() + START_S)

    def grade(self, questions: Sequence[Question]) -> Graded:
        """Rewards of the completions of all questions, one after the other."""
        prompts = [each.prompt for each in questions for _ in each.completions]
        completions = [completion for each in questions for completion in each.completions]
        names, num = tuple(self._settings.parts), len(completions)
        batch = pickle.dumps((prompts, completions), protocol=pickle.HIGHEST_PROTOCOL)
        num_tries, output = 0, ""
        while True:
            num_tries += 1
            try:
                found = graded(self._try(batch), num, self._settings.parts)
            except FunctionFailed as error:
                found = failed(num, error.failure, str(error), names)
                if error.failure.may_pass and num_tries <= self._settings.retries:
                    output += self._printed()
                    continue
            output += self._printed()
            found = Graded(found.values, found.failures, found.named, found.details, found.counts, output)
            return found.counted(calls=num_tries, retries=num_tries - 1)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _try(self, batch: bytes) -> Any:
        process = self._running()
        until = time.monotonic() + self._settings.timeout_s
        try:
            process.wait_ready(until)
            answer = process.ask(batch, until)
        except TimeoutError:
            if process.is_starting:
                detail = f"the function is not imported within timeout_s={self._settings.timeout_s:g}; it goes on"
                raise FunctionFailed(Failure.TIMEOUT, detail) from None
            self._restart()
            detail = f"the function took longer than timeout_s={self._settings.timeout_s:g}, and was ended"
            raise FunctionFailed(Failure.TIMEOUT, detail) from None
        except (ConnectionError, ValueError) as error:
            end = process.end()
            self._restart()
            killed = Failure.OUT_OF_MEMORY if "SIGKILL" in end else Failure.CRASHED
            raise FunctionFailed(killed, f"the function's process {end or f'sent nonsense: {error}'}") from None
        if "failure" in answer:
            raise FunctionFailed(Failure(answer["failure"]), str(answer["detail"]))
        return answer["rewards"]

    def _running(self) -> _Process:
        if self._process is not None and self._process.is_over():
            self.close()
        if self._process is None:
            self._process = _Process(self._code)
        return self._process

    def _restart(self) -> None:
        """Begins the next process at once: its imports take their time."""
        printed = self._printed()
        self.close()
        self._running().printed_before = printed

    def _printed(self) -> str:
        return "" if self._process is None else self._process.printed()

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end half of the modules are gone
            self.close()


class _Process:
    def __init__(self, code: Code) -> None:
        self._socket, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the process is)
        self.printed_before = ""
        paths = [os.path.abspath(path or os.getcwd()) for path in sys.path]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.grading.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # all that the function starts is in its group, and ends with it
            )
        self.is_starting = True
        self._failed: FunctionFailed | None = None
        self._born = time.monotonic()
        with suppress(OSError):  # it has ended: whoever waits for it sees how
            self._send(pickle.dumps(code), time.monotonic() + START_S)

    def wait_ready(self, until: float) -> None:
        """Raises FunctionFailed where the function cannot be imported, TimeoutError where that takes longer."""
        if self._failed is not None:
            raise self._failed
        if not self.is_starting:
            return
        try:
            answer = self._receive(until)
        except TimeoutError:
            if time.monotonic() - self._born > START_S:
                self.is_starting = False  # so that it is ended
            raise
        except ConnectionError:
            self.is_starting = False
            self._failed = FunctionFailed(
                Failure.CRASHED, f"the function's process {self.end()} while it was imported\n{self.printed()}".strip()
            )
            raise self._failed from None
        self.is_starting = False
        if "failure" in answer:
            self._failed = FunctionFailed(Failure.EXCEPTION, str(answer["detail"]))
            raise self._failed

    def ask(self, batch: bytes, until: float) -> dict[str, Any]:
        """Raises TimeoutError, or ConnectionError where the process ended, ValueError where it sent nonsense."""
        self._send(batch, until)
        return self._receive(until)

    def printed(self) -> str:
        """What was printed since this was asked last."""
        before, self.printed_before = self.printed_before, ""
        file = self._output.fileno()
        left_out = max(0, os.fstat(file).st_size - MAX_OUTPUT)
        data = os.pread(file, MAX_OUTPUT, left_out)
        # The process writes on where this says: file and position are the same there.
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        return before + (f"({left_out} bytes before)\n" if left_out else "") + data.decode(errors="replace")

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> str:
        """How it ended, in words; empty if it has not."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ""
        if code >= 0:
            return f"ended with code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._socket.close()
        self._output.close()

    def _send(self, payload: bytes, until: float) -> None:
        self._socket.settimeout(_left(until))
        self._socket.sendall(len(payload).to_bytes(LENGTH_BYTES, "big"))
        self._socket.settimeout(_left(until))
        self._socket.sendall(payload)

    def _receive(self, until: float) -> dict[str, Any]:
        length = int.from_bytes(self._read(LENGTH_BYTES, until), "big")
        if length > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of {length} bytes")
        answer: object = json.loads(self._read(length, until))
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no object")
        return cast(dict[str, Any], answer)

    def _read(self, num_bytes: int, until: float) -> bytearray:
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(_left(until))
            if (num_read := self._socket.recv_into(rest)) == 0:
                raise ConnectionResetError
            rest = rest[num_read:]
        return data


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left
