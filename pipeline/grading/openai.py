"""Chats over any OpenAI-compatible address (`POST <url>/chat/completions`), media as data URIs."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pipeline.config import JudgeReward
from pipeline.data.schema import split_content
from pipeline.feedback.media import media_type
from pipeline.grading.client import CallFailed, Client
from pipeline.grading.judge import Chat, Said
from pipeline.grading.records import Failure
from pipeline.records import MediaKind, Medium

_SOUNDS = {"audio/wav": "wav", "audio/mpeg": "mp3"}
"""Formats that `input_audio` knows."""


class Address:
    """A chat model at an address."""

    def __init__(self, settings: JudgeReward):
        self._settings = settings
        self._client = Client(settings)

    @property
    def counts(self) -> Counter[str]:
        """Calls and retries of the last chats."""
        return self._client.counts

    def load(self) -> None:
        """Nothing: failures are counted."""

    def close(self) -> None:
        """Nothing: connections end with each call."""

    def ask(self, chats: Sequence[Chat]) -> list[Said]:
        """One answer a chat."""
        return self._client.run([self._ask(chat) for chat in chats])

    async def _ask(self, chat: Chat) -> Said:
        settings = self._settings
        try:
            body = {
                "model": settings.model,
                "messages": messages_of(chat),
                "temperature": settings.temperature,
                "max_tokens": settings.max_new_tokens,
                **({"seed": chat.seed} if settings.temperature > 0 else {}),
            }
        except ValueError as error:  # a medium of a format that has no name on the web
            return Said(failure=Failure.PROMPT_REFUSED, detail=f"{chat.id}: {error}")
        url = f"{settings.url}/chat/completions"
        try:
            return said_of(await self._client.insist(lambda: self._client.request("POST", url, json=body)), url)
        except CallFailed as error:
            return Said(failure=error.failure, detail=str(error))


def messages_of(chat: Chat) -> list[dict[str, Any]]:
    """The messages of a chat, each medium in its place.

    Raises:
        ValueError: a medium is of no format that has a MIME type.
    """
    media = iter(chat.media)
    messages: list[dict[str, Any]] = []
    for message in chat.messages:
        parts = [
            _medium(next(media)) if isinstance(part, MediaKind) else {"type": "text", "text": part}
            for part in split_content(message.content)
        ]
        is_text = all(part["type"] == "text" for part in parts)
        messages.append({"role": message.role, "content": message.content if is_text else parts})
    return messages


def _medium(medium: Medium) -> dict[str, Any]:
    mime, data = media_type(medium.kind, medium.data), base64.b64encode(medium.data).decode()
    if mime in _SOUNDS:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _SOUNDS[mime]}}
    name = f"{medium.kind.value}_url"
    return {"type": name, name: {"url": f"data:{mime};base64,{data}"}}


def said_of(answer: object, url: str) -> Said:
    """What an answer says.

    Raises:
        CallFailed: it is of another schema.
    """
    found: Any = answer
    try:
        text = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        detail = f"{url} answered without choices[0].message.content: {repr(answer)[:200]}"
        raise CallFailed(Failure.WRONG_SCHEMA, detail)
    usage = cast(Mapping[str, Any], found["usage"]) if isinstance(found.get("usage"), Mapping) else {}
    spent = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (each if isinstance(each, int) else 0 for each in spent)
    return Said(text, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
