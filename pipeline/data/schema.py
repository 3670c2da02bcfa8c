"""The columns of the prompt and preference tables, and the way between a row and a record.

A prompt's row is TRL's conversational format plus one list of files a modality. In a message's content a tag
(`<image>`, `<audio>`, `<video>`) marks the place of each medium: the n-th `<image>` is the n-th entry of `images`.
The schema carries the metadata with which Hugging Face `datasets` opens the file and shows pictures and sounds.

A row that cannot be used raises `RowError` with a reason code: it goes to the quarantine, and is counted there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast

import pyarrow as pa

from pipeline.records import MediaKind, Medium, Message, Prompt, Quarantined


class Reason(StrEnum):
    """Why a row was refused. The words appear in reports: change them as you would change a column's name."""

    # The row itself.
    UNREADABLE = "unreadable"
    LOST_ROWS = "lost_rows"
    WRONG_TYPE = "wrong_type"
    NO_ID = "no_id"
    DUPLICATE_ID = "duplicate_id"
    NO_MESSAGES = "no_messages"
    BAD_ROLE = "bad_role"
    EMPTY_ANSWER = "empty_answer"
    PLACEHOLDER_MISMATCH = "placeholder_mismatch"
    SPECIAL_TOKEN = "special_token"
    MISSING_BYTES = "missing_bytes"
    BAD_PREFERENCE = "bad_preference"
    KILLS_WORKER = "kills_worker"
    # Its text.
    TEXT_TOO_SHORT = "text_too_short"
    TEXT_TOO_LONG = "text_too_long"
    # Other rows.
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    LEAK = "leak"
    # Where its media come from.
    NOT_FOUND = "not_found"
    BAD_ADDRESS = "bad_address"
    OUTSIDE_ROOTS = "outside_roots"
    HOST_NOT_ALLOWED = "host_not_allowed"
    PRIVATE_ADDRESS = "private_address"
    FETCH_FAILED = "fetch_failed"
    # Its media.
    SVG = "svg"
    UNSUPPORTED_FORMAT = "unsupported_format"
    POLYGLOT = "polyglot"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TOO_SLOW = "decoder_too_slow"
    TOO_MANY_BYTES = "too_many_bytes"
    CORRUPT_IMAGE = "corrupt_image"
    CORRUPT_AUDIO = "corrupt_audio"
    CORRUPT_VIDEO = "corrupt_video"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_FEW_PIXELS = "too_few_pixels"
    BAD_ASPECT_RATIO = "bad_aspect_ratio"
    SOUND_TOO_SHORT = "sound_too_short"
    VIDEO_TOO_SHORT = "video_too_short"
    TOO_LONG = "too_long"
    TOO_MANY_CHANNELS = "too_many_channels"
    TOO_MANY_FRAMES = "too_many_frames"
    # What the checkpoint's processor makes of it.
    PROMPT_TOO_LONG = "prompt_too_long"
    UNSUPPORTED_MODALITY = "unsupported_modality"
    TRUNCATED_BY_PROCESSOR = "truncated_by_processor"

    @classmethod
    def corrupt(cls, kind: MediaKind) -> Reason:
        """Why a file of a kind is refused that cannot be decoded."""
        return cls(f"corrupt_{kind.value}")


class RowError(ValueError):
    """A row that cannot be used: `reason` is counted in every report, `detail` says what was seen and allowed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both in `args`, so that the error survives pickling between actors
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"

    def quarantined(self, row_id: str) -> Quarantined:
        """The record of this refusal."""
        return Quarantined(row_id=row_id, reason=self.reason.value, detail=self.detail)


ROLES = ("system", "user", "assistant")

MEDIA_COLUMNS: Mapping[MediaKind, str] = {
    MediaKind.IMAGE: "images",
    MediaKind.AUDIO: "audios",
    MediaKind.VIDEO: "videos",
}

_FILES = {column: {"feature": {"_type": kind.value.title()}, "_type": "List"} for kind, column in MEDIA_COLUMNS.items()}


def described(schema: pa.Schema) -> pa.Schema:
    """The schema, with what `datasets` wants to know of it."""

    def feature(type: pa.DataType) -> dict[str, Any]:
        if pa.types.is_struct(type):
            return {field.name: feature(field.type) for field in type}
        if pa.types.is_list(type):
            return {"feature": feature(type.value_type), "_type": "List"}
        return {"dtype": {"double": "float64", "float": "float32"}.get(str(type), str(type)), "_type": "Value"}

    features = {field.name: _FILES.get(field.name) or feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FEATURE = pa.struct([("name", pa.string()), ("medium", pa.int64()), ("values", pa.list_(pa.list_(pa.float32())))])

KEPT = "columns"
"""Where `jobs.prepare` keeps further columns of a source, as JSON."""

PROMPT_SCHEMA = described(
    pa.schema(
        [
            ("id", pa.string()),
            ("task", pa.string()),
            ("prompt", _TURNS),
            *((column, pa.list_(_FILE)) for column in _FILES),
            ("answer", pa.string()),
            # Other answers that are as right.
            ("accepted", pa.list_(pa.string())),
            ("demonstration", pa.string()),
            # Identity of each source (scanned digit, voice setting, content of a file): splits must share none.
            ("sources", pa.list_(pa.string())),
            # Where the row is from, and its prompt's tokens by the processor of the model it was prepared for.
            ("dataset", pa.string()),
            ("num_tokens", pa.int64()),
            # What feature steps (mel, MFCC) made of the row's media: [time, bands] of the medium-th one.
            ("features", pa.list_(_FEATURE)),
            (KEPT, pa.string()),
        ]
    )
)

STAGED_SCHEMA = pa.schema(
    [
        *PROMPT_SCHEMA,
        ("rejected", pa.string()),
        # What followed the chosen (`answer`) and the rejected answer, where conversations are compared.
        ("chosen_then", PROMPT_SCHEMA.field("prompt").type),
        ("rejected_then", PROMPT_SCHEMA.field("prompt").type),
        ("margin", pa.float64()),
        ("label", pa.bool_()),
    ]
)
"""A prepared row before it is known which rows stay."""

_TAGS = re.compile("(" + "|".join(re.escape(kind.tag) for kind in MediaKind) + ")")
_KIND_OF_TAG = {kind.tag: kind for kind in MediaKind}


@lru_cache(64)  # A row's texts are looked at again and again on their way.
def split_content(content: str) -> tuple[str | MediaKind, ...]:
    """Text parts and media places of a message, in order; empty text is left out.

    `MediaKind` is itself a `str`: test `isinstance(part, MediaKind)` first.
    """
    return tuple(_KIND_OF_TAG.get(part, part) for part in _TAGS.split(content) if part)


def media_places(messages: Sequence[Message]) -> list[MediaKind]:
    """The kind of each medium of a conversation, in the order of the tags."""
    return [part for message in messages for part in split_content(message.content) if isinstance(part, MediaKind)]


def messages_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a row, unchecked."""
    turns = cast("Sequence[Mapping[str, str | None]]", row.get("prompt") or ())
    return tuple(Message(role=turn["role"] or "", content=turn["content"] or "") for turn in turns)


def bare_prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row without its media, unchecked."""
    return Prompt(
        id=row.get("id") or "",
        task=row.get("task") or "",
        messages=messages_of(row),
        media=(),
        answer=row.get("answer"),
        demonstration=row.get("demonstration") or None,
        accepted=tuple(row.get("accepted") or ()),
    )


def from_row(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row, its media interleaved in the order of their tags. Media are not decoded here.

    Raises:
        RowError: no id, no messages, an unknown role or an end that is not the user's turn, a blank answer (null is
            none at all), tags that do not match the media, or a medium without bytes.
    """
    prompt = bare_prompt(row)
    check_words(prompt)
    return replace(prompt, media=_interleave(row, media_places(prompt.messages)))


def check_words(prompt: Prompt) -> None:
    """Checks all of a prompt but its media; see `from_row`."""
    if not prompt.id:
        raise RowError(Reason.NO_ID, "column id is empty")
    if not prompt.messages:
        raise RowError(Reason.NO_MESSAGES, "column prompt holds no message")
    for message in prompt.messages:
        if message.role not in ROLES:
            raise RowError(Reason.BAD_ROLE, f"role {message.role!r} is none of {', '.join(ROLES)}")
    if (last := prompt.messages[-1].role) != "user":
        raise RowError(Reason.BAD_ROLE, f"the last message is by {last!r}; a prompt ends with the user")
    if prompt.answer is not None and not prompt.answer.strip():
        raise RowError(Reason.EMPTY_ANSWER, "the answer is blank; where nobody knows one it must be null")


def checked_medium(kind: MediaKind, data: bytes | None, path: str | None) -> Medium:
    """A medium of a row.

    Raises:
        RowError: it is without bytes.
    """
    if not data:
        where = f"{kind.value} {path or 'without a path'}"
        raise RowError(Reason.MISSING_BYTES, f"{where} has no bytes; embed the file in the table")
    return Medium(kind, data, path)


def _interleave(row: Mapping[str, Any], places: Sequence[MediaKind]) -> tuple[Medium, ...]:
    files: dict[MediaKind, list[Mapping[str, Any] | None]] = {
        kind: list(row.get(column) or ()) for kind, column in MEDIA_COLUMNS.items()
    }
    for kind, column in MEDIA_COLUMNS.items():
        if places.count(kind) != len(files[kind]):
            raise RowError(
                Reason.PLACEHOLDER_MISMATCH,
                f"{places.count(kind)} {kind.tag} in the messages, {len(files[kind])} files in {column}",
            )
    media: list[Medium] = []
    for kind in places:
        file = files[kind].pop(0) or {}
        data, path = cast("bytes | None", file.get("bytes")), cast("str | None", file.get("path"))
        media.append(checked_medium(kind, data, path))
    return tuple(media)


def turn_cells(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the cells of a table."""
    return [{"role": message.role, "content": message.content} for message in messages]


def to_row(prompt: Prompt, sources: Sequence[str]) -> dict[str, Any]:
    """The row of a prompt, for `PROMPT_SCHEMA`; the inverse of `from_row`."""
    files: dict[str, list[dict[str, Any]]] = {column: [] for column in MEDIA_COLUMNS.values()}
    for medium in prompt.media:
        files[MEDIA_COLUMNS[medium.kind]].append({"bytes": medium.data, "path": medium.path})
    return {
        "id": prompt.id,
        "task": prompt.task,
        "prompt": turn_cells(prompt.messages),
        **files,
        "answer": prompt.answer,
        "accepted": list(prompt.accepted),
        "demonstration": prompt.demonstration,
        "sources": list(sources),
    }
