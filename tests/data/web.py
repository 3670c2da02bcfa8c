"""A web server of this machine that misbehaves in every way that a test asks for."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Generator
from pathlib import Path

BODY = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says what to do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        match path:
            case "/good":
                self.reply(200, BODY)
            case "/long":
                self.reply(200, BODY * 9, length=None)
            case "/empty-redirect":
                self.reply(302, b"")
            case "/to":
                self.reply(302, b"", Location=query)
            case "/loop":
                self.reply(302, b"", Location="/loop")
            case "/chunked":
                self.chunks(BODY)
            case "/cut":
                self.reply(200, BODY[:100], length=len(BODY))
            case "/promises-much":
                self.reply(200, b"", length=10**12)
            case "/endless":
                self.chunks(bytes(2**16), times=10**6)
            case "/no-length":
                self.reply(200, bytes(10**6), length=None)
            case "/drip":
                self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
            case "/drip-header":
                self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            case "/gzip":
                self.reply(200, BODY, Content_Encoding="gzip")
            case "/garbage":
                self.wfile.write(b"\x00\xff not http at all\r\n\r\n")
            case "/host":
                self.reply(200, str(self.headers["Host"]).encode())
            case "/bucket/shelf/1.png":  # as an object store answers
                self.reply(200, BODY, Last_Modified="Tue, 01 Jan 2030 00:00:00 GMT", ETag='"1"')
            case _:
                self.reply(404, b"no")

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes, *, length: int | None = -1, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def chunks(self, chunk: bytes, times: int = 1) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(times):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def drip(self, head: bytes) -> None:
        self.wfile.write(head)
        for _ in range(100):
            time.sleep(0.05)
            self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what the tests are about."""


@contextlib.contextmanager
def serve(certificate: Path | None = None) -> Generator[int]:
    """A server on 127.0.0.1; gives its port."""
    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
