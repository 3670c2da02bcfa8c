"""What a row holds and nobody reads: named and counted, or refused where the row means something else without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from pipeline.data.ingest.spellings import NAMES, media_kind_of
from pipeline.data.ingest.turns import PART_KINDS, TEXT_PARTS, is_missing, keys_of, spelled, spells_turns
from pipeline.data.schema import Reason, RowError
from pipeline.records import MediaKind

_TEXTS = ("messages", "prompt", "answer", "chosen", "rejected")
"""What may speak of other columns; those of media, which are large, do not."""
_TOOLS = ("tools", "functions", "tool_calls", "function_call", "available_tools", "chosen_tools", "rejected_tools")
_SAID = ("reasoning_content", "reasoning", "thinking", "thought", "refusal")
"""What an assistant says beside the content of a turn."""
_WEIGHTS = ("weight", "loss", "loss_scale", "loss_mask", "mask", "train", "trainable", "train_on_turn")
"""Whether, or how much, a turn is learned."""
_CUTS = ("video_start", "video_end", "start", "end", "start_time", "end_time", "offset", "crop", "bbox")
"""Which piece of a medium is meant."""

_RANKS = ("rank", "ranks", "score", "scores", "rating", "ratings")
"""Which of several answers is the better one."""
_SOURCES = ("source", "file", "file_path", "filename")
"""Where a part of a message may have its medium, in formats that are not read."""

_TURNS = ({"role", "content"}, {"from", "value"}, {"role", "tool_calls"})
_MEDIUM = ("bytes", "path", "url", "data")


class Key(NamedTuple):
    """A key that is not read, such as `messages.name`, and whether the row means something else without it."""

    path: str
    changes_meaning: bool


def is_nothing(value: object) -> bool:
    """Whether nobody misses it: null, NaN, and what is empty, in JSON too."""
    if isinstance(value, str | bytes):
        return value.strip() in ("", b"", "[]", "{}", "null")
    if isinstance(value, Mapping):
        return all(each in (None, "", b"", [], {}) for each in cast(Mapping[str, object], value).values())
    return is_missing(value) or (isinstance(value, Sequence) and not value)


def column_left(column: str, row: Mapping[str, Any]) -> Key:
    """A column of a row that is not read. NeMo's `offset` is where in the sound the text begins, ms-swift's `objects`
    are what `<bbox>` stands for in the texts."""
    is_piece = column == "offset" and str(row[column]) not in ("0", "0.0") and any(map(_is_sound, row))
    texts = (str(row[name]) for ours in _TEXTS for name in NAMES[ours] if name in row) if column == "objects" else ()
    is_named = any(tag in text for text in texts for tag in ("<bbox>", "<ref-object>"))
    return Key(column, column in _TOOLS or is_piece or is_named or (column in _RANKS and _ranks(row[column], row)))


def _ranks(value: object, row: Mapping[str, Any]) -> bool:
    """Whether a value says something of each of several answers."""
    lengths = {len(row[name]) for name in NAMES["answer"] if isinstance(row.get(name), list)}
    return isinstance(value, list) and len(value) > 1 and len(value) in lengths


def _is_sound(column: object) -> bool:
    return media_kind_of(str(column)) is MediaKind.AUDIO


def keys_left(column: str, value: Any, *, are_media: bool) -> Iterator[Key]:
    """The keys inside a column of turns, or of media, that are not read and hold something."""
    if isinstance(value, str):
        value = spelled(value)
        if not are_media and not spells_turns(value):
            return
    items = cast(list[Any], value) if isinstance(value, list) else [value]
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            continue
        keys = cast(dict[str, Any], item)
        if are_media or keys.get("type") in (*TEXT_PARTS, *PART_KINDS):
            yield from _in_part(keys, column, is_medium=are_media)
        elif any(each <= keys.keys() for each in _TURNS):
            yield from _in_turn(keys, column, is_last=place == len(items) - 1)
        elif "answer" in keys:
            yield from (Key(f"{column}.{name}", True) for name in _RANKS if not is_nothing(keys.get(name)))


def _in_turn(turn: Mapping[str, Any], path: str, *, is_last: bool) -> Iterator[Key]:
    speaker, content = ("from", "value") if isinstance(turn.get("from"), str) else ("role", "content")
    is_learned = is_last and turn.get(speaker) not in ("user", "human", "system")
    for name, value in _filled(turn, (speaker, content)):
        is_lost = name in _TOOLS or media_kind_of(name) is not None
        if is_learned:
            is_lost |= name in _SAID or (name in _WEIGHTS and value not in (1, "1", "true", "True"))
        yield Key(f"{path}.{name}", is_lost)
    parts = turn.get(content)
    for part in cast(list[Any], parts) if isinstance(parts, list) else []:
        if isinstance(part, dict):
            yield from _in_part(cast(dict[str, Any], part), f"{path}.{content}")


def _in_part(part: Mapping[str, Any], path: str, *, is_medium: bool = False) -> Iterator[Key]:
    """Keys of a part of a turn's content, or of a medium."""
    used: tuple[str, ...] = _MEDIUM
    kind = None if is_medium else part.get("type")
    if isinstance(kind, str):
        taken = next((name for name in keys_of(kind) if part.get(name)), "type")
        used = ("type", taken, "index")
        if isinstance(part[taken], dict):
            yield from _in_part(part[taken], f"{path}.{taken}", is_medium=True)
    for name, value in _filled(part, used):
        is_elsewhere = used[1] == "type" and (name in _SOURCES or media_kind_of(name) is not None)
        is_lost = (kind in TEXT_PARTS and media_kind_of(name) is not None) or (name in _CUTS and bool(value))
        is_lost |= is_elsewhere
        yield Key(f"{path}.{name}", is_lost)


def _filled(keys: Mapping[str, Any], used: Sequence[str]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in keys.items() if name not in used and not is_nothing(value)]


def loss(path: str) -> RowError:
    """The refusal of a row that means something else without what is not read."""
    return RowError(
        Reason.WRONG_TYPE,
        f"{path} is not read, and without it the row means something else: write it into the texts, or leave it out on "
        f"purpose (prepare.ignore=[{path}])",
    )


def note(paths: Sequence[str]) -> str:
    """What the refusal of a row in which something was not found says of what is not read."""
    shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
    return f"; not read: {shown} (prepare.map says what a column is)" if paths else ""
