"""Workers of a pool as processes of this machine, without Ray."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from pipeline.data.ingest.pool import Gone

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, eq=False)
class _Worker:
    process: Any
    connection: Connection


class Processes:
    """Processes that start anew, each with what `make` makes in it. A call is known by its worker."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def start(self) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, self._make), daemon=True)
        process.start()
        theirs.close()  # else nobody would hear that the process is gone
        return _Worker(process, ours)

    def ask(self, worker: _Worker, method: str, *args: Any) -> _Worker:
        with suppress(ConnectionError):  # that it is gone is its result
            worker.connection.send((method, args))
        return worker

    def first(self, calls: list[_Worker]) -> _Worker:
        by_connection = {call.connection: call for call in calls}
        return by_connection[wait(list(by_connection))[0]]  # pyright: ignore[reportArgumentType]

    def result(self, call: _Worker) -> Any:
        try:
            is_good, found = call.connection.recv()
        except (EOFError, ConnectionError) as error:
            call.process.join()
            raise Gone(f"process {call.process.pid} ended with code {call.process.exitcode}") from error
        if not is_good:
            raise found
        return found

    def end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def settle(self, calls: list[_Worker]) -> None:
        """Those that were ended have ended."""


def _serve(connection: Connection, make: Callable[[], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the keyboard it comes to all: whoever asks ends the workers
    worker = make()
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        try:
            answer = True, getattr(worker, method)(*args)
        except Exception as error:
            answer = False, _sendable(error)
        connection.send(answer)


def _sendable(error: Exception) -> Exception:
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
