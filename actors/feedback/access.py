"""Who sends a request, and what he may: dependencies of the page's routes."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Cookie, Depends, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict

from pipeline.config.feedback import Feedback
from pipeline.feedback.queue import Queue
from pipeline.feedback.raters import Person, Register
from pipeline.feedback.records import RaterRole
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersions

COOKIE = "session"


@dataclass(frozen=True)
class Services:
    """What routes work with."""

    store: FeedbackStore
    register: Register
    queue: Queue
    settings: Feedback
    versions: RewardVersions


class Body(BaseModel):
    """What a request holds; nothing else is taken."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def services(request: Request) -> Services:
    """Those of the application."""
    return request.app.state.services


Here = Annotated[Services, Depends(services)]


def somebody(here: Here, session: Annotated[str | None, Cookie(alias=COOKIE)] = None) -> Person:
    """Who is logged in."""
    return here.register.person(session)


def sender(person: Annotated[Person, Depends(somebody)], x_csrf_token: Annotated[str, Header()] = "") -> Person:
    """Who is logged in and sends this from the page."""
    if not hmac.compare_digest(person.csrf.encode(), x_csrf_token.encode()):
        raise HTTPException(403, "this request does not come from the page; load it again")
    return person


def administrator(person: Annotated[Person, Depends(somebody)]) -> Person:
    """Who is logged in and may see everything."""
    if person.role is not RaterRole.ADMIN:
        raise HTTPException(403, "for administrators only")
    return person


def administering(person: Annotated[Person, Depends(sender)]) -> Person:
    """Who may change everything, and sends this from the page."""
    return administrator(person)


Somebody = Annotated[Person, Depends(somebody)]
Sender = Annotated[Person, Depends(sender)]
Admin = Annotated[Person, Depends(administrator)]
AdminSender = Annotated[Person, Depends(administering)]
