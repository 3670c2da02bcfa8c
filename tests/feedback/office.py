"""A feedback store with its register and queue, in SQLite and in PostgreSQL, for the tests of several rooms."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks import postgres
from pipeline.config import load_recipe
from pipeline.config.feedback import Feedback
from pipeline.feedback.database import Database
from pipeline.feedback.queue import Queue
from pipeline.feedback.raters import Person, Register
from pipeline.feedback.records import Candidate, Item, RaterRole, Task
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersions
from pipeline.records import Message


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


PLAIN = Feedback(second_rater_share=0, gold_share=0, repeat_share=0)


@dataclass
class Office:
    """A store with its register and queue, under one clock."""

    store: FeedbackStore
    clock: Clock
    register: Register
    settings: Feedback = PLAIN
    names: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    @property
    def queue(self) -> Queue:
        return Queue(self.store.database, self.settings, clock=self.clock, chance=random.Random(0))

    @property
    def versions(self) -> RewardVersions:
        """Of the run whose store it is, in SQLite."""
        place = Path(str(self.store.database.url.database)).parent
        return RewardVersions(load_recipe(None, [f"run.directory={place}"]))

    def use(self, **settings: object) -> Queue:
        self.settings = self.settings.model_copy(update=settings)
        return self.queue

    def rater(self, role: RaterRole = RaterRole.RATER) -> Person:
        _, person = self.register.log_in(self.register.invite(f"rater{next(self.names)}", role, days=30))
        return person


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt install postgresql")
    # Not below pytest's own directory, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory(prefix="pg-") as directory, postgres.server(Path(directory)) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        found = Database(f"sqlite:///{tmp_path}/store.sqlite")
    else:
        found = Database(request.getfixturevalue("postgres_url"))
        with found.write() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    found.migrate()
    yield found
    found.close()


@pytest.fixture
def office(database: Database, tmp_path: Path) -> Office:
    clock = Clock()
    store = FeedbackStore(database, tmp_path / "media", clock=clock)
    return Office(store, clock, Register(database, session_s=3600.0, clock=clock))


MakeItem = Callable[..., Item]


@pytest.fixture
def make_item() -> MakeItem:
    def made(name: str = "a", *, num: int = 2, task: Task = Task.PAIR, **more: object) -> Item:
        candidates = tuple(Candidate(f"{name}{place}", token_ids=(place, 7), weights_version=3) for place in range(num))
        item = Item(task, f"prompt-{name}", "digit", (Message("user", f"What is {name}?"),), (), candidates, "run", 4)
        return replace(item, **more)

    return made
