"""People who judge completions: what they are asked, and who is shown what."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from pipeline.config.paths import DiskPath
from pipeline.config.section import Section

Criterion = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Refit(Section):
    enabled: bool = True
    """Whether the reward model of a run that offers completions learns from what people say of them."""
    after_judgements: int = Field(default=32, ge=1)
    """New judgements after which it is refitted."""
    after_s: float = Field(default=900.0, gt=0)
    """Seconds after the last refit after which fewer are enough."""
    drift: float = Field(default=0.2, gt=0, le=1)
    """By how much it may be right less often on new judgements than it was on held-out ones; beyond that, fewer are
    enough."""
    least_judgements: int = Field(default=8, ge=1)
    """New judgements that it takes in any case."""
    num_steps: int = Field(default=30, gt=0)
    """Optimizer steps of a refit, on all that people have said. The rest is as in `reward_model`."""
    batch_size: int = Field(default=16, gt=0)
    """Judgements in an optimizer step, over all workers."""
    held_out_fraction: float = Field(default=0.2, gt=0, le=0.5)
    """Share of the prompts of which nothing is learned: on what is said of these a refit must be right as often as the
    version before, or it is not swapped in."""
    keep_last: int = Field(default=5, ge=1)
    """Versions whose checkpoints are kept, to roll back to."""
    poll_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks into the store."""


class Feedback(Section):
    enabled: bool = False
    """Whether the loop offers completions to people."""
    refit: Refit = Refit()
    """How the reward model learns from people while the loop goes on."""
    offered_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the groups of each step of which two completions that differ are offered."""
    url: str | None = None
    """Database of the feedback store: `sqlite:////path/to/file` or `postgresql://user@host/name`. Null is
    `<run>/feedback/store.sqlite`."""

    @field_validator("url")
    @classmethod
    def _check_place(cls, url: str | None) -> str | None:
        """Refuses other databases, and a file whose place depends on the process that looks for it."""
        if url is not None and not re.fullmatch(r"sqlite:////(?!~)[^$]+|postgres(ql)?(\+\w+)?://.+", url):
            raise ValueError(
                f"url={url}: write sqlite:////path/to/file (the file needs an absolute path, with four slashes, no ~ "
                "and no variables) or postgresql://user@host/name"
            )
        return url

    media_directory: DiskPath | None = None
    """Where pictures, sounds and videos lie that items show. Null is `<run>/feedback/media`."""
    host: str = "127.0.0.1"
    """Address on which the page listens. On `0.0.0.0` other machines reach it; put TLS before it then."""
    port: int = Field(default=8750, ge=1, le=65535)
    """Port on which the page listens."""
    public_hosts: tuple[str, ...] = ()
    """Names under which browsers reach the page beside localhost; requests for others are refused."""
    criteria: tuple[Criterion, ...] = Field(default=("helpful", "grounded", "fluent", "safe"), min_length=1)
    """What ratings are about, each from 1 to 5."""
    second_rater_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the items that two people judge, so that their agreement is known."""
    max_raters: int = Field(default=3, ge=1)
    """People who judge an item at most; where two disagree, another one is asked."""
    gold_share: float = Field(default=0.05, ge=0, le=1)
    """How often a rater is shown an item whose judgement is known, while there is one that is new to him."""
    repeat_share: float = Field(default=0.02, ge=0, le=1)
    """How often a rater is shown again what he has judged before, to see whether he agrees with himself."""
    lease_s: float = Field(default=600.0, gt=0)
    """How long an item is kept for the rater who was shown it, in seconds."""
    session_s: float = Field(default=12 * 3600.0, gt=0)
    """How long a rater stays logged in, in seconds."""
    min_gold_accuracy: float = Field(default=0.6, ge=0, le=1)
    """Raters who are right less often where the right judgement is known are set aside, and shown so."""
    min_gold_judgements: int = Field(default=10, ge=1)
    """Judgements of such items from which on that is known of a rater."""
    min_reliability: float = Field(default=0.5, ge=0, le=1)
    """Raters whose judgements are right less often, by what all raters say of the same items, are set aside, and shown
    so. Whoever chooses blindly is right in half of all pairs."""
    min_shared_items: int = Field(default=50, ge=1)
    """Items that others have judged too, from which on that is known of a rater; with two others or more."""
    weak_weight: float = Field(default=0.2, ge=0, le=1)
    """What a comparison out of clicks weighs on average, where a judgement weighs 1. At 0 there are none."""
    max_score_age: int = Field(default=50, ge=0)
    """Steps for which what people said of a completion is a part of the reward of the same completion."""
    max_requests_a_minute: int = Field(default=240, ge=1)
    """Requests that one rater, or one address that is not logged in, may send a minute."""
    max_body_bytes: int = Field(default=100_000, ge=1024)
    """Bytes of a request at most."""
