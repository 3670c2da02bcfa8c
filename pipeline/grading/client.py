"""Requests to an address that gives rewards: many at a time, within deadlines, and none while it is known to be down.

One client belongs to one address and one worker. It raises nothing of aiohttp's: whatever goes wrong is a `CallFailed`
with its reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from pipeline.config import JudgeReward, ServerReward
from pipeline.grading.records import Failure

T = TypeVar("T")
FIRST_WAIT_S = 0.5
"""Before the first retry, about; it doubles each time."""
TOO_MANY_REQUESTS, SERVER_ERRORS, MULTIPLE_CHOICES = 429, 500, 300
_TOLD = 500
"""Characters of an answer that are shown."""


class CallFailed(Exception):
    """There is no answer: `failure` says why. status: of HTTP, where there was one. may_pass: whether to try again."""

    def __init__(self, failure: Failure, detail: str, *, status: int = 0, may_pass: bool = False, body: bytes = b""):
        super().__init__(detail)
        self.failure, self.status, self.may_pass, self.body = failure, status, may_pass, body


@dataclass
class Breaker:
    """Leaves an address alone that has failed `max_failures` times in a row: for `rest_s`, then one call tries it."""

    max_failures: int
    rest_s: float
    clock: Callable[[], float] = time.monotonic
    num_failures: int = 0
    _until: float = field(default=0.0, repr=False)

    def check(self) -> None:
        """Raises CallFailed while the address is left alone."""
        if self.num_failures >= self.max_failures:
            if self.clock() < self._until:
                detail = f"the last {self.num_failures} calls failed; it is tried again after {self.rest_s:g} s"
                raise CallFailed(Failure.CIRCUIT_OPEN, detail)
            self._until = self.clock() + self.rest_s  # This call tries it; the others wait for what comes of it.

    def tell(self, *, is_well: bool) -> None:
        """Takes note of how a call ended."""
        self.num_failures = 0 if is_well else self.num_failures + 1
        if self.num_failures >= self.max_failures:
            self._until = self.clock() + self.rest_s


class Client:
    """Asks one address. counts: calls and retries since `run` began."""

    def __init__(self, settings: ServerReward | JudgeReward):
        self._settings = settings
        self._breaker = Breaker(settings.max_failures, settings.rest_s)
        self.counts: Counter[str] = Counter()
        self._session: aiohttp.ClientSession | None = None
        self._until = 0.0

    def run(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Does all of it, with as many connections as the recipe allows, within the time of a call with its tries."""
        self.counts = Counter()
        self._until = time.monotonic() + self._settings.limit_s
        return asyncio.run(self._all(work))

    async def _all(self, work: Sequence[Awaitable[T]]) -> list[T]:
        connector = aiohttp.TCPConnector(limit=self._settings.connections)
        token = os.environ.get(self._settings.token_variable or "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        session = aiohttp.ClientSession(connector=connector, headers=headers, json_serialize=_as_json)
        async with session as self._session:
            gate = asyncio.Semaphore(self._settings.connections)

            async def one(each: Awaitable[T]) -> T:
                async with gate:
                    return await each

            return await asyncio.gather(*(one(each) for each in work))

    async def insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt comes to, tried again where that may help.

        Raises:
            CallFailed: the last one failed.
        """
        num_tries = 0
        while True:
            num_tries += 1
            try:
                self._breaker.check()
                self.counts["calls"] += 1
                limit_s = min(self._settings.timeout_s, self._until - time.monotonic())
                try:
                    found = await asyncio.wait_for(attempt(), max(0.0, limit_s))
                except TimeoutError:
                    detail = f"no answer within {self._settings.timeout_s:g} s (timeout_s)"
                    raise CallFailed(Failure.TIMEOUT, detail, may_pass=True) from None
                self._breaker.tell(is_well=True)
                return found
            except CallFailed as error:
                if error.failure is not Failure.CIRCUIT_OPEN:
                    self._breaker.tell(is_well=not error.may_pass)  # Whoever answers, be it nonsense, is not down.
                wait_s = FIRST_WAIT_S * 2 ** (num_tries - 1) * random.uniform(0.5, 1.5)
                is_late = time.monotonic() + wait_s >= self._until
                if not error.may_pass or num_tries > self._settings.retries or is_late:
                    raise
                self.counts["retries"] += 1
                await asyncio.sleep(wait_s)

    async def request(self, method: str, url: str, *, json: Any = None, data: bytes | None = None) -> Any:
        """The JSON that is answered, None where nothing is.

        Raises:
            CallFailed: nobody is there, the status is an error, the answer is too long or no JSON.
        """
        assert self._session is not None
        try:
            async with self._session.request(method, url, json=json, data=data, allow_redirects=False) as response:
                body = await _bounded(response, int(self._settings.max_answer_mib * 2**20))
        except (aiohttp.ClientError, OSError) as error:
            raise CallFailed(Failure.UNREACHABLE, f"{url}: {type(error).__name__}: {error}", may_pass=True) from None
        status = response.status
        if status >= MULTIPLE_CHOICES:
            may_pass = status >= SERVER_ERRORS or status == TOO_MANY_REQUESTS
            detail = f"{url} answered {status}: {body[:_TOLD].decode(errors='replace')}"
            raise CallFailed(Failure.HTTP_ERROR, detail, status=status, may_pass=may_pass, body=body)
        return parsed(body, url)


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)  # columns of a table may hold dates


async def _bounded(response: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        body += chunk
        if len(body) > most:
            raise CallFailed(Failure.TOO_LONG, f"{response.url}: more than {most} bytes (max_answer_mib)")
    return bytes(body)


def parsed(body: bytes, url: str) -> Any:
    """JSON, strictly UTF-8. Raises CallFailed where it is none."""
    try:
        return json.loads(body) if body.strip() else None
    except (ValueError, RecursionError):
        shown = body[:_TOLD].decode(errors="replace")
        raise CallFailed(Failure.WRONG_SCHEMA, f"{url} answered what is no JSON: {shown!r}") from None
