"""A row's split: by itself alone, in the shares that were asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pipeline.config import SplitBy, Splitting
from pipeline.data.ingest.splits import split_of
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
