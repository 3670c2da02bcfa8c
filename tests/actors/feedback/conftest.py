from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from actors.feedback.access import Services
from actors.feedback.app import application
from pipeline.feedback.database import Database
from pipeline.feedback.raters import Register
from pipeline.feedback.records import RaterRole
from pipeline.feedback.store import FeedbackStore
from tests.feedback.office import PLAIN, Clock, Office, make_item

__all__ = ["make_item"]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """In SQLite alone: what the databases differ in is tested where the queue is."""
    database, clock = Database(f"sqlite:///{tmp_path}/store.sqlite"), Clock()
    database.migrate()
    store = FeedbackStore(database, tmp_path / "media", clock=clock)
    yield Office(store, clock, Register(database, session_s=3600.0, clock=clock), PLAIN)
    database.close()


@contextmanager
def served(office: Office) -> Generator[str, None, None]:
    """The address of the page on a real server, while this lasts."""
    app = application(Services(office.store, office.register, office.queue, office.settings, office.versions))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def address(office: Office) -> Iterator[str]:
    with served(office) as found:
        yield found


@dataclass
class Client:
    """A rater's browser, without the page."""

    address: str
    session: requests.Session
    csrf: str

    def get(self, path: str) -> requests.Response:
        return self.session.get(self.address + path, timeout=20)

    def post(self, path: str, content: Any = None, **headers: str) -> requests.Response:
        given = {"X-CSRF-Token": self.csrf, **headers}
        return self.session.post(
            self.address + path, json={} if content is None else content, headers=given, timeout=20
        )

    def next(self) -> Any:
        return self.get("/api/next").json()["presentation"]

    def judge(self, shown: Any, chosen: int | None = 0, *, key: str = "", **more: Any) -> requests.Response:
        body = {"key": key or f"key-{shown['id']}", "presentation": shown["id"], "kind": "pair"}
        return self.post("/api/judgements", {**body, "content": {"chosen": chosen}, "latency_s": 2.0, **more})


Enter = Callable[..., Client]


@pytest.fixture
def enter(office: Office, address: str) -> Enter:
    def entered(role: RaterRole = RaterRole.RATER, *, days: float = 30) -> Client:
        token = office.register.invite(f"rater{next(office.names)}", role, days=days)
        session = requests.Session()
        found = session.post(address + "/api/login", json={"token": token}, timeout=20)
        assert found.status_code == 200, found.text
        return Client(address, session, found.json()["csrf"])

    return entered
