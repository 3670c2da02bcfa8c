"""Servers on this machine that answer as a test says, and keep what they were asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What is sent back. drip_s: seconds between its bytes."""

    body: Any
    status: int = 200
    drip_s: float = 0.0


@dataclass
class Told:
    """What a server was asked: method, path, body (of JSON, or the bytes), headers."""

    address: str
    requests: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list[Any])
    most_at_once: int = 0


@contextmanager
def served(answer: Callable[[str, str, Any], Answer]) -> Generator[Told, None, None]:
    """Serves; `answer` is called with method, path and body, in a thread for each connection."""
    ended = threading.Event()
    lock, busy = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(data) if self.command == "POST" else data
            with lock:
                busy[0] += 1
                told.most_at_once = max(told.most_at_once, busy[0])
                told.requests.append((self.command, self.path, body, dict(self.headers)))
            try:
                found = answer(self.command, self.path, body)
            finally:
                # Before it is sent: whoever has it may ask again at once.
                with lock:
                    busy[0] -= 1
            with suppress(OSError):  # whoever asked has gone
                self._send(found)

        def _send(self, found: Answer) -> None:
            sent = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if not found.drip_s:
                self.wfile.write(sent)
                return
            for byte in sent:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if ended.wait(found.drip_s):
                    return

        do_POST = do_PUT = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told = Told(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
