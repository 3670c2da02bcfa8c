"""What is asked of those who give rewards from outside, and what comes back: numbers, or counted reasons."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.records import DecodedMedium, FinishReason, Medium, Message

MAX_DETAIL = 8_000
"""Characters of a traceback or an answer that are kept."""


class Failure(StrEnum):
    """Why there is no reward. The words appear in metrics: `counts/reward_failed:<part>:<reason>`."""

    # Of functions.
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    # Of what was returned.
    WRONG_TYPE = "wrong_type"
    WRONG_LENGTH = "wrong_length"
    WRONG_PARTS = "wrong_parts"
    NOT_FINITE = "not_finite"
    # Of addresses.
    UNREACHABLE = "unreachable"
    HTTP_ERROR = "http_error"
    WRONG_SCHEMA = "wrong_schema"
    TOO_LONG = "answer_too_long"
    CIRCUIT_OPEN = "circuit_open"
    LACKS_MEDIA = "lacks_media"
    # Of judges.
    UNPARSED = "unparsed"
    OFF_SCALE = "off_scale"
    PROMPT_REFUSED = "prompt_refused"
    # Of the row.
    UNREADABLE_ROW = "unreadable_row"
    KILLS_WORKER = "kills_worker"

    @property
    def may_pass(self) -> bool:
        """Whether another try may end otherwise."""
        return self in (
            Failure.EXCEPTION,
            Failure.TIMEOUT,
            Failure.CRASHED,
            Failure.OUT_OF_MEMORY,
            Failure.UNREACHABLE,
        )


class TooManyFailures(RuntimeError):
    """More rewards of a step failed than `max_failed_fraction` of their part allows; the message says why."""


@dataclass(frozen=True)
class RewardPrompt:
    """A prompt as a reward function is given it.

    messages: in their `content` a tag (`<image>`, `<audio>`, `<video>`) stands where each medium belongs.
    answer: the reference answer; None where nobody knows one. accepted: others that are as right.
    columns: further columns of the table, those that `data.columns` names.
    media: in the order of the tags, in the form that the recipe asks for: none at all, file bytes (`Medium`) or arrays
        (`Image.pixels` uint8 [H, W, 3]; `Audio.samples` float32 [S], `sampling_rate`; `Video.frames` uint8
        [F, H, W, 3], `frames_per_second`).
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    answer: str | None = None
    accepted: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    media: tuple[Medium | DecodedMedium, ...] = ()


@dataclass(frozen=True)
class RewardCompletion:
    """A completion as a reward function is given it. token_ids: int64 [T], the end token included where it stopped."""

    text: str
    token_ids: NDArray[np.int64]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Question:
    """A prompt and the completions of its group."""

    prompt: RewardPrompt
    completions: tuple[RewardCompletion, ...]


Reward = float | None | Mapping[str, float | None]
"""Of a completion: a number, None where the reward does not apply, or named parts."""
RewardFunction = Callable[[Sequence[RewardPrompt], Sequence[RewardCompletion]], Sequence[Reward]]
"""What a user writes: prompts [N] and completions [N], one to one, to rewards [N]."""


@dataclass(frozen=True)
class Graded:
    """Rewards of N completions.

    values: float32 [N], NaN where the reward does not apply, and where it failed.
    failures: for each completion why it failed; None where it did not.
    named: named parts, float32 [N] each.
    details: the first failure of each reason in words, such as a traceback.
    counts: calls, retries, tokens and whatever else is counted.
    output: what a user's code printed.
    """

    values: NDArray[np.float32]
    failures: tuple[Failure | None, ...]
    named: Mapping[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
    details: Mapping[Failure, str] = field(default_factory=dict[Failure, str])
    counts: Counter[str] = field(default_factory=Counter[str])
    output: str = ""

    def counted(self, **counts: int) -> Graded:
        """The same, with these counts added."""
        return Graded(self.values, self.failures, self.named, self.details, self.counts + Counter(counts), self.output)

    def rows(self, start: int, stop: int) -> Graded:
        """Those of some completions alone, without what is told of all."""
        named = {name: part[start:stop] for name, part in self.named.items()}
        return Graded(self.values[start:stop], self.failures[start:stop], named)

    @staticmethod
    def joined(parts: Sequence[Graded]) -> Graded:
        """One after the other."""
        if not parts:
            return ungraded(0)
        details: dict[Failure, str] = {}
        for part in parts:
            details = {**part.details, **details}
        return Graded(
            np.concatenate([part.values for part in parts]),
            tuple(failure for part in parts for failure in part.failures),
            {name: np.concatenate([part.named[name] for part in parts]) for name in parts[0].named},
            details,
            sum((part.counts for part in parts), Counter[str]()),
            "".join(part.output for part in parts),
        )


def failed(num: int, failure: Failure, detail: str, names: Sequence[str] = ()) -> Graded:
    """The same failure of `num` completions."""
    nothing = np.full(num, np.nan, np.float32)
    return Graded(nothing, (failure,) * num, dict.fromkeys(names, nothing), {failure: detail[-MAX_DETAIL:]})


def ungraded(num: int, names: Sequence[str] = ()) -> Graded:
    """A reward that applies to none of `num` completions."""
    nothing = np.full(num, np.nan, np.float32)
    return Graded(nothing, (None,) * num, dict.fromkeys(names, nothing))


def plain(value: object) -> Any:
    """What a function returned in the types of JSON: arrays and tensors as lists, anything else by its type's name."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Real):  # NumPy's numbers too; a bool is 0 or 1
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in cast(Sequence[object], value)]
    if callable(to_list := getattr(value, "tolist", None)):
        return plain(to_list())
    return f"<{type(value).__name__}>"


def graded(found: object, num: int, weights: Mapping[str, float]) -> Graded:
    """The rewards of `num` completions out of what was returned for them, in plain types.

    weights: of named parts; with some, each completion has a mapping of these names, or all have a mapping of lists.
    """
    names = tuple(weights)
    if weights and isinstance(found, Mapping):
        lists = cast(Mapping[str, Any], found)
        if not all(isinstance(each, list) and len(each) == num for each in lists.values()):
            return failed(num, Failure.WRONG_LENGTH, f"named parts are not lists of {num} numbers each", names)
        found = [{name: each[row] for name, each in lists.items()} for row in range(num)]
    if not isinstance(found, list):
        detail = f"{_shown(found)} was returned for {num} completions, not a list of {num} numbers"
        return failed(num, Failure.WRONG_TYPE, detail, names)
    rows = cast(list[object], found)
    if len(rows) != num:
        return failed(num, Failure.WRONG_LENGTH, f"{len(rows)} rewards were returned for {num} completions", names)
    values, failures, details = np.full(num, np.nan, np.float32), [None] * num, dict[Failure, str]()
    named = {name: np.full(num, np.nan, np.float32) for name in names}
    reasons: list[Failure | None] = list(failures)
    for index, row in enumerate(rows):
        try:
            parts = _parts(row, names)
            for name, value in parts.items():
                if name:
                    named[name][index] = value
            there = {name: value for name, value in parts.items() if not math.isnan(value)}
            if there:
                values[index] = sum(weights.get(name, 1.0) * value for name, value in there.items())
        except _Bad as bad:
            reasons[index] = bad.failure
            details.setdefault(bad.failure, f"completion {index} of {num}: {bad}")
    return Graded(values, tuple(reasons), named, details)


class _Bad(Exception):
    def __init__(self, failure: Failure, detail: str):
        super().__init__(detail)
        self.failure = failure


def _parts(row: object, names: Sequence[str]) -> dict[str, float]:
    """The numbers of one completion by name, "" where it has one alone; NaN where one does not apply."""
    if not names:
        return {"": _number(row)}
    if row is None:
        return dict.fromkeys(names, math.nan)
    if not isinstance(row, Mapping):
        raise _Bad(Failure.WRONG_TYPE, f"{_shown(row)} is no mapping of the parts {', '.join(names)}")
    parts = cast(Mapping[str, object], row)
    if set(parts) != set(names):
        raise _Bad(Failure.WRONG_PARTS, f"the parts {', '.join(parts)} are not those of the recipe: {', '.join(names)}")
    return {name: _number(parts[name]) for name in names}


def _number(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Mapping):
        raise _Bad(
            Failure.WRONG_PARTS, f"{_shown(value)}: named parts have to be in the recipe (parts: {{name: weight}})"
        )
    if not isinstance(value, int | float):
        raise _Bad(Failure.WRONG_TYPE, f"{_shown(value)} is no number")
    if not math.isfinite(np.float32(value)):
        raise _Bad(Failure.NOT_FINITE, f"the reward is {value}")
    return float(value)


def _shown(value: object) -> str:
    return repr(value)[:100]
