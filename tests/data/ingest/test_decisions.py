"""Which rows stay: the first of equals, none on two sides of a split, all others counted."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ConfigError, Leaks, Prepare, Splitting
from pipeline.config.steps import DedupExact
from pipeline.data.ingest.decisions import Decisions


def row(id: str, *, split: str = "train", media: tuple[str, ...] = (), text: str = "", **more: Any) -> dict[str, Any]:
    return {
        "shard": 0,
        "id": id,
        "reason": None,
        "detail": None,
        "split": split,
        "media_keys": list(media),
        "prompt_key": text or id,
        "row_key": text + "".join(media) or id,
        "signature": None,
        "picture_group": "",
        "picture_hashes": [],
        **more,
    }


def decided(*rows: dict[str, Any], leaks: Leaks = Leaks.LEAVE_OUT, exact: bool = False) -> Decisions:
    settings = Prepare(split=Splitting(leaks=leaks), steps=(DedupExact(),) if exact else ())
    decisions = Decisions(settings)
    for each in rows:
        decisions.add(each)
    decisions.resolve_leaks()
    return decisions


def kept(decisions: Decisions) -> list[str]:
    return [each["id"] for each in decisions.kept()]


def test_a_row_that_shares_a_medium_with_a_later_split_is_left_out_whichever_comes_first() -> None:
    decisions = decided(
        row("a", media=("one",)),
        row("b", media=("two", "three")),
        row("c", split="test", media=("three",)),
        row("d", split="validation", media=("three",)),
        row("e", split="validation", media=("four",)),
        row("f", media=("four",)),
    )
    assert sorted(kept(decisions)) == ["a", "c", "e"]
    assert decisions.left_out.counts() == {"leak": 3}
    assert len(decisions.bad) == 0


def test_texts_leak_only_where_there_is_no_medium() -> None:
    decisions = decided(
        row("a", text="What is it?", media=("one",)),
        row("b", text="What is it?", media=("two",), split="test"),
        row("c", text="1 + 1?"),
        row("d", text="1 + 1?", split="test"),
    )
    assert sorted(kept(decisions)) == ["a", "b", "d"]


def test_leaks_stop_the_job_or_stay_where_the_recipe_says_so() -> None:
    rows = (row("a", media=("one",)), row("b", media=("one",), split="test"))
    assert sorted(kept(decided(*rows, leaks=Leaks.ALLOW))) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"1 rows share a medium .* first a \(train and test share a content\)"):
        decided(*rows, leaks=Leaks.STOP)


def test_masks_say_of_each_shard_which_of_its_rows_stay() -> None:
    decisions = decided(
        row("a", text="same"),
        row("b", text="same", shard=1),
        row("c", shard=1),
        row("d", split="test", shard=1),
        {"shard": 1, "id": "e", "reason": "not_found", "detail": "gone"},
        row("c", shard=2),
        exact=True,
    )
    assert decisions.masks("train") == {0: [True], 1: [False, True], 2: [False]}
    assert decisions.masks("test") == {1: [True]}
    assert decisions.bad.counts() == {"not_found": 1, "duplicate_id": 1}
    assert decisions.left_out.counts() == {"duplicate": 1}
    assert len(decisions.quarantine()) == 3
    assert decisions.num_rows == 6


def test_every_row_that_was_read_stays_or_is_counted_whatever_its_id() -> None:
    bad = {"shard": 0, "id": "a", "reason": "not_found", "detail": "gone"}
    rows = (
        bad,
        bad,
        row("a", text="x"),
        row("b", text="x"),
        {**bad, "id": "b"},
        row("b", text="y"),
        row("a", text="z"),
    )
    decisions = decided(*rows, exact=True)
    assert kept(decisions) == ["a"]
    assert decisions.bad.counts() == {"not_found": 3, "duplicate_id": 2}
    assert decisions.left_out.counts() == {"duplicate": 1}
    assert len(decisions.quarantine()) + len(decisions.kept()) == decisions.num_rows == 7
