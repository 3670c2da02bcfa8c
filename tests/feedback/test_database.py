"""Connections of many threads to one store."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import text

from pipeline.feedback.database import Database

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
