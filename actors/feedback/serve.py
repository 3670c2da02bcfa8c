"""The rating page on Ray Serve: one replica, which Serve starts again when it dies.

What was acknowledged lies in the store by then, and pages send again what was not.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ray import serve

from actors.feedback.access import Services
from actors.feedback.app import application
from actors.feedback.limits import App
from pipeline.config import Recipe
from pipeline.feedback.database import Database
from pipeline.feedback.queue import Queue
from pipeline.feedback.raters import Register
from pipeline.feedback.records import RaterRole
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersions

NAME = "feedback"
ADMIN = "admin"
"""Name of the first administrator."""
MAX_ONGOING = 200
"""Requests that the replica has at a time; others wait."""
HEALTH_CHECK_S = 1.0
"""How often Serve sees whether the replica is there. Its default is 10 s, and a page that died is away that long."""


class Page:
    """Answers the page's requests."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe

    def __serve_build_asgi_app__(self) -> App:
        store, settings = opened(self._recipe), self._recipe.feedback
        register = Register(store.database, session_s=settings.session_s)
        queue, versions = Queue(store.database, settings), RewardVersions(self._recipe)
        return application(Services(store, register, queue, settings, versions))


def opened(recipe: Recipe) -> FeedbackStore:
    """The store of a recipe, with the tables of this version."""
    database = Database(recipe.feedback_url)
    database.migrate()
    return FeedbackStore(database, recipe.feedback_media)


def address(recipe: Recipe) -> str:
    """Where browsers of this machine find the page."""
    host, port = recipe.feedback.host, recipe.feedback.port
    return f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1') else host}:{port}/"


def start(recipe: Recipe) -> str:
    """Starts the page on the Ray that is connected; returns its address."""
    http = {"host": recipe.feedback.host, "port": recipe.feedback.port}
    serve.start(http_options=http, logging_config={"log_level": "WARNING"})
    deployment: Any = serve.deployment(
        serve.ingress()(Page),
        name="page",
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=HEALTH_CHECK_S,
        ray_actor_options={"num_cpus": 0},
    )
    serve.run(deployment.bind(recipe), name=NAME, route_prefix="/")
    return address(recipe)


def announce(recipe: Recipe, address: str) -> None:
    """Says where the page is; the first time with an administrator's invitation, who may also judge."""
    store = opened(recipe)
    register = Register(store.database, session_s=recipe.feedback.session_s)
    print(f"The rating page: {address}", flush=True)
    if not register.num_of(RaterRole.ADMIN):
        token = register.invite(ADMIN, RaterRole.ADMIN, days=365)
        print(f"The administrator's invitation, shown once: {address}#invitation={token}", flush=True)
    store.database.close()


@contextmanager
def shown(recipe: Recipe) -> Generator[None, None, None]:
    """The page, while something else goes on."""
    announce(recipe, start(recipe))
    try:
        yield
    finally:
        stop()


def stop() -> None:
    """Ends the page, and Serve with it where it serves nothing else."""
    serve.delete(NAME)
    if not serve.status().applications:
        serve.shutdown()
