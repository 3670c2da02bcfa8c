"""Connections of many threads to one store."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from pipeline.feedback.database import Database, migrations
from pipeline.feedback.queue import Queue
from pipeline.feedback.tables import Table
from tests.feedback.office import MakeItem, Office

NUM_WRITERS = 20
"""More than there are connections."""


def test_writers_that_wait_for_their_turn_in_sqlite_leave_connections_to_readers(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/store.sqlite")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE counted (number INTEGER)"))
    started = threading.Barrier(NUM_WRITERS + 1)

    def write(number: int) -> None:
        started.wait()
        with database.write() as connection:
            connection.execute(text(f"INSERT INTO counted VALUES ({number})"))

    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        with database.write():
            written = [writers.submit(write, number) for number in range(NUM_WRITERS)]
            started.wait()
            time.sleep(0.2)  # Until all of them wait.
            before = time.monotonic()
            with database.read() as connection:
                assert connection.execute(text("SELECT count(*) FROM counted")).scalar_one() == 0
            assert time.monotonic() - before < 5
        for each in written:
            each.result()
    with database.read() as connection:
        numbers = connection.execute(text("SELECT number FROM counted")).scalars()
        assert sorted(numbers) == list(range(NUM_WRITERS))
    database.close()


def test_a_store_of_an_earlier_version_is_brought_up_to_date_with_its_queue_in_order(
    office: Office, make_item: MakeItem
) -> None:
    database = office.store.database
    office.store.offer([make_item(str(value), uncertainty=value) for value in (0.2, 0.8)])
    with database.write() as connection:
        command.downgrade(migrations(connection), "0001")
    database.migrate()
    shown = Queue(database, office.settings, clock=office.clock).next(office.rater())
    assert shown is not None and shown.item.uncertainty == 0.8


def test_the_migrations_make_the_tables_that_the_program_takes_them_for(database: Database) -> None:
    with database.read() as connection:
        found = map(str, compare_metadata(MigrationContext.configure(connection), Table.metadata))
    # Alembic cannot read the direction of SQLite's indexes; what this one does is tested with the queue.
    assert [each for each in found if not (database.is_sqlite and "ix_items_queue" in each)] == []
