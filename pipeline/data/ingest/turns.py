"""Conversations in the field's several spellings, as our messages with tags and the media that fill them."""

from __future__ import annotations

import ast
import base64
import binascii
import json
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import numpy as np

from pipeline.data.ingest.draft import MediumSource
from pipeline.data.inspection import SUFFIXES, format_of
from pipeline.data.schema import Reason, RowError, media_places
from pipeline.records import MediaKind, Message

Slot = MediumSource | None
"""What fills a tag: a medium given in its place, or None for the next one of the row's media column."""

_ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model", "bot", "chatgpt")},
    **{name: "system" for name in ("system", "developer")},
}

_LIKE_TURNS = re.compile(
    rf"""(array\()?[\[(]?\s*\{{.*?['"](role|from)['"]\s*:\s*['"]({"|".join(_ROLES)})['"]""", re.DOTALL | re.IGNORECASE
)
"""The beginning of turns in whatever spelling, such as numpy's, which has no commas."""

_NAMED = re.compile(r"<(img|image|audio|video)>([^<>\n]{1,4096})</\1>")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{128,}={0,2}")
"""No digest is as long, and no path so long without a dot."""

TEXT_PARTS = ("text", "input_text", "output_text")
PART_KINDS = {
    **{name: MediaKind.IMAGE for name in ("image", "image_url", "input_image")},
    **{name: MediaKind.AUDIO for name in ("audio", "audio_url", "input_audio")},
    **{name: MediaKind.VIDEO for name in ("video", "video_url", "input_video")},
}

_PARTS = (*TEXT_PARTS, *PART_KINDS)


def wrong_type(field: str, value: object, wanted: str) -> RowError:
    """The refusal of a value of a type that is not understood."""
    return RowError(Reason.WRONG_TYPE, f"{field} is {type(value).__name__} ({str(value)[:80]!r}); wanted {wanted}")


def is_missing(value: object) -> bool:
    """Whether it is what a tool writes for no value: None, NaN, NaT, pandas' NA. Nothing else differs from itself."""
    if value is None or isinstance(value, str | bytes | list | dict):
        return value is None
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA says neither yes nor no
        return type(value).__name__ == "NAType"


def text_of(value: object, field: str) -> str:
    """A value that is to be text; numbers become their digits as people write them, 7.0 as 7."""
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
    if isinstance(value, bool):
        raise wrong_type(field, value, "text: write the word that is meant, such as yes or True")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        digits = np.format_float_positional(value, trim="-") if isinstance(value, float) else f"{value.normalize():f}"
        return digits if digits != "-0" else "0"
    raise wrong_type(field, value, "text")


def json_of(value: object, field: str) -> str:
    """A list or an object that is to be text: JSON, its numbers as `text_of` writes them."""
    try:
        return text_of(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False), field)
    except (TypeError, ValueError, RecursionError):
        raise wrong_type(field, value, "text, numbers, or lists and objects of them") from None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if is_missing(value):
        return None
    value = float(value) if isinstance(value, Decimal) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def spelled(text: str) -> Any:
    """The list or object that a text spells, as JSON or as Python prints it (pandas does, in a CSV); or the text."""
    stripped = text.strip()
    if stripped[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(stripped)
        # What Python would not print so is something else: ['a' 'b'] are two texts of numpy, and one of Python.
        return value if repr(value) == stripped else text
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def medium_of(value: object, kind: MediaKind, field: str) -> MediumSource:
    """A medium given as bytes, as a path or address, or as `{bytes, path}`."""
    match value:
        case bytes():
            return MediumSource(kind, data=value)
        case str() if value:
            data = _bare_base64(value, kind)
            return MediumSource(kind, path=value) if data is None else MediumSource(kind, data=data)
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


def media_of(value: Any, kind: MediaKind, column: str) -> list[MediumSource]:
    """The media in a column: a list of them, one, or none."""
    if value is None:
        return []
    value = spelled(value) if isinstance(value, str) else value  # a list in a CSV
    if isinstance(value, str) and value[:1] == "[":
        raise RowError(Reason.UNREADABLE, f"{column}: neither JSON's list nor Python's; write it with json.dumps")
    items = cast(list[Any], value) if isinstance(value, list) else [value]
    return [medium_of(item, kind, f"{column}[{index}]") for index, item in enumerate(items) if not is_missing(item)]


def _bare_base64(text: str, kind: MediaKind) -> bytes | None:
    """The file that a text is, as VLMEvalKit's tables have pictures; None where it is a path or an address."""
    if len(text) % 4 or not _BASE64.fullmatch(text):
        return None
    data = base64.b64decode(text)
    found = format_of(data)
    return data if found is not None and kind in found.kinds else None


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(Reason.MISSING_BYTES, f"{field}: not base64: {error}") from None


def turns_of(value: object, field: str, role: str = "user") -> list[tuple[Message, list[Slot]]]:
    """The turns of a conversation, each with what fills its tags.

    Takes text (a turn by `role`), one turn, a list of turns, or either as JSON or as Python prints it; a turn is
    `{role, content}` or `{from, value}`, its content text or a list of parts. A text that spells anything else is text.
    What an assistant says may also be a list or an object that is no turn, and is JSON then.
    """
    if isinstance(value, str | bytes):
        text = text_of(value, field)
        value = spelled(text)
        if text.startswith("\n\nHuman:"):
            return _dialogue(text, field)
        if not spells_turns(value):
            if _LIKE_TURNS.match(text.lstrip()) and not isinstance(value, dict) and not _goes_on(text):
                raise _ambiguous(text, field)
            return [_turn(role, text, field)]
    match value:
        case {"from": str() as speaker, "value": content} | {"role": speaker, "content": content}:
            return [_turn(speaker, content, field)]
        case [*parts] if _are_parts(parts):
            return [_turn(role, parts, field)]
        case [*items] if role == "user" or any(_is_turn(item) or _has_speaker(item) for item in items):
            return [turn for index, item in enumerate(items) for turn in _one_turn(item, f"{field}[{index}]")]
        case list() | dict() if role == "assistant" and not _has_speaker(value):
            return [_turn(role, json_of(value, field), field)]
        case list() | dict():
            raise wrong_type(field, value, "messages")
        case _:
            return [_turn(role, text_of(value, field), field)]


def spells_turns(value: object) -> bool:
    """Whether what a text spells is a conversation, or the content of a turn, beyond doubt."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return any(_is_turn(each) and _has_speaker(each) for each in items) or _are_parts(value, as_text=True)


def _are_parts(value: object, *, as_text: bool = False) -> bool:
    """Whether it is the content of a turn: texts and media. What a text spells is, where it says nothing else."""
    parts = [each if isinstance(each, dict) else {} for each in value] if isinstance(value, list) else []
    types = [each.get("type") for each in parts]
    is_plain = not as_text or all(each.keys() <= {"type", *keys_of(str(each.get("type")))} for each in parts)
    return bool(types) and is_plain and all(isinstance(each, str) and each in _PARTS for each in types)


def _goes_on(text: str) -> bool:
    """Whether prose follows the JSON in which a text begins."""
    try:
        _, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return text.lstrip()[end:].lstrip()[:1] not in ("", "[", "{", ",")


def _dialogue(text: str, field: str) -> list[tuple[Message, list[Slot]]]:
    """The turns of a text as Anthropic's hh-rlhf has them."""
    _, *said = re.split(r"\n\n(Human|Assistant):", text)
    return [_turn(role, content.strip(), field) for role, content in zip(said[::2], said[1::2], strict=True)]


def _is_turn(value: object) -> bool:
    match value:
        case {"role": str(), "content": str() | list() | None} | {"from": str(), "value": str() | list() | None}:
            return True
        case _:
            return False


def _has_speaker(value: object) -> bool:
    """Whether somebody says it who is known to say turns."""
    if not isinstance(value, dict):
        return False
    speaker = cast(dict[str, object], value).get("role") or cast(dict[str, object], value).get("from")
    return isinstance(speaker, str) and speaker.lower() in _ROLES


def _ambiguous(text: str, field: str) -> RowError:
    return RowError(
        Reason.WRONG_TYPE,
        f"{field} looks like turns, and is neither JSON nor Python's list of them ({text[:80]!r}); write turns with "
        'json.dumps, and a text that only looks so as a turn: [{"role": ..., "content": ...}]',
    )


def _one_turn(item: object, field: str) -> list[tuple[Message, list[Slot]]]:
    if not isinstance(item, dict):
        raise wrong_type(field, item, "{role, content} or {from, value}")
    return turns_of(cast(dict[str, Any], item), field)


def _turn(role: object, content: object, field: str) -> tuple[Message, list[Slot]]:
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(Reason.BAD_ROLE, f"{field}: role {role!r} is none of {', '.join(_ROLES)}")
    speaker = _ROLES[role.lower()]
    if speaker == "assistant" and isinstance(content, list | dict):
        content = _said(content, f"{field}.content")
    text, slots = content_of(content, field)
    return Message(speaker, text), slots


def _said(content: Any, field: str) -> Any:
    """The content of an assistant's turn: parts, or a list or an object that is no part, as JSON."""
    items = content if isinstance(content, list) else [content]
    if any(isinstance(each, dict) and each.get("type") in _PARTS for each in items):
        return items
    if not all(isinstance(each, str) for each in items):
        return json_of(content, field)
    if len(items) > 1:
        raise wrong_type(field, content, "one text, or parts ({type: text, text: ...})")
    return items


def content_of(content: object, field: str) -> tuple[str, list[Slot]]:
    """Text with tags, and what fills them."""
    if is_missing(content):
        return "", []
    if isinstance(content, str | bytes) or not isinstance(content, Sequence):
        return _with_paths(text_of(content, field))
    texts: list[str] = []
    slots: list[Slot] = []
    for index, part in enumerate(cast(Sequence[object], content)):
        text, filled = _part(part, f"{field}.content[{index}]")
        texts.append(text)
        slots.extend(filled)
    return "".join(texts), slots


def _with_paths(text: str) -> tuple[str, list[Slot]]:
    """A text with its tags, and the media that `<img>a.png</img>` and its like name in it."""
    texts: list[str] = []
    slots: list[Slot] = []
    end = 0
    for found in _NAMED.finditer(text) if "</" in text else ():
        kind = MediaKind("image" if found[1] == "img" else found[1])
        suffix = posixpath.splitext(found[2])[1][1:].lower()
        if suffix in SUFFIXES[kind] or "://" in found[2]:
            texts += [text[end : found.start()], kind.tag]
            slots += [None] * len(media_places([Message("", texts[-2])])) + [MediumSource(kind, path=found[2].strip())]
            end = found.end()
    rest = text[end:]
    return "".join([*texts, rest]), [*slots, *[None] * len(media_places([Message("", rest)]))]


def _part(part: object, field: str) -> tuple[str, list[Slot]]:
    if isinstance(part, str):
        return content_of(part, field)
    if not isinstance(part, dict):
        raise wrong_type(field, part, "text or {type, ...}")
    known = cast(dict[str, Any], part)
    kind = known.get("type")
    if kind in TEXT_PARTS:
        return content_of(known.get("text"), field)
    if not isinstance(kind, str) or kind not in PART_KINDS:
        raise RowError(Reason.WRONG_TYPE, f"{field}: type {kind!r} is none of text, {', '.join(PART_KINDS)}")
    medium = PART_KINDS[kind]
    given = next((known[name] for name in keys_of(kind) if known.get(name)), None)
    given = None if is_missing(given) else given
    if given is None and isinstance(number := known.get("index"), int):  # llava-instruct-mix-vsft
        return f"<{medium.value} {number + 1}>", []
    return medium.tag, [None if given is None else medium_of(given, medium, field)]


def keys_of(kind: str) -> tuple[str, ...]:
    """Where a part of a message has its content, by its type."""
    medium = PART_KINDS.get(kind)
    return ("text",) if medium is None else (kind, medium.value, "url", "path")


def fill(
    turns: Sequence[tuple[Message, list[Slot]]], columns: Mapping[MediaKind, Sequence[MediumSource]]
) -> tuple[tuple[Message, ...], tuple[MediumSource, ...]]:
    """Messages and their media in order: each tag takes what was given in its place, or its column's next medium.

    Where no tag of a kind stands anywhere, its media go before the first user turn's text, as TRL and ms-swift do.

    Raises:
        RowError: tags and media differ in number.
    """
    turns = _with_films(turns, columns)
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


def _with_films(
    turns: Sequence[tuple[Message, list[Slot]]], columns: Mapping[MediaKind, Sequence[MediumSource]]
) -> Sequence[tuple[Message, list[Slot]]]:
    """The turns with `<video>` where `<image>` stands for a film, as in LLaVA-Video's: no picture is there, no film has
    a tag, and there are as many films as tags."""
    image, video = MediaKind.IMAGE, MediaKind.VIDEO
    slots = [slot for _, filled in turns for slot in filled]
    tags = media_places([message for message, _ in turns])
    if columns.get(image) or any(slots) or tags != [image] * len(columns.get(video, ())):
        return turns
    return [(replace(each, content=each.content.replace(image.tag, video.tag)), filled) for each, filled in turns]
