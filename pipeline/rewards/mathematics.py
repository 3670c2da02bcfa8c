"""Mathematics: is the completion's result the answer's, however it is written?

`math-verify` compares: LaTeX and plain numbers, fractions, sets, intervals, equations, by sympy, which may take for
ever over what a policy writes (`9**9**9**9`), in places where no signal and no thread can stop it, and math-verify's
own time limit works in the main thread alone. So it runs in a process beside this one (`mathematics_worker.py`), which
has its own limits of time and memory and is started anew where it met them.
"""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.rewards.conclusion import conclusion, of_conclusions
from pipeline.rewards.normalise import fold
from pipeline.rewards.notation import formula, readings

DEADLINE_S = 3.0
"""How long one comparison may take."""
_WORKER = Path(__file__).with_name("mathematics_worker.py")


@of_conclusions
def mathematics_reward(completion: str, answer: str, *, deadline_s: float = DEADLINE_S) -> float:
    r"""1.0 where the completion's last result equals the answer, else 0.0: `\frac{1}{2}`, `0.5` and `1/2` are the same.

    The result is what stands in `\boxed{}`, after "answer", in the last formula or, without one, the last number. The
    answer is a formula, with or without dollar signs. Numbers agree to 6 decimals; a percentage may stand for its
    fraction. Digits may be of any script, and stand right beside letters of scripts without blanks. `3,5` is a list and
    a number, in both texts. Can be asked from any thread; comparisons queue.

    Raises:
        ValueError: the answer is no mathematics.
        TimeoutError: the comparison took longer than `deadline_s`.
        MemoryError: or more than its memory.
    """
    said, wanted = formula(completion), formula(answer)
    if fold(said) == fold(wanted) and any(character.isdigit() for character in wanted):
        return 1.0
    return float(_BESIDE.ask(said, wanted, deadline_s=deadline_s))


@functools.lru_cache(maxsize=2**16)  # a row's answer is asked about for each of its completions, in each step
def is_mathematics(answer: str) -> bool:
    """Whether there is something in an answer to compare with; an error or a deadline says that there is not."""
    try:
        wanted = formula(conclusion(answer))
        return wanted.strip().isdecimal() or _BESIDE.ask(None, wanted, deadline_s=DEADLINE_S)
    except (ValueError, TimeoutError, MemoryError):
        return False


class _Beside:
    """The process beside this one: started when first asked, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, completion: str | None, answer: str, *, deadline_s: float) -> bool:
        """Whether a completion equals an answer; without one, whether the answer is mathematics."""
        said = None if completion is None else readings(completion)
        question = json.dumps([said, readings(answer), deadline_s])
        with self._lock:
            process = self._started()
            assert process.stdin and process.stdout
            try:
                process.stdin.write(question + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            if not line:
                self.stop()
                raise TimeoutError(f"a comparison with {answer[:100]!r} took longer than {deadline_s:g} s")
        value, error = json.loads(line)
        if error == "memory":
            raise MemoryError(f"a comparison with {answer[:100]!r} took more memory than it may")
        if error:
            raise ValueError(f"no mathematics in the answer {answer[:100]!r}: {error}")
        return value

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                # -P: the folder of the script is no place to import from.
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
            atexit.register(self.stop)
        return self._process


_BESIDE = _Beside()
