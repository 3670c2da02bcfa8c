"""Rewards from outside: functions of the user's own, servers, and chat models that judge.

A part of the reward whose name is none of `RewardName` has one of these sections; how they are asked is the same.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.config.paths import Base, DiskPath
from pipeline.config.section import Section
from pipeline.config.workers import Workers

_NAME = r"[A-Za-z_]\w*"
_MODULE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")
_FILE = re.compile(rf".+\.py:{_NAME}")
_URL = re.compile(r"https?://[^/\s@?#]+(/[^\s?#]*)?")


def _function(value: object, info: ValidationInfo) -> object:
    """The place of a function; that of a file is absolute where the context is a `Base`.

    A submitted job looks for it in Ray's copy of the working directory, in which the file has travelled.
    """
    if not isinstance(value, str):
        return value
    if not _FILE.fullmatch(value):
        if not _MODULE.fullmatch(value):
            raise ValueError(f"{value!r} is no function; write path/to/file.py:function or package.module:function")
        return value
    if not isinstance(info.context, Base):
        return value
    file, _, name = value.rpartition(":")
    directory = info.context.directory or Path.cwd()
    return f"{os.path.normpath(directory / os.path.expanduser(file))}:{name}"


FunctionPlace = Annotated[str, BeforeValidator(_function)]
"""`path/to/file.py:function` or `package.module:function`."""


class Adapter(StrEnum):
    POLYPHONY = "polyphony"
    TRL = "trl"


class MediaForm(StrEnum):
    NONE = "none"
    ENCODED = "encoded"
    DECODED = "decoded"


class Sending(StrEnum):
    NONE = "none"
    INLINE = "inline"
    BY_HASH = "by_hash"


class Judging(StrEnum):
    SCORE = "score"
    COMPARISON = "comparison"


class Reading(StrEnum):
    TEXT = "text"
    CHOICE = "choice"


class Outside(Section):
    """How any of them is asked, and what its failures mean."""

    place: ClassVar[str] = "url"
    """The field that says where it is: what a text in place of the section stands for."""

    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that one try of a call may take."""
    retries: int = Field(default=1, ge=0)
    """Times that a call is tried again that failed in a way which may pass."""
    batch_size: int = Field(default=64, ge=1)
    """Completions in a call, about: those of one prompt are never apart."""
    max_failed_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's completions for which it may fail before the run stops; 1 goes on whatever happens. What failed
    counts like what does not apply, by its reason."""

    @property
    def limit_s(self) -> float:
        """Seconds that a call may take with all its tries."""
        return self.timeout_s * (self.retries + 1)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        """A text alone is the place."""
        return {cls.place: value} if isinstance(value, str) else value


class FunctionReward(Outside):
    """A function of the user's own, called in a process of its own."""

    place: ClassVar[str] = "path"

    path: FunctionPlace
    """`path/to/file.py:function` or `package.module:function`. Relative to where the command is given, or to the
    working directory that a job was submitted with."""
    adapter: Adapter = Adapter.POLYPHONY
    """How it is called: `polyphony`: function(prompts, completions); `trl`: function(prompts, completions, **columns)
    as TRL's trainers do."""
    media: MediaForm = MediaForm.NONE
    """In what form prompts bring their media: `encoded` as file bytes, `decoded` as arrays."""
    memory_mib: int | None = Field(default=4096, ge=256)
    """Memory that the function's process may have, in MiB; null sets no bound."""
    options: dict[str, bool | int | float | str] = Field(default={})
    """Keyword arguments that it is called with beside these, such as the path of a checkpoint."""
    parts: dict[str, float] = Field(default={})
    """Named parts that it returns for each completion, and what each weighs in its sum; empty: it returns numbers."""


class _Address(Outside):
    connections: int = Field(default=8, ge=1)
    """Most connections that each grader worker has open to the address at a time."""
    token_variable: str | None = None
    """Environment variable, where Ray was started, that holds the token for `Authorization: Bearer`; null: none."""
    max_failures: int = Field(default=5, ge=1)
    """Calls that may fail one after the other before the address is left alone for a while."""
    rest_s: float = Field(default=30.0, gt=0)
    """How long it is left alone, in seconds: calls fail at once meanwhile, then one is tried."""
    max_answer_mib: float = Field(default=16.0, gt=0)
    """Longest answer that is read, in MiB."""


def _check_url(url: str | None) -> str | None:
    if url is not None and not _URL.fullmatch(url):
        raise ValueError(f"url={url!r}: write an address such as http://host:8000/reward, no password or options")
    return url and url.rstrip("/")


class ServerReward(_Address):
    """A server that answers POST requests as docs/rewards.md describes them."""

    url: str
    """Where batches are posted to, such as `http://rewards.internal:8000/reward`."""
    media: Sending = Sending.NONE
    """`inline`: media travel in each request, in base64; `by_hash`: by their SHA-256, and are uploaded once the server
    says that it lacks them."""
    parts: dict[str, float] = Field(default={})
    """As of a function."""

    _url = field_validator("url")(_check_url)


class JudgeReward(_Address):
    """A chat model that reads prompt, media, completion and a rubric, and writes a score or a preference."""

    batch_size: int = Field(default=16, ge=1)
    """Completions that a grader worker is given at a time."""
    url: str | None = None
    """Base of an OpenAI-compatible address, such as `http://host:8000/v1`."""
    model: str | None = None
    """The model's name at the address."""
    checkpoint: DiskPath | None = None
    """Instead of an address: a Hugging Face directory of a model that grader workers load themselves."""
    rubric: str = Field(min_length=1)
    """What is judged, and by what: text for the model."""
    mode: Judging = Judging.SCORE
    """`score`: each completion alone, on the scale; `comparison`: completions of a group in pairs, each pair in both
    orders; the reward is the share of its comparisons that a completion wins."""
    scale: tuple[int, int] = (1, 5)
    """Worst and best score. They become the rewards 0 and 1."""
    samples: int = Field(default=1, ge=1)
    """Judgements of each completion or pair, of which the mean counts; with more than 1 use a temperature above 0."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest judgement, in tokens."""
    reading: Reading = Reading.TEXT
    """`text`: what the model writes is searched for its verdict; `choice` (of a local checkpoint): its probabilities of
    the possible verdicts are compared, so that every judgement gives a number: the expected score."""
    media: bool = True
    """Whether it sees and hears the prompt's media."""
    comparisons: int = Field(default=1, ge=1)
    """Other completions of its group that each one is compared with, on either side of it in the ring of the group."""
    agreement_pairs: int = Field(default=64, ge=0)
    """Held-out preferences that it judges before the first step; how often it agrees is in the report. 0: none."""
    max_prompt_tokens: int = Field(default=4096, ge=1)
    """Of a local checkpoint: longer questions fail."""

    _url = field_validator("url")(_check_url)

    @model_validator(mode="after")
    def _check(self) -> JudgeReward:
        if (self.url is None) == (self.checkpoint is None):
            raise ValueError("judge: give either a url, with a model, or a checkpoint")
        if self.url is not None and self.model is None:
            raise ValueError(f"judge.url={self.url}: name the model there (judge.model)")
        if self.reading is Reading.CHOICE and self.checkpoint is None:
            raise ValueError("judge.reading=choice needs the probabilities of a local checkpoint; use reading=text")
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError(f"judge.scale={list(self.scale)}: the worst score comes first, at least 0; use [1, 5]")
        if self.samples > 1 and self.temperature == 0 and self.reading is Reading.TEXT:
            raise ValueError(f"judge.samples={self.samples} with temperature=0: all would be the same; raise it to 1")
        return self


class Grader(Workers):
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs of each worker where the device is cuda: 0, unless judges are checkpoints that the workers load."""
