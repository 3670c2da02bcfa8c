"""Which comparisons are held out: by their prompt alone, of all sources, so many at most and at least one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from pipeline.data.held_out import HeldOut, place_of

IDS = [f"{source}/row-{number // 3}" for source in ("first", "second", "third") for number in range(3000)]
"""A table of three sources, one after the other, with three comparisons of each prompt."""


def _ids(held_out: HeldOut, ids: Sequence[str]) -> set[str]:
    return {ids[row] for row in held_out.rows}


def test_a_prompts_place_is_its_sha256() -> None:
    # echo -n row-1 | sha256sum
    assert place_of("row-1") == int("0f719b1f3a42", 16) / 2**48
    places = [place_of(name) for name in IDS[::3]]
    assert all(0 <= place < 1 for place in places)
    assert sum(place < 0.1 for place in places) / len(places) == pytest.approx(0.1, abs=0.02)


def test_all_of_a_prompt_are_on_one_side_and_every_source_is_on_both() -> None:
    found = HeldOut.of(iter(IDS), fraction=0.1, most=10_000)
    assert list(found.rows) == [row for row, name in enumerate(IDS) if place_of(name) < 0.1]
    held = _ids(found, IDS)
    assert {name for name in IDS if name in found} == held
    assert len(found.rows) == 3 * len(held)
    for source in ("first", "second", "third"):
        assert 60 < sum(name.startswith(source) for name in held) < 140


def test_other_rows_and_another_order_move_no_prompt_to_the_other_side() -> None:
    shuffled = random.Random(0).sample(IDS, k=len(IDS))
    held = _ids(HeldOut.of(IDS, fraction=0.1, most=10_000), IDS)
    assert _ids(HeldOut.of(shuffled, fraction=0.1, most=10_000), shuffled) == held
    part = IDS[3000:]
    assert _ids(HeldOut.of(part, fraction=0.1, most=10_000), part) == {name for name in held if name in set(part)}


@pytest.mark.parametrize("most", [100, 99, 3])
def test_so_many_at_most_the_prompts_in_order_of_their_places(most: int) -> None:
    for ids in (IDS, IDS[::-1], random.Random(1).sample(IDS, k=len(IDS))):
        found = HeldOut.of(ids, fraction=0.1, most=most)
        expected = sorted(set(IDS), key=place_of)[: most // 3]
        assert _ids(found, ids) == set(expected) == {name for name in set(ids) if name in found}
        assert len(found.rows) == most // 3 * 3


def test_the_lowest_prompt_is_held_out_where_no_other_may_be() -> None:
    ids = ["row-3", "row-2", "row-1", "row-2", "row-1"]
    assert min(ids, key=place_of) == "row-1"
    for found in (HeldOut.of(ids, fraction=1e-9, most=5), HeldOut.of(ids, fraction=0.9, most=1)):
        assert found.rows == (2, 4)
        assert {name for name in ids if name in found} == {"row-1"}
    assert len(HeldOut.of(["a", "a", "a"], fraction=0.5, most=2).rows) == 3
