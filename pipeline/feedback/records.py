"""What people are shown and what they say of it, as it lies in the feedback store.

An item is a prompt with its media and the completions that are to be judged. A presentation is an item as one rater saw
it: with its completions in an order drawn at random. Judgements name completions by their place in the *item*, whatever
the order on the page was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pipeline.records import MediaKind, Message


class Task(StrEnum):
    """What is asked of the rater of an item."""

    PAIR = "pair"
    RANKING = "ranking"
    RATING = "rating"


class JudgementKind(StrEnum):
    """What a judgement says; in brackets what it holds. A place is that of a completion in its item.

    The first four are answers to an item, of which a rater gives one; the others may come beside it.
    """

    PAIR = "pair"  # {"chosen": 0, 1, or null for a tie}
    RANKING = "ranking"  # {"ranks": [rank of each completion]}: 1 is best, equal ranks are ties
    RATING = "rating"  # {"ratings": [{criterion: 1..5} of each completion]}
    SKIP = "skip"  # {"reason": text}
    CORRECTION = "correction"  # {"place": place, "text": what it should have said}
    HARMFUL = "harmful"  # {"place": place}
    REWARD = "reward"  # {"place": place, "value": number}
    WITHDRAWAL = "withdrawal"  # {}: `withdraws` names what is taken back


ANSWERS = frozenset({JudgementKind.PAIR, JudgementKind.RANKING, JudgementKind.RATING, JudgementKind.SKIP})
"""Kinds that settle an item for the rater."""


class EventKind(StrEnum):
    """What was done on the page, of which weak labels are made."""

    SHOWN = "shown"
    OPENED = "opened"
    PLAYED = "played"  # value: seconds
    DWELT = "dwelt"  # value: seconds
    COPIED = "copied"
    REGENERATED = "regenerated"
    THUMB = "thumb"  # value: 1 or -1; 0 takes it back
    CHOSEN = "chosen"  # one of the K that were shown


class RaterRole(StrEnum):
    """What a rater may do."""

    RATER = "rater"
    EXPERT = "expert"  # may also give rewards
    ADMIN = "admin"


@dataclass(frozen=True)
class MediumRef:
    """A medium by the SHA-256 of its file's bytes, in hexadecimal digits."""

    kind: MediaKind
    key: str

    @classmethod
    def of(cls, kind: MediaKind, data: bytes) -> MediumRef:
        """The reference to a file with these bytes."""
        return cls(kind, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Candidate:
    """A completion that is to be judged.

    token_ids: as the policy gave them; empty where the text came from elsewhere. weights_version: of the policy that
    wrote it; None where that is not known. score: of the reward model at that time, its
    standard deviation over an ensemble, and which version that was; None where there was none.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    weights_version: int | None = None
    score: float | None = None
    score_std: float | None = None
    reward_version: int | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Candidate:
        """The inverse of `asdict`, from JSON."""
        return replace(cls(**content), token_ids=tuple(content["token_ids"]))


@dataclass(frozen=True)
class Item:
    """What is shown.

    media: in the order of the tags in `messages`.
    gold: what a careful rater says, in the form of a judgement of this task; None where that is not known.
    uncertainty: how unsure the reward model is, from 0; what is more uncertain is shown earlier.
    num_raters: how many people are to judge it.
    """

    task: Task
    prompt_id: str
    prompt_task: str
    messages: tuple[Message, ...]
    media: tuple[MediumRef, ...]
    candidates: tuple[Candidate, ...]
    run: str = ""
    step: int | None = None
    gold: Mapping[str, Any] | None = None
    uncertainty: float = 0.0
    num_raters: int = 1

    @property
    def id(self) -> str:
        """The same for the same question about the same completions of the same run and step."""
        said = [
            self.task.value,
            self.prompt_id,
            self.run,
            self.step,
            [[message.role, message.content] for message in self.messages],
            [medium.key for medium in self.media],
            [[each.text, each.weights_version] for each in self.candidates],
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Judgement:
    """What one rater said of one item, once. It is never changed; another judgement may withdraw it.

    key: of the rater's own making, another for each judgement: the same key again is the same judgement again.
    order: the places of the completions as they were shown, from the first to the last.
    judged_at: seconds since 1970. latency_s: from the item's being shown to the judgement.
    rater: a pseudonym; None where the rater asked to be forgotten.
    """

    key: str
    item_id: str
    rater: str | None
    kind: JudgementKind
    content: Mapping[str, Any]
    judged_at: float
    latency_s: float | None = None
    order: tuple[int, ...] = ()
    is_gold: bool = False
    is_repeat: bool = False
    page_version: str = ""
    withdraws: str | None = None
    """The key of the judgement that is taken back."""


@dataclass(frozen=True)
class Act:
    """What a rater did on the page, once, beside judging: `place` is that of a completion in its item.

    shown_place: where on the page that completion was. Both are None where the act is about the whole.
    value: seconds of `PLAYED` and `DWELT`, 1, -1 or 0 of `THUMB`.
    """

    kind: EventKind
    place: int | None = None
    shown_place: int | None = None
    value: float = 1.0


@dataclass(frozen=True)
class Viewing:
    """An item as it was shown to a rater, and what he did there, in the order in which it came.

    order: the places of the completions as they were shown, from the first to the last.
    has_answered: whether an answer of his to this item stands, skips aside.
    """

    item: Item
    rater: str
    order: tuple[int, ...]
    acts: tuple[Act, ...]
    has_answered: bool = False


@dataclass(frozen=True)
class Judged:
    """An item and all judgements of it that stand, in the order in which they came."""

    item: Item
    judgements: tuple[Judgement, ...] = ()
