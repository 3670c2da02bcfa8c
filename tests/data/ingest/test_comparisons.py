"""Comparisons of whole conversations: what both sides share is the prompt, whatever the table repeats of it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.data.schema import Reason
from pipeline.records import Message
from tests.data.ingest.test_formats import draft, refused


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def says(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        # UltraFeedback, binarised: the prompt as text, the better conversation twice.
        ({"prompt": "Q", "messages": [user("Q"), says("a")], "chosen": [user("Q"), says("a")]}, [user("Q")]),
        ({"messages": [user("Q"), says("b")], "chosen": [user("Q"), says("a")]}, [user("Q")]),
        ({"prompt": "Q", "chosen": [system("S"), user("Q"), says("a")]}, [system("S"), user("Q")]),
        ({"prompt": "Q", "system": "S", "chosen": [user("Q"), says("a")]}, [system("S"), user("Q")]),
        ({"system": "S", "chosen": [user("Q"), says("a")]}, [system("S"), user("Q")]),
        ({"prompt": [system("S"), user("Q")], "chosen": [user("Q"), says("a")]}, [system("S"), user("Q")]),
        ({"prompt": "Q\n", "chosen": [user("Q"), says("a")]}, [user("Q")]),
        ({"prompt": "Q", "chosen": [user("P"), says("x"), user("Q"), says("a")]}, [user("P"), says("x"), user("Q")]),
        ({"prompt": "P", "chosen": [says("x"), user("Q"), says("a")]}, [user("P"), says("x"), user("Q")]),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: a"}, [user("Q")]),
    ],
)
def test_what_both_sides_share_is_the_prompt(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    chosen = row["chosen"]
    rejected = chosen.replace("t: a", "t: b") if isinstance(chosen, str) else [*chosen[:-1], says("b")]
    found = draft({**row, "rejected": rejected})
    assert list(found.messages) == [Message(**turn) for turn in prompt]
    assert (found.answer, found.rejected, found.demonstration) == ("a", "b", None)


def test_sides_that_ask_otherwise_are_refused_by_what_differs() -> None:
    error = refused({"chosen": [system("S"), user("Q"), says("a")], "rejected": [system("T"), user("Q"), says("b")]})
    assert error.reason is Reason.BAD_PREFERENCE and "differ in turn 1, by 'system': 'S' and 'T'" in error.detail


@pytest.mark.parametrize("column", ["rejected", "chosen", "rejected_response"])
def test_several_answers_on_a_side_are_refused_and_a_list_of_one_is_that_one(column: str) -> None:
    row = {"prompt": "Q", "chosen": "a", **({"rejected": "b"} if column == "chosen" else {})}
    assert f"{column.split('_')[0]} holds 2 answers" in refused({**row, column: ["c", "d"]}).detail
    assert "holds 0 answers" in refused({**row, column: [None]}).detail
    found = draft({**row, column: ["c"]})
    assert "c" in (found.answer, found.rejected)


@pytest.mark.parametrize("column", ["rejected_images", "images_rejected", "image_chosen", "chosen_image"])
def test_both_sides_are_about_the_same_media(column: str) -> None:
    row = {"prompt": "<image>Q", "image": "a.png", "chosen": "a", "rejected": "b"}
    assert draft({**row, column: "a.png"}).unread == ()
    assert f"{column} holds other media" in refused({**row, column: "b.png"}).detail


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"answers": [{"answer": "bad", "rank": 7.0}, {"answer": "good", "rank": 1.0}]}, "answers.rank"),
        ({"response": ["bad", "good"], "score": [1, 9]}, "score"),
    ],
)
def test_answers_that_the_data_rank_are_not_all_right(row: dict[str, Any], path: str) -> None:
    assert f"{path} is not read" in refused({"prompt": "Q", **row}).detail
