"""The order of rows: every row once an epoch, none twice in a batch, all of it from seed and position alone."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RowOrder
from pipeline.data.layout import Layout
from pipeline.data.order import Mixture, Order

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def _layout(sizes: list[int]) -> Layout:
    columns = [np.array(each, np.int64) for each in ([0] * len(sizes), range(len(sizes)), sizes, sizes)]
    return Layout("nowhere", ("train.parquet",), *columns, num_bytes=1000 * np.array(sizes, np.int64))


def _order(sizes: list[int], *, seed: int = 0, batch_rows: int = 1, **options: object) -> Order:
    return Order(_layout(sizes), seed=seed, batch_rows=batch_rows, **options)  # pyright: ignore[reportArgumentType]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from(list(RowOrder)), st.integers(1, 600), st.integers(1, 50), st.integers(0, 9))
def test_an_epoch_has_every_row_once_and_no_batch_a_row_twice(
    sizes: list[int], kind: RowOrder, shuffle_rows: int, batch_rows: int, seed: int
) -> None:
    options = {"order": kind, "shuffle_rows": shuffle_rows, "window_bytes": 100_000}
    order = _order(sizes, seed=seed, batch_rows=batch_rows, **options)
    num_rows = sum(sizes)
    drawn = order.rows(0, 4 * num_rows)
    for epoch in range(4):
        assert sorted(drawn[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))
    if num_rows >= 3 * batch_rows:
        for start in range(len(drawn) - batch_rows):
            assert len(set(drawn[start : start + batch_rows])) == batch_rows
    # From any position on, with nothing remembered.
    again = _order(sizes, seed=seed, batch_rows=batch_rows, **options)
    for position in np.random.default_rng(seed).integers(3 * num_rows, size=5).tolist():
        assert again.rows(position, num_rows) == drawn[position : position + num_rows]


def test_seeds_and_epochs_differ() -> None:
    orders = [tuple(_order([10] * 9, seed=seed).rows(90 * epoch, 90)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_windows_hold_about_as_many_rows_as_are_shuffled_together_and_less_where_rows_are_large() -> None:
    sizes = [32] * 400
    counts = [window.num_rows for window in _order(sizes, shuffle_rows=1000).epoch(0)]
    assert len(counts) == 12 and set(counts) <= set(range(1024, 1120))
    small = _order(sizes, shuffle_rows=1000, window_bytes=400_000).epoch(0)
    assert len(small) == 32 and max(window.num_rows for window in small) <= 416


def test_the_order_of_the_file_is_kept_but_for_shuffling_within_windows() -> None:
    sizes = [32] * 100
    assert _order(sizes, order=RowOrder.FILE, shuffle_rows=1).rows(0, 6400) == [*range(3200), *range(3200)]
    drawn = np.array(_order(sizes, order=RowOrder.FILE, shuffle_rows=320).rows(0, 3200))
    assert (np.abs(drawn - np.arange(3200)) < 320 + 32).all() and not (drawn == np.arange(3200)).all()
    curriculum = np.array(_order(sizes, order=RowOrder.FILE, shuffle_rows=40).rows(0, 3200))
    assert (np.abs(curriculum - np.arange(3200)) < 80).all()


def test_shuffling_reaches_the_whole_table_in_every_epoch() -> None:
    order = _order([32] * 100, shuffle_rows=320)
    for epoch in range(3):
        start = np.array(order.rows(3200 * epoch, 320))
        assert start.min() < 640 and start.max() >= 2560


def test_what_a_window_needs_to_be_read_is_small_whatever_the_epoch() -> None:
    import pickle

    windows = [window for window, _ in islice(_order([32] * 3000, batch_rows=64).windows(0), 50)]
    assert max(len(pickle.dumps(window)) for window in windows) < 40_000


def test_a_table_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the table train\.parquet has no rows"):
        _order([])


@pytest.mark.parametrize(
    ("weights", "cycle"),
    [([1.0], [1]), ([1, 1], [1, 1]), ([0.7, 0.3], [7, 3]), ([2, 1, 1], [2, 1, 1]), ([1, 2 / 3], [3, 2])],
)
def test_a_mixture_draws_by_weight_exactly_in_every_cycle_and_evenly_within(
    weights: list[float], cycle: list[int]
) -> None:
    mixture, length = Mixture(weights), sum(cycle)
    members = mixture.members(0, 5 * length)
    for start in range(0, 5 * length, length):
        assert [members[start : start + length].count(member) for member in range(len(weights))] == cycle
    for position in range(3 * length):
        drawn = mixture.positions(position)
        assert drawn == [members[:position].count(member) for member in range(len(weights))]
        assert all(abs(n - position * w / sum(weights)) <= 1 for n, w in zip(drawn, weights, strict=True))
    assert mixture.members(3, length) == members[3 : 3 + length]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_every_dataset_is_drawn_from_and_shares_are_right_to_a_thousandth_a_dataset(weights: list[float]) -> None:
    positions = Mixture(weights).positions(100_000)
    assert sum(positions) == 100_000
    for drawn, weight in zip(positions, weights, strict=True):
        assert drawn > 0 and abs(drawn / 100_000 - weight / sum(weights)) <= 0.001 * len(weights)
