"""TRL's formats: what is written is what `datasets`, TRL and `jobs.prepare` read; comparisons come back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ingest.formats import draft_of
from pipeline.data.schema import Reason, RowError, from_row
from pipeline.feedback.exchange import trl
from pipeline.feedback.records import Item, Judged, MediumRef, Task
from pipeline.records import MediaKind, Message
from tests.feedback.test_exchange import (
    AUDIO,
    IMAGE,
    KIND,
    NOW,
    Files,
    files,
    item,
    judged,
    pair,
    png,
    ranking,
    rating,
    wav,
    with_media,
)

GOOD_BAD = rating({"x": 5, "y": 3}, {"x": 1, "y": 2}, {"x": 3})


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def _texts(path: Path) -> list[tuple[str, str]]:
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in _rows(path)]


def _as_read(of: Item) -> dict[str, Any]:
    """What the format holds of an item: not the order of its completions, not whose weights wrote them, not the task it
    came from, gold, uncertainty and number of raters."""
    texts = sorted(each.text for each in of.candidates)
    return {"id": of.prompt_id, "task": of.prompt_task, "messages": of.messages, "media": of.media, "texts": texts}


def _preferred(each: Judged) -> list[str]:
    """What the format holds of judgements: not the raters, the times, and the ties."""
    return [each.item.candidates[said.content["chosen"]].text for said in each.judgements]


def test_comparisons_come_back_with_media_and_unicode_but_for_ties_and_raters(tmp_path: Path) -> None:
    written = [judged(with_media(), pair(0), pair(1), pair(None)), judged(replace(item(), prompt_id="row-2"), pair(1))]
    assert trl.write_preferences(tmp_path / "p.parquet", written, media=files().media) == {"tie": 1}
    kept = Files()
    found, report = trl.read_preferences(tmp_path / "p.parquet", keep=kept.keep, rater="imported", judged_at=NOW)
    assert report == {"column dataset": 3}
    assert list(map(lambda each: _as_read(each.item), found)) == [_as_read(each.item) for each in written]
    big, small = (each.text for each in item().candidates)
    assert [_preferred(each) for each in found] == [[big, small], [small]]
    assert (kept.media(IMAGE), kept.media(AUDIO)) == (png(), wav())
    first = found[0].judgements
    assert {(each.rater, each.kind, each.judged_at) for each in first} == {("imported", KIND.PAIR, NOW)}
    assert ([each.is_repeat for each in first], len({each.key for each in first})) == ([False, True], 2)


def test_a_ranking_is_a_pair_for_each_two_of_different_ranks(tmp_path: Path) -> None:
    report = trl.write_preferences(
        tmp_path / "p.parquet", [judged(item(Task.RANKING, "a", "b", "c"), ranking(2, 1, 2))], media=files().media
    )
    assert (_texts(tmp_path / "p.parquet"), report) == ([("b", "a"), ("b", "c")], {"tie": 1})


def test_ratings_are_pairs_by_their_means_and_votes_are_one_row(tmp_path: Path) -> None:
    rated = judged(item(Task.RATING, "a", "b", "c"), GOOD_BAD, GOOD_BAD, rating({"x": 1}, {"x": 2}, {"x": 5}))
    report = trl.write_preferences(tmp_path / "p.parquet", [rated], media=files().media, aggregate=True)
    assert (_texts(tmp_path / "p.parquet"), report) == ([("a", "b"), ("a", "c"), ("c", "b")], {})


def test_votes_that_are_equal_are_a_tie_which_is_counted(tmp_path: Path) -> None:
    said = judged(item(), pair(0), pair(1), (KIND.SKIP, {"reason": ""}))
    report = trl.write_preferences(tmp_path / "p.parquet", [said], media=files().media, aggregate=True)
    assert (_rows(tmp_path / "p.parquet"), report) == ([], {"skip": 1, "tie": 1})


def test_good_completions_are_true_bad_ones_are_false_and_others_are_counted(tmp_path: Path) -> None:
    said = judged(item(Task.RATING, "a", "b", "c"), GOOD_BAD)
    report = trl.write_unpaired(tmp_path / "u.parquet", [said, judged(item(), pair(0))], media=files().media)
    rows = [(row["completion"], row["label"]) for row in _rows(tmp_path / "u.parquet")]
    assert rows == [([{"role": "assistant", "content": text}], label) for text, label in (("a", True), ("b", False))]
    assert report == {"pair": 1, "undecided": 1}


def test_corrections_are_rows_of_the_prompt_table(tmp_path: Path) -> None:
    said = judged(with_media(), pair(0), (KIND.CORRECTION, {"place": 1, "text": "Grün 🐸"}))
    assert trl.write_demonstrations(tmp_path / "d.parquet", [said], media=files().media) == {"pair": 1}
    (row,) = _rows(tmp_path / "d.parquet")
    prompt = from_row(row)
    assert (prompt.id, prompt.task, prompt.answer, prompt.messages) == (
        "row-1-key-b-1",
        "colour",
        "Grün 🐸",
        said.item.messages,
    )
    assert [medium.data for medium in prompt.media] == [png(), wav()]
    assert row["sources"] == [IMAGE.key, AUDIO.key]


def test_an_answer_that_says_a_tag_is_counted(tmp_path: Path) -> None:
    said = judged(item(Task.PAIR, "<image> is it", "no"), pair(0), (KIND.CORRECTION, {"place": 0, "text": "<audio>"}))
    tagged = judged(item(Task.RATING, "<image>", "b"), rating({"x": 5}, {"x": 5}))
    store = files().media
    assert trl.write_preferences(tmp_path / "p.parquet", [said], media=store) == {"correction": 1, "tag_in_answer": 1}
    assert trl.write_demonstrations(tmp_path / "d.parquet", [said], media=store) == {"pair": 1, "tag_in_answer": 1}
    assert trl.write_unpaired(tmp_path / "u.parquet", [tagged], media=store) == {"tag_in_answer": 1}


WRITERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (trl.write_preferences, judged(with_media(), pair(0)), {"rejected": "kleiner, \"x\"\n'y'", "answer": "größer 🐘"}),
    (trl.write_unpaired, judged(with_media(Task.RATING, "a"), rating({"x": 1})), {"label": False, "answer": "a"}),
    (
        trl.write_demonstrations,
        judged(with_media(), (KIND.CORRECTION, {"place": 0, "text": "c"})),
        {"answer": "c", "label": None},
    ),
]


@pytest.mark.parametrize(("write", "said", "expected"), WRITERS)
def test_what_is_written_is_what_prepare_reads(
    tmp_path: Path, write: Callable[..., Any], said: Judged, expected: dict[str, Any]
) -> None:
    write(tmp_path / "t.parquet", [said], media=files().media)
    (row,) = _rows(tmp_path / "t.parquet")
    draft = draft_of(row, names={}, id="", dataset="feedback", task="")
    assert (draft.messages, draft.task) == (said.item.messages, "colour")
    assert [medium.data for medium in draft.media] == [png(), wav()]
    assert {name: getattr(draft, name) for name in expected} == expected


def test_datasets_and_trl_take_what_is_written(tmp_path: Path) -> None:
    data_utils: Any = importlib.import_module("trl.data_utils")
    for write, said, _ in WRITERS[:2]:
        path = tmp_path / f"{write.__name__}.parquet"
        write(path, [said], media=files().media)
        loaded = cast(Any, datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache")))
        table = loaded["train"].cast_column("audios", datasets.List(datasets.Audio(decode=False)))
        row = table[0]
        assert data_utils.is_conversational(row)
        assert row["images"][0].size == (4, 4)
        assert row["audios"][0]["bytes"] == wav()
        kinds = [part["type"] for turn in row["prompt"] for part in turn["content"]]
        assert kinds == ["text", "image", "text", "text", "text", "audio", "text"]


IMPLICIT = (
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "b"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a"},
    ],
)


def _read(path: Path, *rows: dict[str, Any]) -> tuple[list[Judged], dict[str, int]]:
    pq.write_table(pa.Table.from_pylist(list(rows)), path / "rows.parquet")
    found, report = trl.read_preferences(path / "rows.parquet", keep=MediumRef.of, rater="r")
    return found, dict(report)


def test_trls_other_spellings_are_the_same_pair_and_who_won_does_not_show(tmp_path: Path) -> None:
    chosen, rejected = IMPLICIT
    (implicit,), _ = _read(tmp_path, {"chosen": chosen, "rejected": rejected})
    (plain,), _ = _read(tmp_path, {"prompt": "Hi", "chosen": "b", "rejected": "a"})
    (turned,), _ = _read(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "b"})
    assert implicit == plain
    assert plain.item == turned.item
    assert plain.item.messages == (Message("user", "Hi"),)
    assert (_preferred(plain), _preferred(turned)) == (["b"], ["a"])


def test_rows_that_are_no_pairs_are_counted(tmp_path: Path) -> None:
    found, report = _read(
        tmp_path,
        {"prompt": "Hi", "chosen": "b", "rejected": "a", "margin": 0.5, "score": 3.0},
        {"prompt": "Hi", "chosen": "a", "rejected": "a", "margin": None, "score": None},
    )
    assert (len(found), report) == (1, {"column score": 1, "margin": 1, "same_answers": 1})
    assert _read(tmp_path, {"prompt": "Hi", "completion": "b", "label": True}) == ([], {"not_a_pair": 1})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": "b", "rejected": None}, Reason.BAD_PREFERENCE),
        ({"prompt": "<image>Hi", "chosen": "b", "rejected": "a"}, Reason.PLACEHOLDER_MISMATCH),
        (
            {"prompt": "<image>", "chosen": "b", "rejected": "a", "images": [{"bytes": None, "path": "a.png"}]},
            Reason.MISSING_BYTES,
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_file_and_row(tmp_path: Path, row: Any, reason: Reason) -> None:
    with pytest.raises(RowError, match=r"rows\.parquet, row 1: ") as caught:
        _read(tmp_path, row)
    assert caught.value.reason is reason


def test_media_of_all_rows_make_the_columns(tmp_path: Path) -> None:
    shown = item(messages=(Message("user", "<image>?"),), media=(MediumRef.of(MediaKind.IMAGE, png()),))
    trl.write_preferences(
        tmp_path / "p.parquet", [judged(item(), pair(0)), judged(shown, pair(0))], media=files().media
    )
    rows = _rows(tmp_path / "p.parquet")
    assert [row["images"] for row in rows] == [[], [{"bytes": png(), "path": None}]]
    assert "audios" not in rows[0]
