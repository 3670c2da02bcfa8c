"""Conversations in the field's several spellings, as our messages with tags and the media that fill them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pipeline.data.ingest.draft import MediumSource
from pipeline.data.schema import Reason, RowError, media_places
from pipeline.records import MediaKind, Message

Slot = MediumSource | None
"""What fills a tag: a medium given in its place, or None for the next one of the row's media column."""

_ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model", "bot", "chatgpt")},
    **{name: "system" for name in ("system", "developer")},
}

_PART_KINDS = {
    **{name: MediaKind.IMAGE for name in ("image", "image_url", "input_image")},
    **{name: MediaKind.AUDIO for name in ("audio", "audio_url", "input_audio")},
    **{name: MediaKind.VIDEO for name in ("video", "video_url", "input_video")},
}


def wrong_type(field: str, value: object, wanted: str) -> RowError:
    """The refusal of a value of a type that is not understood."""
    return RowError(Reason.WRONG_TYPE, f"{field} is {type(value).__name__} ({str(value)[:80]!r}); wanted {wanted}")


def text_of(value: object, field: str) -> str:
    """A value that is to be text; numbers become their digits."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell them, and no file can hold them
            raise RowError(Reason.UNREADABLE, f"{field} holds half of a surrogate pair: {error.reason}") from None
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RowError(Reason.UNREADABLE, f"{field}: not UTF-8: {error}") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise wrong_type(field, value, "text")


def medium_of(value: object, kind: MediaKind, field: str) -> MediumSource:
    """A medium given as bytes, as a path or address, or as `{bytes, path}`."""
    match value:
        case bytes():
            return MediumSource(kind, data=value)
        case str() if value:
            return MediumSource(kind, path=value)
        case {"bytes": bytes() as data, **rest} if data:
            path = rest.get("path")
            return MediumSource(kind, data=data, path=path if isinstance(path, str) else None)
        case {"path": str() as path} | {"url": str() as path} if path:
            return MediumSource(kind, path=path)
        case {"data": str() as data}:
            return MediumSource(kind, data=_base64(data, field))
        case {"bytes": _} | {"path": _}:
            raise RowError(Reason.MISSING_BYTES, f"{field} has neither bytes nor a path")
        case _:
            raise wrong_type(field, value, "bytes, a path, or {bytes, path}")


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(Reason.MISSING_BYTES, f"{field}: not base64: {error}") from None


def turns_of(value: object, field: str) -> list[tuple[Message, list[Slot]]]:
    """The turns of a conversation, each with what fills its tags.

    Takes text (a user's turn), one turn, a list of turns, or either as JSON; a turn is `{role, content}` or
    `{from, value}`, its content text or a list of parts.
    """
    if isinstance(value, str | bytes):
        value = _json_or(text_of(value, field))
    match value:
        case str():
            return [_turn("user", value, field)]
        case {"role": role, "content": content} | {"from": role, "value": content}:
            return [_turn(role, content, field)]
        case [*turns]:
            return [turn for index, item in enumerate(turns) for turn in _one_turn(item, f"{field}[{index}]")]
        case _:
            raise wrong_type(field, value, "messages")


def _one_turn(item: object, field: str) -> list[tuple[Message, list[Slot]]]:
    if not isinstance(item, dict):
        raise wrong_type(field, item, "{role, content} or {from, value}")
    return turns_of(cast(dict[str, Any], item), field)


def _json_or(text: str) -> object:
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _turn(role: object, content: object, field: str) -> tuple[Message, list[Slot]]:
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(Reason.BAD_ROLE, f"{field}: role {role!r} is none of {', '.join(_ROLES)}")
    text, slots = content_of(content, field)
    return Message(_ROLES[role.lower()], text), slots


def content_of(content: object, field: str) -> tuple[str, list[Slot]]:
    """Text with tags, and what fills them."""
    if content is None:
        return "", []
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        text = text_of(content, field)
        return text, [None] * len(media_places([Message("", text)]))
    texts: list[str] = []
    slots: list[Slot] = []
    for index, part in enumerate(cast(Sequence[object], content)):
        text, filled = _part(part, f"{field}.content[{index}]")
        texts.append(text)
        slots.extend(filled)
    return "".join(texts), slots


def _part(part: object, field: str) -> tuple[str, list[Slot]]:
    if isinstance(part, str):
        return content_of(part, field)
    if not isinstance(part, dict):
        raise wrong_type(field, part, "text or {type, ...}")
    known = cast(dict[str, Any], part)
    kind = known.get("type")
    if kind in ("text", "input_text", "output_text"):
        return content_of(known.get("text"), field)
    if not isinstance(kind, str) or kind not in _PART_KINDS:
        raise RowError(Reason.WRONG_TYPE, f"{field}: type {kind!r} is none of text, {', '.join(_PART_KINDS)}")
    medium = _PART_KINDS[kind]
    given = next((known[name] for name in (kind, medium.value, "url", "path") if known.get(name)), None)
    return medium.tag, [None if given is None else medium_of(given, medium, field)]


def fill(
    turns: Sequence[tuple[Message, list[Slot]]], columns: Mapping[MediaKind, Sequence[MediumSource]]
) -> tuple[tuple[Message, ...], tuple[MediumSource, ...]]:
    """Messages and their media in order: each tag takes what was given in its place, or its column's next medium.

    Where no tag of a kind stands anywhere, its media go before the first user turn's text, as TRL and ms-swift do.

    Raises:
        RowError: tags and media differ in number.
    """
    messages = [message for message, _ in turns]
    for message, filled in turns:
        if len(media_places([message])) != len(filled):
            raise RowError(Reason.PLACEHOLDER_MISMATCH, f"texts of one message make up a tag: {message.content[:80]!r}")
    slots = [list(zip(media_places([message]), filled, strict=True)) for message, filled in turns]
    kinds = [kind for filled in slots for kind, _ in filled]
    first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
    untagged = [kind for kind in MediaKind if columns.get(kind) and kind not in kinds]
    if untagged and first is not None:
        added = [kind for kind in untagged for _ in columns[kind]]
        messages[first] = Message("user", "".join(kind.tag for kind in added) + messages[first].content)
        slots[first] = [*((kind, None) for kind in added), *slots[first]]
    open_slots = [kind for filled in slots for kind, given in filled if given is None]
    waiting = {kind: list(columns.get(kind, ())) for kind in MediaKind}
    for kind in MediaKind:
        if open_slots.count(kind) != len(waiting[kind]):
            raise RowError(
                Reason.PLACEHOLDER_MISMATCH,
                f"{open_slots.count(kind)} {kind.tag} in the messages wait for {len(waiting[kind])} files",
            )
    media = [given or waiting[kind].pop(0) for filled in slots for kind, given in filled]
    return tuple(messages), tuple(media)
