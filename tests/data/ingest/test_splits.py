"""A row's split: by itself alone, in the shares that were asked for."""

from __future__ import annotations

from collections import Counter
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
    for stated in (None, "holdout-7"):
        with pytest.raises(RowError) as caught:
            split(SplitBy.COLUMN, stated=stated)
        assert caught.value.reason is Reason.WRONG_TYPE


def said(num_rows: dict[str, int], *overrides: str) -> list[str]:
    return empty_splits(load_recipe(None, list(overrides)), num_rows)


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
