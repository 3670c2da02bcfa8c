"""The tables of the feedback store. A change here needs a migration beside it (`migrations/versions`).

Items, media, judgements, events and the audit log are only appended to. What changes is bookkeeping: who is shown what
(`presentations`), how many answers an item has, who may come in (`raters`, `sessions`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of all tables. Times are seconds since 1970."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Float(53)}  # noqa: RUF012


class Media(Table):
    """A file that items show; its bytes lie beside the database, under its key."""

    __tablename__ = "media"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    mime: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int]


class Items(Table):
    """What is to be judged."""

    __tablename__ = "items"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    created_at: Mapped[float]
    task: Mapped[str] = mapped_column(String(16))
    prompt_id: Mapped[str] = mapped_column(Text)
    prompt_task: Mapped[str] = mapped_column(Text)
    messages: Mapped[list[Any]]
    media: Mapped[list[Any]]
    candidates: Mapped[list[Any]]
    run: Mapped[str] = mapped_column(Text)
    step: Mapped[int | None]
    gold: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    is_gold: Mapped[bool]
    uncertainty: Mapped[float]
    num_raters: Mapped[int]
    num_answers: Mapped[int]
    """Answers that stand, of those that count: neither skipped nor repeated."""
    is_done: Mapped[bool]
    priority: Mapped[float]
    """What is greater is shown earlier: the uncertainty, and 1 more where raters disagree."""

    __table_args__ = (
        # In the order of the queue: the next item is the first one there, however many wait behind it.
        Index("ix_items_queue", "is_gold", "is_done", text("priority DESC"), "created_at", "id"),
        Index("ix_items_run", "run", "step"),
    )


class Raters(Table):
    """Who may come in. `name` is a pseudonym; it and the token are gone once somebody is forgotten."""

    __tablename__ = "raters"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(8))
    token_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]
    is_revoked: Mapped[bool]


class Sessions(Table):
    """Who has come in."""

    __tablename__ = "sessions"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"), index=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]


class Presentations(Table):
    """An item as it was shown to a rater: until `leased_until` nobody else is given his place."""

    __tablename__ = "presentations"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("items.id"))
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    order: Mapped[list[Any]]
    """Places of the completions, from the first shown to the last."""
    shown_at: Mapped[float]
    leased_until: Mapped[float]
    is_repeat: Mapped[bool]
    answer_id: Mapped[int | None]
    """The judgement that settled it, while that stands."""

    __table_args__ = (
        Index("ix_presentations_item", "item_id", "answer_id", "leased_until"),
        Index("ix_presentations_rater", "rater_id", "answer_id", "item_id"),
    )


class Judgements(Table):
    """What raters said. `content` names completions by their places in the item."""

    __tablename__ = "judgements"
    id: Mapped[int] = mapped_column(primary_key=True)
    """In the order in which they came."""
    key: Mapped[str] = mapped_column(String(64))
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    item_id: Mapped[str] = mapped_column(ForeignKey("items.id"), index=True)
    presentation_id: Mapped[str | None] = mapped_column(ForeignKey("presentations.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    content: Mapped[dict[str, Any]]
    order: Mapped[list[Any]]
    judged_at: Mapped[float]
    latency_s: Mapped[float | None]
    is_gold: Mapped[bool]
    is_repeat: Mapped[bool]
    page_version: Mapped[str] = mapped_column(String(32))
    withdraws_id: Mapped[int | None] = mapped_column(ForeignKey("judgements.id"), unique=True)

    __table_args__ = (UniqueConstraint("rater_id", "key"),)


class Events(Table):
    """What was done on the page."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
    rater_id: Mapped[int] = mapped_column(ForeignKey("raters.id"))
    presentation_id: Mapped[str] = mapped_column(ForeignKey("presentations.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    place: Mapped[int | None]
    """Of the completion in its item; None where the event is about the whole."""
    shown_place: Mapped[int | None]
    """Where on the page it was."""
    value: Mapped[float]
    happened_at: Mapped[float]

    __table_args__ = (UniqueConstraint("rater_id", "key"),)


class Audit(Table):
    """Who did what, for the administrator; it names people by their row, and so forgets with it."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    rater_id: Mapped[int | None] = mapped_column(ForeignKey("raters.id"))
    """None: somebody at the command line, or nobody known."""
    action: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)
