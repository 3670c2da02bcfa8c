"""Multiple choice in the spellings of others: what is asked, and which answer is meant."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.data.schema import Reason
from tests.data.ingest.test_formats import draft, refused

PETS = ["a cat", "a dog", "an eel"]
ASKED = "Which?\nA. a cat\nB. a dog\nC. an eel"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ({"choices": PETS, "answer": 1}, "B"),
        ({"choices": PETS, "answer": "1"}, "B"),
        ({"choices": PETS, "correct_choice_idx": 0}, "A"),
        ({"choices": PETS, "label": 2}, "C"),
        ({"options": str(PETS), "answer": "B"}, "B"),
        ({"options": '["a cat", "a dog", "an eel"]', "answer": "(B)"}, "B"),
        ({"options": PETS, "answer": "B. a dog"}, "B"),
        ({"options": PETS, "answer": "a dog"}, "a dog"),
        ({"options": {"A": "a cat", "B": "a dog", "C": "an eel"}, "answer": "an eel", "answer_idx": "C"}, "an eel"),
        ({"choices": {"text": PETS, "label": ["A", "B", "C"]}, "answerKey": "C"}, "C"),
        ({"choices": [{"label": "ABC"[n], "text": text} for n, text in enumerate(PETS)], "answerKey": "C"}, "C"),
        ({"A": "a cat", "B": "a dog", "C": "an eel", "D": None, "answer": "C"}, "C"),
        ({"option_a": "a cat", "option_b": "a dog", "option_c": "an eel", "answer": "C"}, "C"),
    ],
)
def test_choices_go_below_the_question_and_a_number_becomes_a_letter(raw: dict[str, Any], answer: str) -> None:
    found = draft({"question": "Which?", **raw})
    assert (found.messages[0].content, found.answer) == (ASKED, answer)


def test_choices_that_the_question_lists_are_not_listed_twice() -> None:
    for question in (ASKED, "Which? (A) a cat (B) a dog (C) an eel"):
        assert draft({"question": question, "choices": PETS, "answer": 1}).messages[0].content == question
    assert (
        draft({"question": "a cat, a dog, an eel?", "choices": PETS, "answer": 1}).messages[0].content.count("\n") == 3
    )


def test_choices_that_are_numbers_may_not_be_confused_with_numbers_of_choices() -> None:
    assert draft({"question": "?", "choices": ["0", "1", "2"], "answer": "1"}).answer == "B"
    assert draft({"question": "?", "choices": ["1", "2", "4"], "answer": 2}).answer == "C"
    assert draft({"question": "?", "choices": ["1", "2", "4"], "answer": "4"}).answer == "4"
    assert "may be two" in refused({"question": "?", "choices": ["1", "2", "4"], "answer": "2"}).detail
    assert "may be two" in refused({"question": "?", "choices": ["B", "A"], "answer": "B"}).detail


@pytest.mark.parametrize(
    "raw",
    [
        {"choices": PETS, "answer": 3},
        {"choices": PETS, "answer": "a fish"},
        {"choices": PETS, "answer": "1" * 5000},
        {"choices": "a cat or a dog", "answer": "a cat"},
        {"choices": ["a cat"], "answer": 0},
    ],
)
def test_an_answer_that_is_no_choice_and_choices_that_are_none_are_refused(raw: dict[str, Any]) -> None:
    assert refused({"question": "Which?", **raw}).reason is Reason.WRONG_TYPE
    assert draft({"question": "Which?", **raw}, ignored=("choices",)).answer == str(raw["answer"])


def test_without_choices_and_in_conversations_nothing_changes() -> None:
    assert draft({"question": "Which?", "options": "[]", "answer": "B"}).answer == "B"
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "1"}]
    found = draft({"messages": turns, "choices": PETS})
    assert (found.messages[0].content, found.answer, found.unread) == ("Which?", "1", ("choices",))


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_choices_that_are_missing_at_the_end_are_none(nothing: object) -> None:
    asked = "Which?\nA. a cat\nB. a dog"
    rows: list[dict[str, Any]] = [
        {"options": ["a cat", "a dog", nothing]},
        {"options": {"A": "a cat", "B": "a dog", "C": nothing}},
        {"choices": [{"label": "A", "text": "a cat"}, {"label": "B", "text": "a dog"}, nothing]},
        {"A": "a cat", "B": "a dog", "C": nothing, "D": nothing},
    ]
    for row in rows:
        assert draft({"question": "Which?", "answer": "A", **row}).messages[0].content == asked


def test_a_gap_among_choices_is_refused_with_the_cure() -> None:
    for row in ({"A": "0", "B": "1", "C": None, "D": "2"}, {"option_a": "Na", "option_b": None, "option_c": "K"}):
        assert "JSON Lines or Parquet" in refused({"question": "Q", "answer": "A", **row}).detail
    assert refused({"question": "Q", "options": ["a", None, "c"], "answer": "A"}).reason is Reason.WRONG_TYPE
    mixed = {"question": "Q", "options": [{"text": "x", "label": "A"}, "y"], "answer": "A"}
    assert refused(mixed).reason is Reason.WRONG_TYPE


@pytest.mark.parametrize("options", [["A. x", "B. y"], ["(A) x", "(B) y"], ["A: x", "B: y"], ["A\uff0ex", "B\uff0ey"]])
def test_choices_that_say_their_letters_are_not_lettered_twice(options: list[str]) -> None:
    found = draft({"question": "Q", "options": options, "answer": "<answer>B</answer>"})
    assert (found.messages[0].content, found.answer) == ("Q\nA. x\nB. y", "B")


@pytest.mark.parametrize("answer", ["b", "\uff22", "\uff08B\uff09", "B、狗", "B\uff0e狗", "B.狗", "B: 狗", "B"])
def test_letters_are_known_in_the_writing_of_others(answer: str) -> None:
    assert draft({"question": "Q", "choices": ["猫", "狗"], "answer": answer}).answer == "B"


@pytest.mark.parametrize("mark", ["、", "\uff1a", "\uff0e", ". "])
def test_choices_that_a_question_lists_in_chinese_are_not_listed_twice(mark: str) -> None:
    question = f"哪个?\nA{mark}猫\nB{mark}狗"
    assert draft({"question": question, "choices": ["猫", "狗"], "answer": "B"}).messages[0].content == question
