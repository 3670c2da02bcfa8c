"""The rating page's HTTP API: see docs/feedback.md for all of it.

Who is logged in has a session in a cookie that scripts cannot read and other sites cannot send; what changes something
also needs the session's CSRF token. Places of completions in requests and answers are those on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Cookie, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field

from actors.feedback import admin
from actors.feedback.access import COOKIE, Body, Here, Sender, Services, Somebody
from actors.feedback.limits import App, Guard, Rate, Scope
from pipeline.data.schema import split_content
from pipeline.feedback.judging import BadJudgement
from pipeline.feedback.queue import Conflict, Event, NotYours, Presentation
from pipeline.feedback.raters import Person, Refused, hashed
from pipeline.feedback.records import EventKind, JudgementKind, RaterRole
from pipeline.records import MediaKind

PAGE = Path(__file__).parent / "page"
LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_EVENTS = 200
RATERS_AT_AN_ADDRESS = 100
"""How many may come from behind one address: cookies can be made up, addresses less so."""
PAGE_VERSION = hashed("".join(path.read_text(encoding="utf-8") for path in sorted(PAGE.glob("*.*"))))[:12]

Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[\w-]+$")]
routes = APIRouter()


class Login(Body):
    """An invitation."""

    token: str = Field(max_length=200)


class Judging(Body):
    """A judgement."""

    key: Key
    presentation: str = Field(max_length=64)
    kind: JudgementKind
    content: dict[str, Any]
    latency_s: float | None = Field(default=None, ge=0)


class Undo(Body):
    """Takes the last answer back."""

    key: Key


class Happened(Body):
    """Something that was done on the page."""

    key: Key
    presentation: str = Field(max_length=64)
    kind: EventKind
    place: int | None = None
    value: float = 1.0


class Events(Body):
    """Several of them."""

    events: list[Happened] = Field(max_length=MAX_EVENTS)


@routes.post("/api/login")
def log_in(here: Here, body: Login, request: Request, response: Response) -> dict[str, Any]:
    """Changes an invitation for a session."""
    session, person = here.register.log_in(body.token)
    response.set_cookie(
        COOKIE,
        session,
        max_age=int(here.settings.session_s),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return _person(person)


@routes.post("/api/logout", status_code=204)
def log_out(here: Here, _: Sender, response: Response, session: Annotated[str, Cookie(alias=COOKIE)]) -> None:
    """Ends the session."""
    here.register.log_out(session)
    response.delete_cookie(COOKIE)


@routes.get("/api/me")
def me(here: Here, person: Somebody) -> dict[str, Any]:
    """Who is logged in, and what ratings are about."""
    criteria = [{"name": name} for name in here.settings.criteria]
    return {**_person(person), **_progress(here, person), "criteria": criteria, "page_version": PAGE_VERSION}


@routes.get("/api/next")
def next_item(here: Here, person: Somebody) -> dict[str, Any]:
    """What the rater is to judge."""
    return {"presentation": shown(here.queue.next(person)), **_progress(here, person)}


@routes.post("/api/judgements")
def judge(here: Here, body: Judging, person: Sender) -> dict[str, Any]:
    """Takes a judgement: what is answered has been written to disk."""
    here.queue.judge(
        person,
        key=body.key,
        presentation=body.presentation,
        kind=body.kind,
        content=body.content,
        latency_s=body.latency_s,
        page_version=PAGE_VERSION,
    )
    return _progress(here, person)


@routes.post("/api/undo")
def undo(here: Here, body: Undo, person: Sender) -> dict[str, Any]:
    """Takes the last answer back, and shows its item again."""
    return {"presentation": shown(here.queue.undo(person, key=body.key)), **_progress(here, person)}


@routes.post("/api/events", status_code=204)
def events(here: Here, body: Events, person: Sender) -> None:
    """Takes what was done on the page."""
    found = [Event(each.key, each.presentation, each.kind, each.place, each.value) for each in body.events]
    here.queue.record(person, found)


@routes.get("/api/media/{key}")
def medium(here: Here, key: str, person: Somebody) -> FileResponse:
    """A picture, a sound or a video that the rater was shown."""
    if person.role is not RaterRole.ADMIN and not here.queue.may_see(person, key):
        raise HTTPException(404, "you were not shown this medium")
    try:
        path, mime = here.store.medium(key)
    except KeyError:
        raise HTTPException(404, "there is no such medium") from None
    return FileResponse(path, media_type=mime, headers={"cache-control": "private, max-age=86400, immutable"})


@routes.get("/")
def index() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


class Fresh(StaticFiles):
    """Files that browsers ask for again: those of two versions do not go together."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """With the header that says so."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def application(services: Services) -> App:
    """The page and its API, behind their guard."""
    app = FastAPI(title="Polyphony: feedback", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = services
    app.include_router(routes)
    app.include_router(admin.routes)
    app.mount("/page", Fresh(directory=PAGE))
    _answer_errors(app)
    settings = services.settings
    return Guard(
        app,
        hosts={*LOCAL, *settings.public_hosts},
        max_body_bytes=settings.max_body_bytes,
        rates=(
            (Rate(settings.max_requests_a_minute), _session),
            (Rate(settings.max_requests_a_minute * RATERS_AT_AN_ADDRESS), _address),
        ),
    )


def shown(presentation: Presentation | None) -> dict[str, Any] | None:
    """An item as the page takes it: completions in the order in which they are shown, and nothing that tells more."""
    if presentation is None:
        return None
    item, media = presentation.item, iter(presentation.item.media)

    def parts(content: str) -> Iterator[dict[str, Any]]:
        for part in split_content(content):
            if isinstance(part, MediaKind):
                yield {"medium": {"kind": part.value, "url": f"/api/media/{next(media).key}"}}
            else:
                yield {"text": part}

    return {
        "id": presentation.id,
        "task": item.task.value,
        "messages": [{"role": each.role, "parts": list(parts(each.content))} for each in item.messages],
        "completions": [{"text": item.candidates[place].text} for place in presentation.order],
        "is_repeat": False,  # It would be judged otherwise if it were known.
    }


def _person(person: Person) -> dict[str, Any]:
    return {"rater": person.name, "role": person.role.value, "csrf": person.csrf}


def _progress(here: Services, person: Person) -> dict[str, Any]:
    found = here.queue.progress(person)
    return {"num_judged": found.num_judged, "num_left": found.num_left}


def _answer_errors(app: FastAPI) -> None:
    statuses: Sequence[tuple[type[Exception], int]] = (
        (Refused, 401),
        (NotYours, 404),
        (BadJudgement, 422),
        (Conflict, 409),
    )
    for kind, status in statuses:

        def answer(_: Request, error: Exception, status: int = status) -> Response:
            return JSONResponse({"detail": str(error)}, status_code=status)

        app.add_exception_handler(kind, answer)


def _session(scope: Scope) -> str:
    """Whose requests are counted together: those of a session, or else of an address, as for all that log in."""
    if scope["path"] == "/api/login":
        return _address(scope)
    for name, value in scope["headers"]:
        if name == b"cookie" and (at := value.find(COOKIE.encode() + b"=")) >= 0:
            return hashed(value[at:].split(b";")[0].decode("latin-1"))
    return _address(scope)


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])
