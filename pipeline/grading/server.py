"""Rewards from a server, over HTTP as docs/rewards.md describes it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pipeline.config import Sending, ServerReward
from pipeline.grading.client import CallFailed, Client, parsed
from pipeline.grading.records import Failure, Graded, Question, RewardPrompt, failed, graded
from pipeline.records import Medium

VERSION = 1
MISSING = 409
"""Status of a server that lacks media; its answer names their hashes: `{"missing": [...]}`."""


class Server:
    """A server that gives rewards, at its address."""

    def __init__(self, name: str, settings: ServerReward):
        self._name, self._settings = name, settings
        self._client = Client(settings)

    def load(self) -> None:
        """Nothing: that a server is up now says little of later, and failures are counted."""

    def close(self) -> None:
        """Nothing: connections end with each call."""

    def grade(self, questions: Sequence[Question]) -> Graded:
        """Rewards of the completions of all questions, one after the other, in one request."""
        (found,) = self._client.run([self._grade(questions)])
        return found.counted(**self._client.counts)

    async def _grade(self, questions: Sequence[Question]) -> Graded:
        num, weights = sum(len(each.completions) for each in questions), self._settings.parts
        request = request_of(self._name, questions, self._settings.media)
        media = {key_of(each): each for question in questions for each in media_of(question.prompt)}
        try:
            answer = await self._client.insist(lambda: self._ask(request, media))
            if not isinstance(answer, Mapping) or "rewards" not in answer:
                shown = repr(answer)[:200]
                raise CallFailed(Failure.WRONG_SCHEMA, f"{self._settings.url} answered without `rewards`: {shown}")
        except CallFailed as error:
            return failed(num, error.failure, str(error), tuple(weights))
        return graded(cast(Mapping[str, Any], answer)["rewards"], num, weights)

    async def _ask(self, request: Mapping[str, Any], media: Mapping[str, Medium]) -> Any:
        """Asks; uploads what the server lacks, and asks again, once."""
        url = self._settings.url
        try:
            return await self._client.request("POST", url, json=request)
        except CallFailed as error:
            if error.status != MISSING or self._settings.media is not Sending.BY_HASH:
                raise
            for key in _missing(parsed(error.body, url), media):
                await self._client.request("PUT", f"{url}/media/{key}", data=media[key].data)
        try:
            return await self._client.request("POST", url, json=request)
        except CallFailed as error:
            if error.status == MISSING:
                raise CallFailed(Failure.LACKS_MEDIA, f"{url} still lacks media that were uploaded: {error}") from None
            raise


def _missing(answer: object, media: Mapping[str, Medium]) -> list[str]:
    keys = cast(Mapping[str, object], answer).get("missing") if isinstance(answer, Mapping) else None
    if not isinstance(keys, list) or not keys or not all(key in media for key in cast(list[object], keys)):
        raise CallFailed(Failure.WRONG_SCHEMA, f"status {MISSING} without a list of hashes of this request: {answer!r}")
    return cast(list[str], keys)


def request_of(name: str, questions: Sequence[Question], sending: Sending) -> dict[str, Any]:
    """The request for a batch."""
    return {
        "version": VERSION,
        "part": name,
        "prompts": [_prompt(question.prompt, sending) for question in questions],
        "completions": [
            {
                "prompt": index,
                "text": completion.text,
                "token_ids": completion.token_ids.tolist(),
                "finish_reason": completion.finish_reason.value,
            }
            for index, question in enumerate(questions)
            for completion in question.completions
        ],
    }


def _prompt(prompt: RewardPrompt, sending: Sending) -> dict[str, Any]:
    media: list[dict[str, str]] = []
    for each in media_of(prompt):
        data = {"data": base64.b64encode(each.data).decode()} if sending is Sending.INLINE else {}
        media.append({"kind": each.kind.value, "sha256": key_of(each), **data})
    return {
        "id": prompt.id,
        "task": prompt.task,
        "messages": [vars(message) for message in prompt.messages],
        "answer": prompt.answer,
        "accepted": list(prompt.accepted),
        "columns": dict(prompt.columns),
        "media": media,
    }


def media_of(prompt: RewardPrompt) -> list[Medium]:
    """Its media as file bytes; none where they were not asked for."""
    return [each for each in prompt.media if isinstance(each, Medium)]


def key_of(medium: Medium) -> str:
    """What a medium is known by: the SHA-256 of its bytes, in hexadecimal digits."""
    return hashlib.sha256(medium.data).hexdigest()
