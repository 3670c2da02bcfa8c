"""Rows and prompts: there and back, and every refusal with its reason."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.schema import (
    MEDIA_COLUMNS,
    PROMPT_SCHEMA,
    Reason,
    RowError,
    from_row,
    media_places,
    split_content,
    to_row,
)
from pipeline.records import MediaKind, Medium, Message, Prompt

IMAGE, AUDIO, VIDEO = MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO

MIXED = Prompt(
    id="mixed",
    task="any",
    messages=(
        Message("system", "Be brief."),
        Message("user", "First <image> then <audio> and <image>."),
        Message("assistant", "Seen."),
        Message("user", "<video><audio>Now?"),
    ),
    media=(
        Medium(IMAGE, b"one"),
        Medium(AUDIO, b"two", path="two.wav"),
        Medium(IMAGE, b"three"),
        Medium(VIDEO, b"four"),
        Medium(AUDIO, b"five"),
    ),
    answer="yes",
    demonstration="yes maybe",
)


def refused(**changes: Any) -> Reason:
    with pytest.raises(RowError) as caught:
        from_row({**to_row(MIXED, []), **changes})
    return caught.value.reason


def test_a_row_gives_back_the_prompt_with_media_of_every_kind_in_the_order_of_their_tags() -> None:
    table = pa.Table.from_pylist([to_row(MIXED, ["a", "b"])], schema=PROMPT_SCHEMA)
    row = table.to_pylist()[0]
    assert from_row(row) == MIXED
    assert row["sources"] == ["a", "b"]
    assert [file["bytes"] for file in row["images"]] == [b"one", b"three"]


def test_a_text_prompt_needs_no_media() -> None:
    prompt = Prompt(id="t", task="text", messages=(Message("user", "Hello?"),), media=(), answer="hello")
    assert from_row(to_row(prompt, [])) == prompt


def test_a_prompt_may_have_no_answer_and_its_table_no_such_column() -> None:
    prompt = Prompt(id="t", task="text", messages=(Message("user", "Hello?"),), media=(), answer=None)
    row = to_row(prompt, [])
    assert pa.Table.from_pylist([row], schema=PROMPT_SCHEMA).to_pylist()[0]["answer"] is None
    assert from_row(row) == from_row({name: row[name] for name in row if name != "answer"}) == prompt


def test_the_schema_tells_hugging_face_which_columns_hold_pictures_sounds_and_videos() -> None:
    features = json.loads(PROMPT_SCHEMA.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == PROMPT_SCHEMA.names
    for kind, column in MEDIA_COLUMNS.items():
        assert features[column] == {"feature": {"_type": kind.value.capitalize()}, "_type": "List"}
        assert PROMPT_SCHEMA.field(column).type == pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_content_splits_into_text_and_media_places() -> None:
    assert split_content("<image>What <b>is</b><audio><video> this?") == (
        IMAGE,
        "What <b>is</b>",
        AUDIO,
        VIDEO,
        " this?",
    )
    assert split_content("") == ()
    assert media_places(MIXED.messages) == [IMAGE, AUDIO, IMAGE, VIDEO, AUDIO]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, Reason.NO_ID),
        ({"prompt": []}, Reason.NO_MESSAGES),
        ({"prompt": None}, Reason.NO_MESSAGES),
        ({"prompt": [{"role": "robot", "content": "Hi"}]}, Reason.BAD_ROLE),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, Reason.BAD_ROLE),
        ({"answer": " "}, Reason.EMPTY_ANSWER),
        ({"answer": ""}, Reason.EMPTY_ANSWER),
        ({"images": [{"bytes": b"one", "path": None}]}, Reason.PLACEHOLDER_MISMATCH),
        ({"videos": None}, Reason.PLACEHOLDER_MISMATCH),
        ({"videos": [{"bytes": None, "path": "/tmp/film.mp4"}]}, Reason.MISSING_BYTES),
        ({"videos": [None]}, Reason.MISSING_BYTES),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_reason(changes: dict[str, Any], reason: Reason) -> None:
    assert refused(**changes) is reason


def test_a_refusal_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RowError(Reason.TOO_LONG, "31 s")))
    assert (error.reason, error.detail) == (Reason.TOO_LONG, "31 s")
    assert error.quarantined("r7").reason == "too_long"
    assert str(error) == "too_long: 31 s"
