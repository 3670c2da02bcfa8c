"""The frozen records that flow through a step, one type a stage.

Prompt (checked row) -> ProcessedPrompt (ids, positions, media tensors) -> EncodedPrompt (tower features)
-> Completion -> Rollout (a group) -> Experience (what the update needs). An Opinion (Preference,
Ranking or Rating) feeds the reward model.
Arrays are NumPy, so that Ray shares them between processes without copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class MediaKind(StrEnum):
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"

    @property
    def tag(self) -> str:
        """What marks the place of a medium in a message's text, for example `<image>`."""
        return f"<{self.value}>"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


class RaterKind(StrEnum):
    SCRIPTED = "scripted"
    HUMAN = "human"
    DATASET = "dataset"  # whoever it was whose comparisons came with a data set


@dataclass(frozen=True)
class Medium:
    """An encoded medium as it lies in the table: file bytes (PNG, WAV, MP4, ...) and, if known, where they are from."""

    kind: MediaKind
    data: bytes
    path: str | None = None


@dataclass(frozen=True)
class Image:
    """A decoded picture: `pixels` uint8 [H, W, 3], RGB."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Audio:
    """A decoded sound: `samples` float32 [S] in [-1, 1], mono, at `sampling_rate` Hz."""

    samples: NDArray[np.float32]
    sampling_rate: int


@dataclass(frozen=True)
class Video:
    """A decoded video: `frames` uint8 [F, H, W, 3], RGB, at `frames_per_second`."""

    frames: NDArray[np.uint8]
    frames_per_second: float


DecodedMedium = Image | Audio | Video


@dataclass(frozen=True)
class Message:
    """One turn; in `content` a tag (`<image>`, `<audio>`, `<video>`) stands where each medium belongs."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A row of the prompt table: messages, media in the order of their tags, and the reference answer.

    `answer` is None where nobody knows one; `accepted` are others that are as right.
    `demonstration` is what a demonstrator answered, for SFT; None where that
    is the reference answer, or where there is neither.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    media: tuple[Medium, ...]
    answer: str | None
    demonstration: str | None = None
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptInfo:
    """What the driver knows of a prompt without touching its media."""

    id: str
    task: str
    answer: str | None
    """The reference answer; None where nobody knows one."""
    demonstration: str | None
    """What SFT learns: the demonstrator's answer, or else the reference answer; None where there is neither."""
    modalities: tuple[MediaKind, ...]
    """The kinds present in the prompt, each once, in the order of `MediaKind`."""
    is_demonstrated: bool = False
    """Whether `demonstration` is the row's own, and not its answer for want of one."""
    accepted: tuple[str, ...] = ()
    """Other answers that are as right as `answer`: the best comparison counts."""

    @property
    def answers(self) -> tuple[str, ...]:
        """All that a completion may be compared with; empty where nobody knows an answer."""
        return () if self.answer is None else (self.answer, *self.accepted)


@dataclass(frozen=True)
class MediumTensors:
    """A medium as its tower takes it: the processor's own tensors for this one medium.

    `key` is the content hash of the decoded medium and the processor's settings; `num_tokens` the length of its
    placeholder run.
    """

    kind: MediaKind
    key: str
    num_tokens: int
    tensors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ProcessedPrompt:
    """A prompt after the checkpoint's own processor, which runs once a prompt.

    input_ids: int64 [L], placeholders expanded.
    position_ids: int64 [R, L]; R = 3 for multimodal rotary positions, else 1.
    """

    id: str
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    media: tuple[MediumTensors, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as one copy of the model takes it: what frozen towers gave, and what towers that train must still see.

    media: one entry a medium, in order: tower features, a float32 array [num_tokens, hidden], or the tensors for a
    tower that trains. Each fills one placeholder run.
    """

    id: str
    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    media: tuple[NDArray[np.float32] | MediumTensors, ...]


@dataclass(frozen=True)
class Completion:
    """One sampled answer, token for token as the policy gave it.

    token_ids: int64 [T], the end token included where `finish_reason` is stop.
    behaviour_logprobs: float32 [T], of the distribution truly sampled from, by the rollout copy.
    raw_logprobs: float32 [T], of the same copy's whole distribution at the sampling temperature (1 where that is 0),
        before filters; None where nothing was filtered: the behaviour's are raw.
    """

    token_ids: NDArray[np.int64]
    behaviour_logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    weights_version: int
    text: str
    raw_logprobs: NDArray[np.float32] | None = None

    @property
    def policy_logprobs(self) -> NDArray[np.float32]:
        """Float32 [T], of the sampling copy as a policy, whole: what is compared with a reference's, as in a KL.

        Behaviour logprobs are renormalised over what filters left: a policy would be at a distance from itself.
        """
        return self.behaviour_logprobs if self.raw_logprobs is None else self.raw_logprobs


class Arrays(list[NDArray[Any]]):
    """Arrays of one type, which travel between processes as one: there each costs as much as a thousand bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        whole = np.concatenate([each.ravel() for each in self]) if self else None
        return _apart, (whole, [each.shape for each in self])


def _apart(whole: NDArray[Any], shapes: Sequence[tuple[int, ...]]) -> Arrays:
    ends = accumulate(map(math.prod, shapes))
    return Arrays(whole[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True))


class Records(list[T]):
    """Instances of one dataclass, which travel between processes field by field: one by one they cost far more."""

    def __reduce__(self) -> tuple[Any, ...]:
        (kind,) = {*map(type, self)} or {None}
        fields = zip(*(vars(each).values() for each in self), strict=True)
        return _records, (kind, [_column(field) for field in fields])


def _column(values: Sequence[Any]) -> list[Any]:
    """The values of a field of several records, in the form in which they travel best."""
    kinds = {*map(type, values)}
    if kinds == {np.ndarray} and len({each.dtype for each in values}) == 1:
        return Arrays(values)
    return Records(values) if len(kinds) == 1 and is_dataclass(values[0]) else list(values)


def _records(of: Callable[..., T], columns: Sequence[Sequence[Any]]) -> Records[T]:
    return Records(of(*values) for values in zip(*columns, strict=True))


@dataclass(frozen=True)
class Rollout:
    """A group: the completions of one prompt."""

    prompt_id: str
    completions: tuple[Completion, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rollout, (self.prompt_id, Records(self.completions))


def _rollout(prompt_id: str, completions: Sequence[Completion]) -> Rollout:
    return Rollout(prompt_id, tuple(completions))


@dataclass(frozen=True)
class Experience:
    """A group with everything the update needs; rows are right-padded to the group's longest completion.

    token_ids: int64 [n, T]; mask: bool [n, T], True on real tokens.
    behaviour_logprobs, proximal_logprobs, reference_logprobs, values, advantages, returns: float32 [n, T], zero where
    padded. Proximal are the policy's own at the start of the update: the behaviour's where the step is on-policy.
    weight: 1.0, or 0.0 for a copy that only evens out the work of the ranks.
    left_out: bool [n], completions that run along and teach nothing; None where all teach.
    """

    prompt_id: str
    token_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    behaviour_logprobs: NDArray[np.float32]
    proximal_logprobs: NDArray[np.float32]
    reference_logprobs: NDArray[np.float32]
    values: NDArray[np.float32]
    advantages: NDArray[np.float32]
    returns: NDArray[np.float32]
    weight: float = 1.0
    left_out: NDArray[np.bool_] | None = None

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Bool [n, T], True on the tokens that losses and their normalisers count."""
        learned = self.mask if self.left_out is None else self.mask & ~self.left_out[:, None]
        return learned & (self.weight > 0)

    @property
    def num_learned(self) -> int:
        """How many completions losses count."""
        return len(self.mask) if self.left_out is None else int((~self.left_out).sum())


Ids = tuple[int, ...]
"""Token ids of a completion."""
Spans = tuple[tuple[int, int], ...]
"""Where in a completion's tokens somebody else speaks: from the first number on, up to the second."""


@dataclass(frozen=True)
class Preference:
    """A comparison of two completions of one prompt; the table is the same for scripted and for human raters.

    Raises:
        ValueError: the margin is not finite, or a tie has one.
    """

    prompt_id: str
    chosen_ids: Ids
    rejected_ids: Ids
    chosen: str
    rejected: str
    rater: str
    rater_kind: RaterKind
    error_rate: float | None = None
    """Stated error rate of a scripted rater; None for people."""
    margin: float = 0.0
    """How much better the chosen one is at least, in units of the reward model's score; 0 where that is not known."""
    chosen_given: Spans = ()
    """Where in the chosen one the user speaks, if it is several turns: a policy reads these tokens and learns none."""
    rejected_given: Spans = ()
    """The same of the rejected one."""
    is_tie: bool = False
    """Whether the rater held both to be equally good; which one is `chosen` then means nothing."""
    weight: float = 1.0
    """How much it counts in the loss and in what that is divided by; 1 is a judgement that is fully believed."""

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.prompt_id)
        if not math.isfinite(self.margin):
            raise ValueError(f"margin={self.margin} of a preference on {self.prompt_id!r}: must be finite; 0 is none")
        if self.is_tie and self.margin:
            raise ValueError(
                f"margin={self.margin} of a tie on {self.prompt_id!r}: equally good completions have none; use 0"
            )

    @property
    def completions(self) -> tuple[Ids, ...]:
        """Token ids of the chosen and of the rejected one."""
        return self.chosen_ids, self.rejected_ids

    @property
    def num_observations(self) -> int:
        """A choice of one of two."""
        return 1


MOST_TIED = 8
"""Completions of a ranking that may share a rank: what their ties cost has 2 to their number terms."""


@dataclass(frozen=True)
class Ranking:
    """An order of k >= 2 completions of one prompt.

    completions: the token ids of each. texts: the same to read.
    ranks: of each completion, 1 is best; equal ranks are ties, and only their order counts: 1, 2, 2 is 1, 3, 3.

    Raises:
        ValueError: too few completions, another number of texts or of ranks, too many ties, or a weight of no meaning.
    """

    prompt_id: str
    completions: tuple[Ids, ...]
    texts: tuple[str, ...]
    ranks: tuple[int, ...]
    rater: str
    rater_kind: RaterKind
    weight: float = 1.0
    """As with `Preference`."""

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.prompt_id)
        count = len(self.completions)
        if count < 2 or not count == len(self.texts) == len(self.ranks):
            raise ValueError(
                f"a ranking on {self.prompt_id!r} has {count} completions, {len(self.texts)} texts and "
                f"{len(self.ranks)} ranks; give as many of each, at least two"
            )
        if min(self.ranks) < 1 or max(map(self.ranks.count, self.ranks)) > MOST_TIED:
            raise ValueError(
                f"ranks={list(self.ranks)} on {self.prompt_id!r}: from 1 on, and at most {MOST_TIED} may share one"
            )

    @property
    def num_observations(self) -> int:
        """Choices of the best of what is left: the last one is none."""
        return len(self.completions) - 1


OVERALL = "overall"
"""The criterion of what is said of a completion as a whole."""


@dataclass(frozen=True)
class Rating:
    """What one rater holds of one completion alone, by criterion.

    ratings: each from 0 (the worst of the scale) to 1 (the best): of stars from 1 to 5 it is (stars - 1) / 4, of an
        absolute judgement (a label) 1 where the completion is good and 0 where it is bad.

    Raises:
        ValueError: no rating, one outside of the scale, or a weight of no meaning.
    """

    prompt_id: str
    token_ids: Ids
    text: str
    ratings: Mapping[str, float]
    rater: str
    rater_kind: RaterKind
    weight: float = 1.0
    """As with `Preference`; each of the ratings has it."""

    def __post_init__(self) -> None:
        _check_weight(self.weight, self.prompt_id)
        if not self.ratings:
            raise ValueError(f"a rating on {self.prompt_id!r} says nothing; give at least one criterion")
        for criterion, value in self.ratings.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"ratings.{criterion}={value} on {self.prompt_id!r}: must be from 0 to 1; of stars from 1 to 5 "
                    "give (stars - 1) / 4"
                )

    @property
    def completions(self) -> tuple[Ids, ...]:
        """Token ids of the one that is rated."""
        return (self.token_ids,)

    @property
    def num_observations(self) -> int:
        """One a criterion."""
        return len(self.ratings)


Opinion = Preference | Ranking | Rating
"""What a reward model learns of one prompt, from one rater."""


def _check_weight(weight: float, prompt_id: str) -> None:
    if not 0 < weight < math.inf:
        raise ValueError(
            f"weight={weight} of what is said on {prompt_id!r}: must be positive and finite; leave out what counts "
            "for nothing"
        )


@dataclass(frozen=True)
class Quarantined:
    """A row refused at the door: which, why (a reason code) and the detail."""

    row_id: str
    reason: str
    detail: str
