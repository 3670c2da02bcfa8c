"""Rows in the formats of others, as drafts: what was asked, shown, answered, preferred."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.config import ConfigError
from pipeline.data.ingest.draft import Draft, MediumSource
from pipeline.data.ingest.formats import check_map, draft_of
from pipeline.data.media import encode_png
from pipeline.data.schema import Reason, RowError
from pipeline.records import MediaKind, Message

IMAGE, AUDIO, VIDEO = MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO
CHOSEN, REJECTED = {"role": "assistant", "content": "a cat"}, {"role": "assistant", "content": "a dog"}
TURN = {"role": "user", "content": "<image>What is it?"}
SAYS = {"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "a cat"}
ASKED = (Message("user", "<image>What is it?"),)


def draft(raw: Any, **options: Any) -> Draft:
    defaults: dict[str, Any] = {"names": {}, "id": "place", "dataset": "set", "task": "task"}
    return draft_of(raw, **{**defaults, **options})


def refused(raw: Any, **options: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        draft(raw, **options)
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [{"role": "user", "content": "<image>What is it?"}], "images": ["a.png"], "answer": "a cat"},
        {"prompt": "<image>What is it?", "image": "a.png", "completion": [{"role": "assistant", "content": "a cat"}]},
        {"question": "What is it?", "image": {"bytes": None, "path": "a.png"}, "answer": "a cat"},
        {"image": "a.png", "conversations": [*SAYS]},
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What is it?"}, CHOSEN]},
        {"images": '["a.png"]', "query": "<image>What is it?", "response": "a cat"},
        {"instruction": "<image>What is it?", "image": "a.png", "output": "a cat"},
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
            ],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                        {"type": "text", "text": "What is it?"},
                    ],
                },
                {"role": "assistant", "content": "a cat"},
            ]
        },
    ],
    ids=["ours", "trl", "columns", "llava", "ms-swift", "csv", "alpaca", "trl parts", "openai parts"],
)  # fmt: skip
def test_one_row_in_nine_formats_is_the_same_draft(raw: dict[str, Any]) -> None:
    found = draft(raw)
    assert found.messages == ASKED
    assert found.media == (MediumSource(IMAGE, path="a.png"),)
    assert (found.answer, found.demonstration, found.rejected, found.label) == ("a cat", None, None, None)
    assert (found.id, found.task, found.dataset) == ("place", "task", "set")


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [TURN], "chosen": [CHOSEN], "rejected": [REJECTED]},
        {"chosen": [TURN, CHOSEN], "rejected": [TURN, REJECTED]},
        {"prompt": "<image>What is it?", "chosen": "a cat", "rejected": "a dog"},
        {"prompt": "<image>What is it?", "chosen": [TURN, CHOSEN], "rejected": [TURN, REJECTED]},
        {"messages": [TURN, CHOSEN], "rejected_response": "a dog"},
        {"messages": [TURN, CHOSEN], "rejected_messages": [TURN, REJECTED]},
        {"conversations": [SAYS[0]], "chosen": SAYS[1], "rejected": {"from": "gpt", "value": "a dog"}},
    ],
    ids=["trl explicit", "trl implicit", "text", "both", "ms-swift response", "ms-swift messages", "llama-factory"],
)  # fmt: skip
def test_comparisons_in_seven_formats_are_the_same_draft(raw: dict[str, Any]) -> None:
    found = draft({**raw, "images": ["a.png"], "margin": 2})
    assert found.messages == ASKED
    assert (found.answer, found.rejected, found.margin) == ("a cat", "a dog", 2.0)


SAYS_MORE, ASKS_ON = {"role": "assistant", "content": "surely"}, {"role": "user", "content": "Sure?"}


def _then(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in zip(("user", "assistant") * 2, contents, strict=False))


def test_conversations_that_differ_from_an_answer_on_are_compared_from_there() -> None:
    sides = {"chosen": [TURN, CHOSEN, ASKS_ON, SAYS_MORE], "rejected": [TURN, REJECTED, ASKS_ON, CHOSEN]}
    for raw in (sides, {"prompt": [TURN], **{name: turns[1:] for name, turns in sides.items()}}):
        found = draft({**raw, "images": ["a.png"]})
        assert found.messages == ASKED
        assert (found.answer, found.rejected) == ("a cat", "a dog")
        assert (found.chosen_then, found.rejected_then) == (_then("Sure?", "surely"), _then("Sure?", "a cat"))
    other = {"role": "user", "content": "Why?"}
    found = draft(
        {"chosen": [TURN, CHOSEN, ASKS_ON, SAYS_MORE], "rejected": [TURN, CHOSEN, other, SAYS_MORE], "image": "a.png"}
    )
    assert (found.answer, found.rejected) == ("a cat", "a cat"), (
        "what the user says differs: the answer before is in both"
    )
    assert (found.chosen_then, found.rejected_then) == (_then("Sure?", "surely"), _then("Why?", "surely"))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([CHOSEN, ASKS_ON], "chosen goes on in turns by"),
        ([CHOSEN, SAYS_MORE], "chosen goes on in turns by"),
        ([CHOSEN, {"role": "user", "content": [{"type": "image", "image": b"x"}]}, SAYS_MORE], "media after its first"),
        ([CHOSEN, {"role": "user", "content": "<audio>Sure?"}, SAYS_MORE], "chosen"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_compared_are_refused(chosen: list[Any], message: str) -> None:
    error = refused({"prompt": [TURN], "images": ["a.png"], "chosen": chosen, "rejected": [REJECTED]})
    assert message in error.detail


def test_a_judgement_has_a_completion_and_a_flag() -> None:
    assert draft({"prompt": "Hi", "completion": "Hello", "label": False}).label is False
    assert draft({"messages": [{"role": "user", "content": "Hi"}, CHOSEN], "label": "true"}).label is True
    assert draft({"prompt": "Hi", "completion": "Hello", "mark": 1}, names={"label": "mark"}).label is True


def test_a_label_that_is_no_flag_is_the_answer_to_the_source_s_question() -> None:
    found = draft({"file_name": "a.wav", "label": "dog"}, question="<audio>What is heard?")
    assert (found.messages, found.answer, found.label) == ((Message("user", "<audio>What is heard?"),), "dog", None)
    assert found.media == (MediumSource(AUDIO, path="a.wav"),)


def test_media_without_tags_go_before_the_first_user_turn() -> None:
    found = draft(
        {"system": "Be brief.", "prompt": "Compare.", "videos": ["v.mp4"], "images": ["a.png", "b.png"], "answer": "x"}
    )
    assert found.messages == (Message("system", "Be brief."), Message("user", "<image><image><video>Compare."))
    assert [medium.path for medium in found.media] == ["a.png", "b.png", "v.mp4"]


def test_media_in_their_places_and_from_columns_mix_in_the_order_of_their_tags() -> None:
    content = [
        {"type": "audio", "audio": b"sound"},
        {"type": "text", "text": " then "},
        {"type": "image"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"more").decode(), "format": "wav"}},
    ]
    found = draft({"messages": [{"role": "user", "content": content}], "images": [b"picture"], "answer": "x"})
    assert found.messages == (Message("user", "<audio> then <image><audio>"),)
    assert [medium.data for medium in found.media] == [b"sound", b"picture", b"more"]


def test_earlier_turns_stay_and_the_last_answer_is_what_is_learned() -> None:
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}]
    found = draft({"messages": [*turns, {"role": "assistant", "content": "4"}], "solution": "four"})
    assert [message.content for message in found.messages] == ["1", "2", "3"]
    assert (found.answer, found.demonstration) == ("four", "4")
    assert draft({"history": [["1", "2"]], "query": "3", "response": "4"}).messages == found.messages


@pytest.mark.parametrize(
    ("raw", "answer", "demonstration"),
    [
        ({"prompt": "Q"}, None, None),
        ({"prompt": [{"role": "user", "content": "Q"}], "answer": None, "completion": []}, None, None),
        ({"prompt": "Q", "demonstration": "D"}, None, "D"),
        ({"prompt": "Q", "answer": ""}, "", None),
        ({"prompt": "Q", "answer": None, "output": b""}, "", None),
        ({"prompt": "Q", "answer": " "}, " ", None),
        ({"prompt": "Q", "answer": "", "label": "A"}, "A", None),
        ({"messages": [{"role": "user", "content": "Q"}, CHOSEN], "answer": ""}, "a cat", None),
        ({"messages": [{"role": "user", "content": "Q"}, CHOSEN], "demonstration": "D"}, "a cat", "D"),
    ],
)
def test_no_answer_is_none_and_a_blank_one_stays_blank(
    raw: dict[str, Any], answer: str | None, demonstration: str | None
) -> None:
    found = draft(raw)
    assert (found.answer, found.demonstration) == (answer, demonstration)


def test_a_mapped_answer_alone_says_whether_there_is_one() -> None:
    assert draft({"prompt": "Q", "gold": None, "text": ""}, names={"answer": "gold"}).answer is None


def test_what_a_row_says_of_itself_beats_what_holds_for_its_source() -> None:
    raw = {"uid": 7, "task": "own", "prompt": "Q", "answer": 5, "fold": "val", "speaker": "ann", "hard": "0.5"}
    found = draft(raw, split="train", split_column="fold", group_column="speaker", sort_column="hard")
    assert (found.id, found.task, found.answer) == ("7", "own", "5")
    assert (found.split, found.group, found.sort_value) == ("val", "ann", 0.5)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"prompt": [{"role": "robot", "content": "x"}]}, Reason.BAD_ROLE),
        ({"prompt": [{"role": "user", "content": "x"}] * 2, "answer": "y"}, Reason.BAD_ROLE),
        ({"prompt": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}, Reason.BAD_ROLE),
        ({"messages": [TURN, {"role": "system", "content": "x"}], "image": "a"}, Reason.BAD_ROLE),
        ({"prompt": 7.5j}, Reason.WRONG_TYPE),
        ({"prompt": [["user", "x"]]}, Reason.WRONG_TYPE),
        ({"prompt": [{"role": "user", "content": [{"type": "hologram"}]}]}, Reason.WRONG_TYPE),
        ({"prompt": "x", "images": [3]}, Reason.WRONG_TYPE),
        ({"prompt": "x", "margin": "much", "answer": "y"}, Reason.WRONG_TYPE),
        ({"prompt": "x", "margin": "inf", "answer": "y"}, Reason.WRONG_TYPE),
        ({"prompt": "x", "images": "[broken", "answer": "y"}, Reason.UNREADABLE),
        ({"prompt": b"\xff", "answer": "y"}, Reason.UNREADABLE),
        ({"prompt": "x", "images": [{"bytes": None, "path": None}]}, Reason.MISSING_BYTES),
        ({"prompt": [{"role": "user", "content": [{"type": "audio", "audio": {"data": "*"}}]}]}, Reason.MISSING_BYTES),
        ({"prompt": "<image><image>x", "image": "a.png", "answer": "y"}, Reason.PLACEHOLDER_MISMATCH),
        ({"prompt": "<image>x", "answer": "y"}, Reason.PLACEHOLDER_MISMATCH),
        ({"prompt": "x", "answer": "see <image>"}, Reason.PLACEHOLDER_MISMATCH),
        ({"prompt": "x", "chosen": "y"}, Reason.BAD_PREFERENCE),
        ({"prompt": "x", "rejected": "y"}, Reason.BAD_PREFERENCE),
        ({"prompt": "x", "chosen": [TURN, CHOSEN], "rejected": [REJECTED]}, Reason.BAD_PREFERENCE),
        ({"file_name": "a.docx", "label": "x"}, Reason.WRONG_TYPE),
        ({"history": ["x"], "query": "y"}, Reason.WRONG_TYPE),
        ("no row", Reason.WRONG_TYPE),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_reason(raw: Any, reason: Reason) -> None:
    assert refused(raw).reason is reason


ASKS_AND_SAYS = [{"role": "user", "content": 'Who\'s\n"there"?'}, {"role": "assistant", "content": "me"}]


@pytest.mark.parametrize("spell", [json.dumps, str, lambda turns: f" {json.dumps(turns, indent=1)}\n"])
def test_turns_are_turns_in_any_spelling(spell: Any) -> None:
    expected = draft({"messages": ASKS_AND_SAYS})
    assert expected.answer == "me"
    asks, says = ASKS_AND_SAYS
    assert draft({"messages": spell(ASKS_AND_SAYS)}) == expected
    assert draft({"prompt": spell([asks]), "completion": spell([says])}) == expected
    assert draft({"prompt": spell([asks]), "answer": spell({"from": "gpt", "value": "me"})}) == expected
    pair = draft({"chosen": spell(ASKS_AND_SAYS), "rejected": spell([asks, {**says, "content": "you"}])})
    assert (pair.messages, pair.answer, pair.rejected) == (expected.messages, "me", "you")


@pytest.mark.parametrize(
    "text",
    [
        "[10, 20, 30, 40]", "[]", "{}", '{"gender": "male"}', "{'a': 1}", '[{"name": "Ann"}]',
        '{"role": "admin", "content": "x"}', '[{"from": "Paris", "value": 3}]', '{"role": "user"}', "[link](a.png)",
        "{x} and [y", '["a", "b"]', "[" * 5_000,
        '[{"role": "chef", "content": "cooks"}, {"role": "waiter", "content": "serves"}]',
        '[{"from": "Paris", "value": "3"}, {"from": "Rome", "value": "4"}]',
        '[{"type": "text", "bbox": [1, 2, 3, 4]}, {"type": "image", "bbox": [5, 6, 7, 8]}]',
        '[{"type": "text", "text": "Title", "page": 0}, {"type": "text", "text": "Body", "page": 0}]',
        '{"messages": [{"role": "user", "content": "hi"}]}\nWhy does the server answer 400?',
    ],
)  # fmt: skip
def test_what_only_looks_like_json_is_text(text: str) -> None:
    found = draft({"prompt": text, "chosen": text, "rejected": "no", "demonstration": text})
    assert (found.messages, found.answer, found.demonstration) == ((Message("user", text),), text, text)
    assert draft({"prompt": "Q", "chosen": "no", "rejected": text}).rejected == text
    assert draft({"question": "Q", "solution": text}).answer == text


@pytest.mark.parametrize(
    "text",
    [
        str(np.array(ASKS_AND_SAYS, dtype=object)),  # without commas
        json.dumps(ASKS_AND_SAYS)[:-20],  # cut off
        "array([{'content': 'x', 'role': 'user'}], dtype=object)",
        '[{"role": "user"}]',
    ],
)
@pytest.mark.parametrize("column", ["messages", "prompt", "chosen", "rejected", "answer", "demonstration"])
def test_what_may_be_turns_or_text_is_refused_with_the_cure(text: str, column: str) -> None:
    pair = {"chosen": "a", "rejected": "b"} if column in ("chosen", "rejected") else {}
    error = refused({"prompt": "Q", **pair, column: text})
    assert error.reason is Reason.WRONG_TYPE
    assert f"{column} looks like turns" in error.detail and "json.dumps" in error.detail


def test_an_answer_by_the_user_is_refused() -> None:
    assert refused({"prompt": "Q", "answer": '{"role": "user", "content": "x"}'}).reason is Reason.BAD_ROLE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"), (7.0, "7"), (-0.0, "0"), (0.1, "0.1"), (1e-7, "0.0000001"), (1e22, "1" + "0" * 22),
        (2**70, "1180591620717411303424"),
        (Decimal("7.00"), "7"), (Decimal("700"), "700"), (Decimal("0.50"), "0.5"),
        ([74.0, 302.5], "[74, 302.5]"), ({"a": [1.0, None, float("nan"), True]}, '{"a": [1, null, null, true]}'),
        ([Decimal("7.50")], "[7.5]"),
        ([{"type": "cat", "box": [1]}], '[{"type": "cat", "box": [1]}]'), ([{"type": "text", "text": "cat"}], "cat"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them_and_lists_as_json(value: object, text: str) -> None:
    found = draft({"prompt": "Q", "chosen": value, "rejected": "no", "demonstration": value})
    assert (found.answer, found.demonstration) == (text, text)
    assert draft({"prompt": "Q", "solution": value}).answer == text
    if not isinstance(value, list | dict):
        row = draft({"id": value, "prompt": value, "system": value, "label": value})
        assert (row.id, row.messages, row.answer) == (text, (Message("system", text), Message("user", text)), text)


@pytest.mark.parametrize("value", [True, float("inf"), 1j, [float("inf")], {"a": b"x"}])
def test_a_value_that_people_write_in_several_ways_is_refused(value: object) -> None:
    assert refused({"prompt": "Q", "answer": value}).reason is Reason.WRONG_TYPE


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float32("nan"), Decimal("NaN"), pd.NA, pd.NaT])
def test_what_tools_write_for_no_value_is_none_in_every_column(nothing: object) -> None:
    every = ("id", "task", "system", "history", "input", "answer", "demonstration", "chosen", "rejected", "label")
    row = {**dict.fromkeys((*every, "margin", "images", "audio", "group", "split", "fold"), nothing), "prompt": "Q"}
    columns = {"group_column": "fold", "split_column": "fold", "sort_column": "fold"}
    assert draft({**row, "videos": [nothing]}, **columns) == draft({"prompt": "Q"})
    turns = [{"role": "system", "content": nothing}, {"role": "user", "content": "Q"}]
    assert draft({"messages": turns, "text": "a"}).messages == (Message("user", "Q"),)
    assert refused({"messages": [{"role": "user", "content": nothing}]}).reason is Reason.NO_MESSAGES
    assert refused({"prompt": nothing}).reason is Reason.NO_MESSAGES


def test_lists_of_media_and_history_are_read_as_python_prints_them_and_not_as_numpy_does() -> None:
    found = draft({"prompt": "Q", "images": "['a.png', 'b.png']", "audio": "{'bytes': None, 'path': 'c.wav'}"})
    assert [medium.path for medium in found.media] == ["a.png", "b.png", "c.wav"]
    assert draft({"prompt": "Q", "history": "[['1', '2']]"}) == draft({"prompt": "Q", "history": [["1", "2"]]})
    assert "json.dumps" in refused({"prompt": "Q", "images": "['a.png' 'b.png']"}).detail


def test_a_wrong_map_names_the_columns_that_are_there() -> None:
    check_map({"answer": "label"}, ["label", "picture"], "cats.csv")
    with pytest.raises(
        ConfigError, match=r"prepare.map.answer=lable: cats.csv has no column 'lable'; found: label, picture"
    ):
        check_map({"answer": "lable"}, ["picture", "label"], "cats.csv")
    with pytest.raises(ConfigError, match=r"reply is no name of ours; known: id, task"):
        check_map({"reply": "label"}, ["label"], "cats.csv")


def test_a_mapped_column_is_taken_instead_of_the_usual_ones() -> None:
    raw = {"question": "Q", "answer": "long", "final": "short"}
    assert draft(raw, names={"answer": "final"}).answer == "short"


def test_a_picture_in_base64_is_itself_and_a_long_path_is_a_path() -> None:
    picture = encode_png(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    spelt = base64.b64encode(picture).decode()
    (found,) = draft({"image": spelt, "question": "What is it?", "A": "a cat", "B": "a dog", "answer": "A"}).media
    assert (found.data, found.path) == (picture, None), "as VLMEvalKit's TSV has it"
    for path in ("d/" * 80 + "a.png", "0123456789abcdef" * 8, "0123456789abcdef" * 9, spelt[:-1]):
        (found,) = draft({"image": path, "question": "What is it?", "answer": "a cat"}).media
        assert (found.data, found.path) == (None, path)


@pytest.mark.parametrize(
    ("given", "answer", "accepted"),
    [
        (["net", "", "net"], "net", ()), (["net", None, "nets", "nets"], "nets", ("net",)),
        (["a", float("nan")], "a", ()), (["", None], None, ()), (["two", 2], "two", ("2",)),
        ([{"answer": 3}, {"answer": 3}, {"answer": 4.0}], "3", ("4",)), ([{"answer": "a"}, {"answer": None}], "a", ()),
        ({"text": ["Denver", "Denver"], "answer_start": [7, 7]}, "Denver", ()),
        ({"text": [], "answer_start": []}, None, ()),
        ({"value": "Paris", "aliases": ["Paris", "paris, france"]}, "Paris", ("paris, france",)),
        ([10, 20.5], "[10, 20.5]", ()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["answer", "answers", "label"])
def test_of_several_answers_gaps_are_none_and_the_most_frequent_is_the_first(
    given: object, answer: str | None, accepted: tuple[str, ...], column: str
) -> None:
    found = draft({"question": "Q", column: given})
    assert (found.answer, found.accepted) == (answer, accepted)


@pytest.mark.parametrize("value", ["a b", ["a b"], [{"type": "text", "text": "a b"}], {"type": "text", "text": "a b"}])
def test_what_an_assistant_says_is_text_or_parts(value: object) -> None:
    assert (
        draft({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": value}]}).answer == "a b"
    )


def test_lists_and_objects_that_an_assistant_says_are_json_and_several_texts_are_refused() -> None:
    def said(content: object) -> list[dict[str, object]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": content}]

    assert draft({"messages": said([10, 20.0])}).answer == "[10, 20]"
    assert draft({"messages": said({"a": 1})}).answer == '{"a": 1}'
    assert "wanted one text, or parts" in refused({"messages": said(["cat", "dog"])}).detail


@pytest.mark.parametrize("label", [0, 0.0, "0", "0.0", False, "false", "False"])
@pytest.mark.parametrize(("column", "flag", "names"), [
    ("completion", "label", {}), ("answer", "kto_tag", {}), ("text", "good", {"label": "good"}),
])  # fmt: skip
def test_what_a_number_says_of_a_completion_is_a_judgement(
    label: object, column: str, flag: str, names: dict[str, str]
) -> None:
    found = draft({"prompt": "Q", column: "bad", flag: label}, names=names)
    assert (found.answer, found.label, found.unread) == ("bad", False, ())


def test_beside_other_answers_a_number_is_no_judgement_and_a_mapped_word_is_refused() -> None:
    found = draft({"prompt": "Q", "caption": "a cat", "label": 0})
    assert (found.answer, found.label, found.unread) == ("a cat", None, ("label",))
    assert "wanted true or false" in refused({"prompt": "Q", "answer": "a", "is": "bad"}, names={"label": "is"}).detail


@pytest.mark.parametrize(
    ("tag", "path", "kind"),
    [
        ("img", "a/b.png", IMAGE),
        ("img", "https://a.org/b?c", IMAGE),
        ("audio", "b.WAV", AUDIO),
        ("video", "c.mp4", VIDEO),
    ],
)
def test_media_named_inside_a_text_are_media(tag: str, path: str, kind: MediaKind) -> None:
    found = draft({"prompt": f"Look: <{tag}>{path}</{tag}> and <image>. What?", "image": "d.png", "answer": "A"})
    assert found.messages[0].content == f"Look: {kind.tag} and <image>. What?"
    assert found.media == (MediumSource(kind, path=path), MediumSource(IMAGE, path="d.png"))
    assert (
        draft({"prompt": "Is <img>this</img> HTML?", "answer": "A"}).messages[0].content == "Is <img>this</img> HTML?"
    )


def test_parts_by_number_show_the_medium_of_that_number() -> None:
    parts = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "text", "text": "?", "index": None}]
    found = draft({"messages": [{"role": "user", "content": parts}, CHOSEN], "images": ["0.png", "1.png"]})
    assert [each.path for each in found.media] == ["1.png", "0.png"] and found.unread == ()


def test_a_tag_for_pictures_stands_for_films_where_these_alone_are_there() -> None:
    found = draft({"video": "a.mp4", "conversations": [*SAYS]})
    assert found.messages[0].content == "<video>What is it?" and found.media == (MediumSource(VIDEO, path="a.mp4"),)
    assert refused({"videos": ["a.mp4", "b.mp4"], "conversations": [*SAYS]}).reason is Reason.PLACEHOLDER_MISMATCH


def test_beside_a_conversation_with_an_answer_captions_and_rendered_texts_are_no_reference() -> None:
    for name in ("caption", "text", "transcript"):
        found = draft({"image": "a.png", "conversations": [*SAYS], name: "something else"})
        assert (found.answer, found.demonstration, found.unread) == ("a cat", None, (name,))
        found = draft({"image": "a.png", "conversations": [*SAYS], name: "a lion"}, names={"answer": name})
        assert (found.answer, found.demonstration) == ("a lion", "a cat")


def test_a_system_text_beside_another_is_named_and_beside_none_goes_first() -> None:
    turns = [{"role": "system", "content": "French."}, {"role": "user", "content": "Q"}, CHOSEN]
    assert draft({"messages": turns, "system": "German."}).unread == ("system",)
    for row in ({"messages": turns, "system": "French."}, {"messages": turns[1:], "system": "French."}):
        found = draft(row)
        assert (found.messages[0], len(found.messages), found.unread) == (Message("system", "French."), 2, ())


@pytest.mark.parametrize("id", [{"$oid": "5f"}, ["a"], True])
def test_an_id_that_is_none_is_refused_with_the_cure(id: object) -> None:
    assert "prepare.ids=place" in refused({"id": id, "question": "Q", "answer": "A"}).detail


@pytest.mark.parametrize("row", [{"file_names": ["a.png", "b.jpg"]}, {"image_file_names": ["a.png", "b.jpg"]}])
def test_names_of_files_in_folders_are_media(row: dict[str, Any]) -> None:
    assert [each.path for each in draft({**row, "question": "Q", "answer": "A"}).media] == ["a.png", "b.jpg"]
