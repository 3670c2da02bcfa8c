"""Nothing of a row is lost in silence: its columns and keys are read, or named, or the row is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.config import SplitBy
from pipeline.data.ingest.draft import MediumSource
from pipeline.data.schema import Reason
from pipeline.records import MediaKind, Message
from tests.data.ingest.test_formats import draft, refused

ASKED, SAID = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a cat"}
CALL = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        *((name, "a.bin", MediaKind.IMAGE) for name in ("image_path", "img_path", "image_file", "image_paths")),
        *((name, "https://a.org/b?c=1", MediaKind.IMAGE) for name in ("image_url", "img", "picture")),
        ("image_path", '["a.bin"]', MediaKind.IMAGE),
        ("img", {"bytes": b"x", "path": None}, MediaKind.IMAGE),
        ("photos", ["a.JPG"], MediaKind.IMAGE),
        *((name, "a.bin", MediaKind.AUDIO) for name in ("audio_path", "audio_filepath", "audio_file", "wav_path")),
        ("wav", "a.wav", MediaKind.AUDIO),
        ("speech", "sub/a.flac", MediaKind.AUDIO),
        *((name, "a.bin", MediaKind.VIDEO) for name in ("video_path", "video_file", "video_url")),
        ("clip", "a.mp4", MediaKind.VIDEO),
        ("path", "a.mp3", MediaKind.AUDIO),
        ("filename", "a.png", MediaKind.IMAGE),
    ],
)  # fmt: skip
def test_media_are_found_under_the_names_that_others_give_their_columns(
    column: str, value: Any, kind: MediaKind
) -> None:
    found = draft({"question": "Q", "answer": "A", column: value})
    assert found.messages == (Message("user", f"{kind.tag}Q"),)
    assert [medium.kind for medium in found.media] == [kind] and found.unread == ()


@pytest.mark.parametrize(
    ("column", "value"), [("picture", "red and round"), ("speech", "Friends, Romans"), ("img", 5), ("path", "a/b.py")]
)
def test_a_column_that_may_be_one_of_media_and_holds_something_else_is_named(column: str, value: Any) -> None:
    found = draft({"question": "Q", "answer": "A", column: value})
    assert (found.media, found.unread) == ((), (column,))
    assert refused({"question": "Q", "answer": "A", "picture": 5}, names={"images": "picture"})


def test_columns_and_keys_that_hold_something_and_are_not_read_are_named_and_no_others() -> None:
    turn = {**ASKED, "name": "ann", "content": [{"type": "image", "detail": "low", "text": None}, "What?"]}
    raw = {
        "messages": [turn, {**SAID, "weight": 1, "tool_calls": None}],
        "images": [{"bytes": b"x", "path": "a.png", "source": "web"}],
        "prompt": "another question",
        "solution": "what is learned",
        "tools": "[]",
        "empty": {"bytes": None},
        "image_url": "https://a.org/b.png",
        "nothing": float("nan"),
        "split": "test",
        "zero": 0,
    }
    unread = {"prompt", "image_url", "zero", "images.source", "messages.content.detail", "messages.name"}
    assert set(draft(raw).unread) == unread | {"messages.weight"}
    assert set(draft(raw, split_by=SplitBy.HASH).unread) == unread | {"messages.weight", "split"}
    assert set(draft(raw, ignored=("messages.name", "zero")).unread) == unread - {"messages.name", "zero"} | {
        "messages.weight"
    }
    in_text = draft({**raw, "messages": json.dumps(raw["messages"])})
    assert set(in_text.unread) == unread | {"messages.weight"}


def test_of_two_columns_with_an_answer_the_other_is_named() -> None:
    assert draft({"question": "Q", "answer": "A", "text": "T", "label": "L"}).unread == ("text", "label")
    assert draft({"question": "Q", "label": "L"}).unread == ()


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"messages": [ASKED, {**SAID, "tool_calls": CALL}]}, "messages.tool_calls"),
        ({"messages": json.dumps([ASKED, {**SAID, "tool_calls": CALL}])}, "messages.tool_calls"),
        ({"messages": [ASKED, {**SAID, "function_call": {"name": "look"}}]}, "messages.function_call"),
        ({"messages": [ASKED, {**SAID, "reasoning_content": "It purrs."}]}, "messages.reasoning_content"),
        ({"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a", "thinking": "b"}]},
         "conversations.thinking"),
        ({"messages": [ASKED, {**SAID, "weight": 0}]}, "messages.weight"),
        ({"messages": [ASKED, {**SAID, "loss": False}]}, "messages.loss"),
        ({"messages": [{**ASKED, "images": ["b.png"]}, SAID]}, "messages.images"),
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "b", "images": ["b.png"]}]},
         "rejected.images"),
        ({"prompt": [ASKED], "chosen": [{**SAID, "tool_calls": CALL}], "rejected": [SAID]}, "chosen.tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "bbox": [0, 0, 1, 1]}]}, SAID]},
         "messages.content.bbox"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>?", "image": "b.png"}]}, SAID]},
         "messages.content.image"),
        ({"messages": [ASKED, SAID], "tools": [{"name": "look"}]}, "tools"),
        ({"messages": [ASKED, SAID], "functions": '[{"name": "look"}]'}, "functions"),
        ({"question": "Q", "answer": "A", "audio_filepath": "long.wav", "offset": 12.5}, "offset"),
    ],
)  # fmt: skip
def test_what_a_row_means_something_else_without_refuses_it_unless_it_is_left_out_on_purpose(
    raw: dict[str, Any], path: str
) -> None:
    raw = {"images": ["a.png"], **raw}
    error = refused(raw)
    assert error.reason is Reason.WRONG_TYPE and error.detail.startswith(f"{path} is not read")
    assert f"prepare.ignore=[{path}]" in error.detail
    assert path not in draft(raw, ignored=(path,)).unread


def test_what_is_nested_without_an_end_is_named_and_stops_nobody() -> None:
    deep: dict[str, Any] = {"type": "image"}
    for _ in range(2000):
        deep = {"type": "image", "image": deep, "extra": deep}
    content = [{"type": "text", "text": "Q", "extra": deep}]
    found = draft({"messages": [{"role": "user", "content": content}, SAID], "extra": deep})
    assert found.unread == ("extra", "messages.content.extra")


def test_a_turn_by_a_tool_is_refused() -> None:
    assert refused({"messages": [ASKED, {"role": "tool", "content": "4"}]}).reason is Reason.BAD_ROLE


def test_what_is_said_beside_earlier_turns_is_named_and_refuses_nothing() -> None:
    turns = [ASKED, {**SAID, "reasoning": "It purrs.", "loss": False}, {"role": "user", "content": "Sure?"}, SAID]
    assert draft({"messages": turns, "images": ["a.png"]}).unread == ("messages.loss", "messages.reasoning")


@pytest.mark.parametrize("column", ["rejected_images", "rejected_image", "rejected_image_path", "chosen_images"])
def test_media_of_one_side_of_a_comparison_must_be_those_of_both(column: str) -> None:
    pair = {"messages": [ASKED, SAID], "images": ["a.png"], "rejected_response": "a dog"}
    error = refused({**pair, column: ["b.png"]})
    assert error.reason is Reason.BAD_PREFERENCE and error.detail.startswith(f"{column} holds other media")
    same = draft({**pair, column: ["a.png"]})
    assert (same.rejected, same.unread) == ("a dog", ())
    assert draft({**pair, column: ["b.png"]}, ignored=(column,)).rejected == "a dog"
    assert refused({"question": "Q", "answer": "A", "rejected_audios": ["b.wav"]}).reason is Reason.BAD_PREFERENCE


def test_numbered_columns_fill_the_tags_that_name_their_numbers() -> None:
    picture = {"bytes": b"one", "path": None}
    raw = {"question": "<image 3> or <image 1>?", "image_1": picture, "image_2": None, "image_3": b"three"}
    found = draft({**raw, "options": "['<image 1>', 'neither']", "answer": "B"})
    assert found.messages == (Message("user", "<image> or <image>?\nA. <image>\nB. neither"),)
    assert [medium.data for medium in found.media] == [b"three", b"one", b"one"]
    assert (found.answer, found.unread) == ("B", ())
    plain = draft({"question": "Which?", "image_2": "b.png", "image_1": "a.png", "answer": "x"})
    assert plain.media == (MediumSource(MediaKind.IMAGE, path="a.png"), MediumSource(MediaKind.IMAGE, path="b.png"))
    listed = draft({"messages": [{"role": "user", "content": "<image_2><|image_1|>?"}, SAID], "images": ["a", "b"]})
    assert [medium.path for medium in listed.media] == ["b", "a"]


@pytest.mark.parametrize(
    "raw",
    [
        {"question": "See <image 1>.", "answer": "x", "picture": "red"},
        {"question": "See <image 2>.", "answer": "x", "image": "a.png"},
        {"question": "See <image 1>.", "answer": "x", "image_1": "a.png", "image_2": "b.png"},
        {"question": "See.", "answer": "x", "image": "a.png", "image_2": "b.png"},
    ],
)
def test_numbers_without_a_medium_and_media_without_a_number_are_refused(raw: dict[str, Any]) -> None:
    error = refused(raw)
    assert error.reason is Reason.PLACEHOLDER_MISMATCH
    assert ("not read: picture (prepare.map" in error.detail) == ("picture" in raw)


def test_a_row_without_a_prompt_names_what_is_not_read() -> None:
    error = refused({"ask": "Q", "answer": "A"})
    assert error.reason is Reason.NO_MESSAGES and "not read: ask (prepare.map" in error.detail


@pytest.mark.parametrize("value", [0.7, None, "x"])
def test_a_value_beside_the_content_of_a_turn_is_named_and_not_taken_for_another_format(value: object) -> None:
    found = draft({"prompt": "Q", "messages": [{"role": "user", "content": "Q"}, {**SAID, "value": value}]})
    assert (found.answer, found.unread) == ("a cat", ("prompt", *(("messages.value",) if value else ())))
    nothing = {"from": None, "value": None}
    assert draft({"messages": [{"role": "user", "content": "Q", **nothing}, {**SAID, **nothing}]}).unread == ()
    assert draft({"question": "Q", "answer": '[{"role": "price", "content": "all", "value": 3}]'}).unread == ()


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": CALL}]}, "messages.tool_calls"),
        ({"messages": [ASKED, {**SAID, "loss_mask": 0}]}, "messages.loss_mask"),
        ({"messages": [{"role": "user", "content": "<ref-object>?"}, SAID], "objects": {"ref": ["cat"]}}, "objects"),
        ({"audio_path": "a.wav", "offset": 7.5, "question": "Q", "answer": "A"}, "offset"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image_path": "b.png"}]}, SAID]},
         "messages.content.image_path"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "x"}}]}, SAID]},
         "messages.content.source"),
    ],
)  # fmt: skip
def test_what_a_row_would_mean_something_else_without_refuses_it(row: dict[str, Any], path: str) -> None:
    assert f"{path} is not read, and without it" in refused({"image": "a.png", **row}).detail


def test_an_offset_of_nothing_and_objects_that_no_text_names_are_only_named() -> None:
    assert draft({"audio": "a.wav", "offset": "0.0", "question": "Q", "answer": "A"}).unread == ("offset",)
    assert draft({"question": "Q", "answer": "A", "objects": {"ref": ["cat"]}}).unread == ("objects",)


def test_what_was_read_is_not_named_where_media_are_missing() -> None:
    assert (
        "not read: more (" in refused({"id": "7", "task": "t", "prompt": "<image>Q", "answer": "A", "more": 1}).detail
    )
