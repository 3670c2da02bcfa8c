"""Connections to the feedback store's database, and its migrations.

SQLite (a file, written ahead: readers never wait) or PostgreSQL, by URL. A transaction that has ended is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from pipeline.config import ConfigError

BUSY_S = 30.0
"""How long a writer waits for another one of the same SQLite file."""
_LOCK = 7268321
"""Of PostgreSQL's advisory locks, the one of the feedback store."""
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


class Database:
    """A database by its URL: `sqlite:////absolute/path` or `postgresql://user@host/name`.

    Raises:
        ConfigError: the URL is none, or of another kind of database.
    """

    def __init__(self, url: str):
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise ConfigError(f"feedback.url={url!r} is no URL; write sqlite:////path or postgresql://…") from None
        kind = parsed.get_backend_name()
        if kind not in _DRIVERS:
            raise ConfigError(f"feedback.url={kind}://…: {kind} is not supported; use sqlite or postgresql")
        self.url = parsed.set(drivername=_DRIVERS[kind])
        self.is_sqlite = kind == "sqlite"
        try:
            self._engine = _sqlite(self.url) if self.is_sqlite else create_engine(self.url, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise ConfigError(f"feedback.url={kind}://…: {error}; pip install 'polyphony[postgresql]'") from None
        self._writer = self._engine.execution_options(writes=True)
        # Who waits for SQLite asks it now and then, and may be passed by whoever comes meanwhile: for seconds, among
        # many. Threads of this process queue up here, before they hold a connection that readers could have.
        self._turn = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """A transaction; it is durable when this ends, and nothing of it has happened if it raises."""
        with self._turn, self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """A connection that sees what was written before."""
        with self._engine.connect() as connection:
            yield connection

    def alone(self, connection: Connection) -> None:
        """Keeps others who call this from going on, until this transaction has ended. SQLite has one writer anyway."""
        if not self.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def migrate(self) -> None:
        """Makes the tables, or brings those of an earlier version to this one's."""
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        with self.write() as connection:
            self.alone(connection)  # Two servers may start at once.
            command.upgrade(migrations(connection), "head")

    def purge(self) -> None:
        """Leaves no copy of what was deleted. PostgreSQL's own vacuum does so in time."""
        if self.is_sqlite:
            with self._engine.connect() as connection:
                connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()


def migrations(connection: Connection) -> Config:
    """What Alembic needs to know."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _sqlite(url: Any) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # Transactions begin below, and not where the driver thinks they should.
        # Written over with zeros: what is deleted is somebody's.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Who reads first and writes then would find that another has written meanwhile, and fail.
        is_writer = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")

    return engine
