"""A row's split: by itself alone, in the shares that were asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.config import SplitBy, Splitting, load_recipe
from pipeline.data.ingest.splits import empty_splits, split_of
from pipeline.data.schema import Reason, RowError


def split(by: SplitBy, **row: Any) -> str:
    splitting = Splitting(by=by, rl=0.3, validation=0.1, test=0.2)
    facts: dict[str, Any] = {"id": "a", "place": "p", "stated": None, "group": None, "first_medium": None, "seed": 0}
    return split_of(splitting, **{**facts, **row})


@pytest.mark.parametrize("by", [SplitBy.HASH, SplitBy.FRACTION, SplitBy.GROUP])
def test_shares_are_those_that_were_asked_for(by: SplitBy) -> None:
    counts = Counter(split(by, id=str(n), place=str(n)) for n in range(5000))
    assert counts["test"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert counts["validation"] / 5000 == pytest.approx(0.1, abs=0.015)
    assert counts["rl"] / 5000 == pytest.approx(0.3, abs=0.02)


def test_by_hash_only_the_id_matters_and_by_fraction_seed_and_place() -> None:
    numbers = range(50)
    assert len({split(SplitBy.HASH, seed=n, place=str(n)) for n in numbers}) == 1
    assert len({split(SplitBy.FRACTION, seed=n) for n in numbers}) == 4
    assert len({split(SplitBy.FRACTION, id=str(n)) for n in numbers}) == 1


def test_a_group_stays_together_and_so_do_rows_with_one_first_medium() -> None:
    assert len({split(SplitBy.GROUP, id=str(n), group="ann") for n in range(50)}) == 1
    assert len({split(SplitBy.GROUP, id=str(n), first_medium="abc") for n in range(50)}) == 1
    assert len({split(SplitBy.GROUP, id=str(n), group=str(n), first_medium="abc") for n in range(50)}) == 4


def test_by_column_a_source_may_use_the_usual_names_and_no_others() -> None:
    assert [split(SplitBy.COLUMN, stated=name) for name in ("Train", "RL", " dev ", "test")] == [
        "train",
        "rl",
        "validation",
        "test",
    ]
    for stated in (None, "restval", "not-train", "train/val", "2014"):
        with pytest.raises(RowError, match=r"is none of train, .*prepare\.map\.split.*by=hash") as caught:
            split(SplitBy.COLUMN, stated=stated)
        assert caught.value.reason is Reason.WRONG_TYPE


@pytest.mark.parametrize(
    ("meant", "words"),
    [
        ("train", ("train2014", "train-clean-100", "Training_set")),
        ("validation", ("val2017", "dev-clean", "development", "evaluation", "validation_matched", "dev.other")),
        ("test", ("test-dev", "test_std", "held_out", "held out", "holdout", "hold-out", "testing")),
    ],
)
def test_by_column_words_of_public_data_are_read_as_names_of_files_are(meant: str, words: Sequence[str]) -> None:
    assert {split(SplitBy.COLUMN, stated=word) for word in words} == {meant}


def said(num_rows: dict[str, int], *overrides: str, num_leaks: int = 0) -> list[str]:
    return empty_splits(load_recipe(None, list(overrides)), num_rows, num_leaks=num_leaks)


def test_a_split_that_stays_empty_is_named_with_the_share_that_would_fill_it() -> None:
    validation, test = said({"train": 60})
    assert validation == (
        "none of 60 rows is in the split validation (train has 60): set prepare.split.validation=0.1 instead of 0.05"
    )
    assert "the split test" in test and test.endswith("or set evaluate.split to another split")
    assert "prepare.split.test=0.5 instead" in said({"train": 5, "validation": 1})[0]
    (train,) = said({"validation": 1, "test": 1})
    assert "make prepare.split.rl, validation and test smaller, or set rlhf.split" in train


def test_a_split_that_nobody_asked_for_may_be_empty_unless_a_stage_reads_it() -> None:
    full = {"train": 5, "validation": 1, "test": 1}
    assert said(full) == []
    assert said({"train": 5}, "prepare.split={validation: 0, test: 0}", "evaluate.split=train") == []
    (rl,) = said(full, "rlhf.split=rl")
    assert "prepare.split.rl=0.43 instead of 0, or set rlhf.split" in rl
    (held_out,) = said({"train": 5, "test": 1}, "prepare.split.validation=0", "rlhf.evaluate_every=5")
    assert "set rlhf.validation.split" in held_out
    (by_column,) = said({"train": 5, "validation": 1}, "prepare.split.by=column")
    assert "have rows that say test (prepare.split.by=column), or set evaluate.split" in by_column


def test_a_split_that_lost_its_rows_to_later_ones_is_named_with_what_keeps_them_together() -> None:
    train, validation = said({"test": 3}, num_leaks=57)
    assert train.startswith("none of 3 rows is in the split train (test has 3; 57 more were left out as leak): ")
    for line in (train, validation):
        assert "): prepare.split.by=group keeps " in line and "prepare.split.leaks=allow keeps them all" in line
    assert "smaller" not in train and "prepare.split.validation=" not in validation
    (validation,) = said({"train": 60, "test": 4}, num_leaks=2)
    assert "set prepare.split.validation=0.1 instead of 0.05, or prepare.split.by=group" in validation


def test_where_groups_are_too_few_no_share_fills_a_split() -> None:
    for line in said({"train": 60}, "prepare.split.by=group"):
        assert "groups may be few: set prepare.split.column to a column of more, or by=hash with leaks=allow" in line
        assert "instead of" not in line


def test_where_no_row_came_through_every_split_has_a_cure() -> None:
    assert all(not line.endswith(": ") for line in said({}))


@pytest.mark.parametrize("options", [[], ["prepare.split.rl=0.1"]])
@pytest.mark.parametrize("num_rows", [3, 6, 8])
def test_the_shares_that_are_advised_can_be_set_together(options: list[str], num_rows: int) -> None:
    lines = empty_splits(load_recipe(None, options), {"train": num_rows})
    advised = [cure for line in lines for cure in re.findall(r"prepare\.split\.\w+=[\d.]+", line)]
    assert len(advised) == 2 + len(options)
    assert load_recipe(None, advised).prepare.split.validation >= 0.25
