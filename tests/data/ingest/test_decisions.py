"""Which rows stay: the first of equals, none on two sides of a split, all others counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError, Leaks, Prepare, Splitting
from pipeline.config.steps import DedupExact
from pipeline.data.ingest.decisions import Decisions
from pipeline.data.ingest.index import PROMPTS, Index
from pipeline.data.ingest.splits import NAMES
from pipeline.data.table import Quarantine, TooManyBadRows
from tests.data.ingest.index_rows import described as row
from tests.data.ingest.index_rows import refused


def decided(*rows: dict[str, Any], leaks: Leaks = Leaks.LEAVE_OUT, exact: bool = False) -> Index:
    """Rows by their order: row number n lies at place n of its shard."""
    settings = Prepare(split=Splitting(leaks=leaks), steps=(DedupExact(),) if exact else ())
    index = Index(":memory:")
    decisions = Decisions(settings, index)
    for place, each in enumerate(rows):
        decisions.add({**each, "place": place})
    decisions.resolve_leaks()
    assert decisions.num_rows == len(rows)
    return index


def places(index: Index, *splits: str) -> list[int]:
    return [place for split in splits or NAMES for _, place, _ in index.places(PROMPTS, split, is_sorted=False)]


def test_the_rest_of_a_file_stops_the_job_at_once_and_is_in_the_quarantine() -> None:
    index = Index(":memory:")
    decisions = Decisions(Prepare(), index)
    decisions.add({**row("a"), "place": 0})
    rest = {**refused("set/t.csv", "lost_rows"), "detail": "the file ends within line 7"}
    with pytest.raises(TooManyBadRows, match=r"set/t.csv: the rest of this file .* nobody knows how many .* line 7"):
        decisions.add(rest)
    assert index.reasons(is_bad=True) == {"lost_rows": 1}


def test_a_row_that_shares_a_medium_with_a_later_split_is_left_out_whichever_comes_first() -> None:
    index = decided(
        row("a", media=("one",)),
        row("b", media=("two", "three")),
        row("c", split="test", media=("three",)),
        row("d", split="validation", media=("three",)),
        row("e", split="validation", media=("four",)),
        row("f", media=("four",)),
    )
    assert places(index) == [0, 4, 2]
    assert index.reasons(is_bad=False) == {"leak": 3}
    assert index.reasons(is_bad=True) == {}


def test_a_row_that_leaked_itself_owns_nothing() -> None:
    index = decided(
        row("a", media=("two",)),
        row("b", split="validation", media=("one", "two")),
        row("c", split="test", media=("one",)),
    )
    assert places(index) == [0, 2]


def test_texts_leak_only_where_there_is_no_medium() -> None:
    index = decided(
        row("a", text="What is it?", media=("one",)),
        row("b", text="What is it?", media=("two",), split="test"),
        row("c", text="1 + 1?"),
        row("d", text="1 + 1?", split="test"),
    )
    assert places(index) == [0, 1, 3]


def test_leaks_stop_the_job_or_stay_where_the_recipe_says_so() -> None:
    rows = (row("a", media=("one",)), row("b", media=("one",), split="test"))
    assert places(decided(*rows, leaks=Leaks.ALLOW)) == [0, 1]
    with pytest.raises(ConfigError, match=r"1 rows share a medium .* first a \(train and test share a content\)"):
        decided(*rows, leaks=Leaks.STOP)


def test_every_row_that_was_read_stays_or_is_counted_whatever_its_id(tmp_path: Path) -> None:
    rows = (
        refused("a"),
        refused("a"),
        row("a", text="x"),
        row("b", text="x"),
        refused("b"),
        row("b", text="y"),
        row("a", text="z"),
    )
    index = decided(*rows, exact=True)
    assert places(index) == [2, 5, 6]
    assert index.reasons(is_bad=True) == {"not_found": 3}
    assert index.reasons(is_bad=False) == {"duplicate": 1}
    index.write_quarantine(tmp_path / "quarantine.parquet")
    assert [each.row_id for each in Quarantine.read(tmp_path / "quarantine.parquet")] == [
        *("a", "a (row 2)", "b", "b (row 5)")
    ]


def test_several_conversations_about_one_picture_may_have_its_id_and_the_report_names_the_cure() -> None:
    index = Index(":memory:")
    decisions = Decisions(Prepare(), index)
    for text in ("What colour?", "How many?", "Where?"):
        decisions.add(row("033471", text=text, media=("bus",)))
    assert [id for _, _, id in index.places(PROMPTS, "train", is_sorted=False)] == ["033471", "033471-2", "033471-3"]
    assert "numbered: 2 rows have the id of an earlier one" in decisions.report()
    assert "prepare.ids=place" in decisions.report()


def test_the_report_names_what_keeps_rows_about_one_picture_together() -> None:
    index = Index(":memory:")
    decisions = Decisions(Prepare(), index)
    for number, split in enumerate(("train", "train", "test")):
        decisions.add(row(str(number), media=("one",), split=split))
    assert "leak" not in decisions.report()
    decisions.resolve_leaks()
    counted, told = decisions.report().split("\n")[1:]
    assert counted == "left out: 2 leak" and told.startswith("leak: they share a medium")
    assert "prepare.split.by=group keeps" in told and "prepare.split.leaks=allow" in told


def test_the_report_names_what_nobody_reads_with_the_rows_that_have_it() -> None:
    index = Index(":memory:")
    decisions = Decisions(Prepare(), index)
    for number, unread in enumerate((["picture"], ["picture", "messages.name"], [])):
        decisions.add(row(str(number), unread=unread))
    decisions.add(row("other", dataset="more", unread=["picture"]))
    *_, first, second, third = decisions.report().split("\n")
    assert first == "not read: picture in 2 rows of set"
    assert (second, third) == ("not read: picture in 1 rows of more", "not read: messages.name in 1 rows of set")


def test_too_many_bad_rows_stop_the_job_and_what_is_left_out_makes_none_bad() -> None:
    index = decided(row("a", text="x"), row("b", text="x"), row("c"), refused("d"), exact=True)
    index.check(4, 0.25)
    with pytest.raises(TooManyBadRows, match=r"1 of 4 rows were refused \(1 not_found\).*First: d: gone"):
        index.check(4, 0.2)
