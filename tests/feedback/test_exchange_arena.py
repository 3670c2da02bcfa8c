"""Chatbot Arena's CSV, in the forms of both competitions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.schema import RowError
from pipeline.feedback.exchange import arena
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, Task
from pipeline.records import Message
from tests.feedback.test_exchange import KIND, NOW, item, judged, pair, ranking, with_media

TURNS = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", 'More, "please"\n…'))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _file(path: Path, *rows: dict[str, Any]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def _as_read(of: Item) -> dict[str, Any]:
    """What the format holds of an item: the conversation and the completions. Not the prompt's id and task, not whose
    weights wrote the completions, not gold, uncertainty and number of raters."""
    return {"messages": of.messages, "texts": [each.text for each in of.candidates]}


def _as_said(judgement: Judgement) -> tuple[Any, ...]:
    """What the format holds of a judgement: not its latency and order, not whether it was gold or a repeat."""
    return judgement.key, judgement.rater, judgement.kind, dict(judgement.content), judgement.judged_at


def test_comparisons_come_back_with_ties_raters_and_unicode(tmp_path: Path) -> None:
    written = [judged(item(), pair(0), pair(1), pair(None)), judged(item(messages=TURNS), pair(1))]
    assert arena.write(tmp_path / "arena.csv", written) == {}
    found, report = arena.read(tmp_path / "arena.csv")
    assert report == {}
    assert [_as_read(each.item) for each in found] == [_as_read(each.item) for each in written]
    for ours, theirs in zip(written, found, strict=True):
        assert list(map(_as_said, theirs.judgements)) == list(map(_as_said, ours.judgements))
        assert {each.item_id for each in theirs.judgements} == {theirs.item.id}


def test_a_row_is_as_the_first_competition_has_it(tmp_path: Path) -> None:
    first, second = Candidate("größer", weights_version=3), Candidate("kleiner")
    of = replace(item(messages=TURNS), candidates=(first, second), run="r")
    arena.write(tmp_path / "arena.csv", [judged(of, pair(1))])
    (row,) = _rows(tmp_path / "arena.csv")
    assert row == {
        "id": "key-a-0",
        "model_a": "r@3",
        "model_b": "",
        "prompt": '["Hi", "More, \\"please\\"\\n…"]',
        "response_a": '["Hello", "größer"]',
        "response_b": '["Hello", "kleiner"]',
        "winner_model_a": "0",
        "winner_model_b": "1",
        "winner_tie": "0",
        "judge": "a",
        "tstamp": repr(NOW),
    }


def test_a_ranking_is_a_row_for_every_two_and_votes_are_one(tmp_path: Path) -> None:
    ranked = judged(item(Task.RANKING, "a", "b", "c"), ranking(1, 2, 2), ranking(1, 3, 2))
    arena.write(tmp_path / "rows.csv", [ranked])
    assert [row["id"] for row in _rows(tmp_path / "rows.csv")][:3] == ["key-a-0-0-1", "key-a-0-0-2", "key-a-0-1-2"]
    arena.write(tmp_path / "votes.csv", [ranked], aggregate=True)
    rows = _rows(tmp_path / "votes.csv")
    assert [(row["winner_model_a"], row["winner_model_b"], row["winner_tie"]) for row in rows] == [
        ("1", "0", "0"),
        ("1", "0", "0"),
        ("0", "0", "1"),
    ]
    assert {row["judge"] for row in rows} == {""}


def test_what_has_no_place_is_counted(tmp_path: Path) -> None:
    system = item(messages=(Message("system", "Be brief."), Message("user", "Hi")))
    said = [judged(with_media(), pair(0), pair(1)), judged(system, pair(0), (KIND.SKIP, {"reason": ""}))]
    assert arena.write(tmp_path / "arena.csv", said) == {"media": 2, "system_message": 1, "skip": 1}
    assert _rows(tmp_path / "arena.csv") == []


NEWER = {
    "id": "7",
    "model_a": "x",
    "model_b": "y",
    "prompt": "[1] Wie geht's?",
    "response_a": "gut",
    "response_b": "schlecht",
}


@pytest.mark.parametrize(
    ("winner", "chosen", "report"),
    [
        ("model_a", 0, {"model": 1}),
        ("model_b", 1, {"model": 1}),
        ("tie", None, {"model": 1}),
        ("tie (bothbad)", None, {"model": 1, "both_bad": 1}),
    ],
)
def test_the_newer_form_has_texts_and_a_winner(tmp_path: Path, winner: str, chosen: int | None, report: Any) -> None:
    found, counted = arena.read(_file(tmp_path / "a.csv", {**NEWER, "winner": winner}), rater="wsdm", judged_at=NOW)
    assert counted == report
    (one,) = found
    assert one.item.messages == (Message("user", "[1] Wie geht's?"),)
    (judgement,) = one.judgements
    assert _as_said(judgement) == ("7", "wsdm", KIND.PAIR, {"chosen": chosen}, NOW)


def _older(prompt: Any, first: Any, second: Any) -> dict[str, Any]:
    texts = {"prompt": json.dumps(prompt), "response_a": json.dumps(first), "response_b": json.dumps(second)}
    return {"id": 1, "model_a": "", "model_b": "", **texts, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}


def test_rows_that_no_item_can_hold_are_counted(tmp_path: Path) -> None:
    rows = [
        _older(["a", "b"], ["x", "1"], ["y", "2"]),
        _older(["a"], [None], ["2"]),
        _older(["a"], ["\ud83d"], ["2"]),
        _older(["a", "b"], ["x", "1"], ["x", "2"]),
    ]
    found, report = arena.read(_file(tmp_path / "a.csv", *rows))
    assert report == {"diverging_turns": 1, "no_answer": 1, "surrogate": 1}
    assert [each.item.messages[1] for each in found] == [Message("assistant", "x")]


def test_rows_about_the_same_responses_meet_in_one_item(tmp_path: Path) -> None:
    rows = [{**NEWER, "id": "1", "winner": "model_a"}, {**NEWER, "id": "2", "winner": "tie"}]
    (one,) = arena.read(_file(tmp_path / "a.csv", *rows))[0]
    assert [each.key for each in one.judgements] == ["1", "2"]
    assert isinstance(one, Judged)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**NEWER, "winner": "a"}, "row 1: winner='a': one of model_a, model_b, tie"),
        ({**_older(["a"], ["b"], ["c"]), "winner_tie": 1}, "row 1: winner_model_a, .*='1, 0, 1'"),
        ({**_older(["a"], ["b"], ["c"]), "winner_model_a": 0.3}, "'0.3, 0, 0'"),
        (_older(["a", "b"], ["b"], ["c", "d"]), "'2, 1, 2 turns'"),
        ({**NEWER, "winner": "tie", "tstamp": "yesterday"}, "tstamp='yesterday'"),
    ],
)
def test_values_that_are_not_understood_are_refused_with_file_row_and_field(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError, match=message) as caught:
        arena.read(_file(tmp_path / "a.csv", row))
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_a_file_without_winners_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"winner \(or winner_model_a"):
        arena.read(_file(tmp_path / "test.csv", NEWER))


def test_a_row_with_too_few_cells_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.csv", {**NEWER, "winner": "tie"})
    path.write_text(path.read_text(encoding="utf-8").rpartition(",")[0], encoding="utf-8")
    with pytest.raises(RowError, match="row 1: cells"):
        arena.read(path)
