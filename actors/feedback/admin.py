"""The routes of whoever runs the rating: how it goes, who may come in, and all judgements in a file."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from actors.feedback.access import Admin, AdminSender, Body, Here
from pipeline.feedback import overview
from pipeline.feedback.exchange import jsonl
from pipeline.feedback.records import RaterRole

routes = APIRouter(prefix="/api/admin")


class Invitation(Body):
    """Somebody who is to come in."""

    name: str
    role: Literal[RaterRole.RATER, RaterRole.EXPERT] = RaterRole.RATER
    days: float = Field(default=30.0, gt=0, le=3650)


class Revocation(Body):
    """Somebody who is to stay out."""

    name: str


@routes.get("/summary")
def summary(here: Here, _: Admin) -> dict[str, Any]:
    """Throughput, agreement and what is known of each rater."""
    return overview.summary(here.store, here.settings, here.versions)


@routes.get("/export.jsonl")
def export(here: Here, person: Admin) -> StreamingResponse:
    """Every item with its judgements that stand."""
    here.register.note(person.id, "exported")

    headers = {"content-disposition": 'attachment; filename="judgements.jsonl"'}
    return StreamingResponse(
        map(jsonl.line_of, here.store.judged()), media_type="application/x-ndjson", headers=headers
    )


@routes.post("/invite")
def invite(here: Here, body: Invitation, request: Request, person: AdminSender) -> dict[str, str]:
    """A token for somebody new, shown once."""
    try:
        token = here.register.invite(body.name, body.role, days=body.days, by=person.id)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return {"token": token, "address": f"{request.base_url}#invitation={token}"}


@routes.post("/revoke", status_code=204)
def revoke(here: Here, body: Revocation, person: AdminSender) -> None:
    """Keeps somebody out."""
    try:
        here.register.revoke(body.name, by=person.id)
    except KeyError as error:
        raise HTTPException(404, str(error.args[0])) from None
