"""What a request may cost before anybody looks at it: its size, its time, how often; and the name that it came to.

Plain ASGI: what is refused here never reaches the application.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_S = 10.0
"""Seconds within which the body of a request has to be there."""
MAX_KNOWN = 10_000
"""Senders of whom is known how often they ask."""
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Rate:
    """A bucket of tokens for each sender: full at first, filled again within a minute."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic):
        self._most = most
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, sender: str) -> float:
        """Takes a token, and returns 0; or the seconds until there is one."""
        now = self._clock()
        left, then = self._left.pop(sender, (float(self._most), now))
        left = min(float(self._most), left + (now - then) * self._most / 60)
        wait_s = 0.0 if left >= 1 else (1 - left) * 60 / self._most
        self._left[sender] = (left - (not wait_s), now)
        while len(self._left) > MAX_KNOWN:
            self._left.popitem(last=False)
        return wait_s


class Guard:
    """Stands before the application."""

    def __init__(
        self,
        app: App,
        *,
        hosts: Collection[str],
        max_body_bytes: int,
        rates: Sequence[tuple[Rate, Callable[[Scope], str]]],
    ):
        self._app = app
        self._hosts = frozenset(hosts)
        self._max_body_bytes = max_body_bytes
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, with its body read and the answer's headers set, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                more = {name.encode(): value.encode() for name, value in _HEADERS.items()}
                message["headers"] = [*message["headers"], *((k, v) for k, v in more.items() if k not in present)]
            await send(message)

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]")
        if host not in self._hosts:
            await _refuse(answer, 421, "this server is not known under that name; see feedback.public_hosts")
            return
        if wait_s := max(rate.wait_s(sender(scope)) for rate, sender in self._rates):
            await _refuse(answer, 429, "too many requests; slow down", {"retry-after": str(int(wait_s) + 1)})
            return
        body = b""
        if scope["method"] not in ("GET", "HEAD"):
            try:
                async with asyncio.timeout(BODY_S):
                    body = await self._body(receive)
            except TimeoutError:
                await _refuse(answer, 408, f"the request was not there after {BODY_S:.0f} s")
                return
            if len(body) > self._max_body_bytes:
                await _refuse(answer, 413, f"the request has more than {self._max_body_bytes} bytes")
                return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(given, None) or await receive()

        await self._app(scope, replay, answer)

    async def _body(self, receive: Receive) -> bytes:
        """All of it, or a little more than is allowed."""
        parts: list[bytes] = []
        more = True
        while more and sum(map(len, parts)) <= self._max_body_bytes:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)


async def _refuse(send: Send, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
    content = json.dumps({"detail": detail}).encode()
    given = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
