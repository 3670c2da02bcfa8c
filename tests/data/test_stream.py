"""Streams through a real Ray Data: rows come in the order promised, from any position, with any number of readers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations

from jobs.command import connect
from pipeline.config import RowOrder
from pipeline.data.datasets import RowRef
from pipeline.data.layout import Layout
from pipeline.data.order import Mixture, Order
from pipeline.data.stream import RowStream, read_window
from tests.data.tables import write_parts

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_ROWS = 1536


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    directory = tmp_path_factory.mktemp("table")
    write_parts(directory, [[64] * 8, [100] * 5, [32] * 16 + [12]])
    return Order(Layout.read(str(directory), "train"), seed=3, batch_rows=48, shuffle_rows=256)


@contextmanager
def opened(
    *orders: Order, position: int = 0, num_readers: int = 2, weights: tuple[float, ...] = (1.0,)
) -> Generator[RowStream]:
    stream = RowStream(orders, Mixture(weights), position=position, num_readers=num_readers)
    try:
        yield stream
    finally:
        stream.close()


def ids(rows: list[RowRef]) -> list[str]:
    """The ids in the blocks that the rows point to."""
    blocks: dict[object, pa.Table] = {row.block: ray.get(row.block) for row in rows if row.block is not None}
    return [blocks[row.block]["id"][row.place].as_py() for row in rows]


@pytest.mark.parametrize("num_readers", [1, 3])
def test_the_number_of_readers_changes_no_order_across_epochs(order: Order, num_readers: int) -> None:
    assert order.num_windows == 6 and order.num_rows == NUM_ROWS
    with opened(order, num_readers=num_readers) as stream:
        drawn = [stream.draw(48) for _ in range(40)]
    rows = order.rows(0, 40 * 48)
    assert [row.key.row for batch in drawn for row in batch] == rows
    assert [name for batch in drawn for name in ids(batch)] == [f"row-{row}" for row in rows]


def test_a_stream_opened_at_a_position_goes_on_as_one_that_came_there(order: Order) -> None:
    for position in np.random.default_rng(0).integers(2 * NUM_ROWS, size=4).tolist():
        with opened(order, position=position) as stream:
            batch = stream.draw(60)
            assert ids(batch) == [f"row-{row}" for row in order.rows(position, 60)]
            assert stream.position == position + 60


def test_datasets_of_a_mixture_are_drawn_by_weight_each_in_its_own_epochs(order: Order, tmp_path: Path) -> None:
    write_parts(tmp_path, [[10, 10]])
    small = Order(Layout.read(str(tmp_path), "train"), seed=3, batch_rows=4, order=RowOrder.FILE, shuffle_rows=1)
    with opened(order, small, weights=(3, 1), position=20) as stream:
        keys = [row.key for row in stream.draw(200)]
    assert [key.row for key in keys if key.dataset == 0] == order.rows(15, 150)
    assert [key.row for key in keys if key.dataset == 1] == [(5 + place) % 20 for place in range(50)]


def test_the_first_rows_alone_are_read_where_that_is_asked(order: Order) -> None:
    head = Order(order.layout.head(90), seed=3, batch_rows=8)
    with opened(head) as stream:
        assert sorted(ids(stream.draw(90))) == sorted(f"row-{row}" for row in range(90))


def test_a_table_that_vanishes_is_an_error_at_the_next_draw(tmp_path: Path) -> None:
    write_parts(tmp_path, [[10]])
    order = Order(Layout.read(str(tmp_path), "train"), seed=0, batch_rows=2)
    (tmp_path / "train.parquet").unlink()
    with opened(order) as stream, pytest.raises(Exception, match=r"train\.parquet"):
        stream.draw(1)


def test_a_window_is_read_in_small_tables_that_begin_after_what_is_skipped(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.stream.BLOCK_BYTES", 4096)
    window = order.epoch(1)[0]
    tables = list(read_window(order.layout.directory, order.layout.names, window, skip=7))
    assert len(tables) > 4 and max(table.nbytes for table in tables) < 8192
    assert [id for table in tables for id in table["id"].to_pylist()] == [f"row-{row}" for row in window.rows()[7:]]


def test_reading_prints_nothing(order: Order, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(order) as stream:
        stream.draw(10)
    assert capfd.readouterr() == ("", "")


def test_blocks_lie_where_they_are_drawn_and_keep_no_other_node(tmp_path: Path) -> None:
    write_parts(tmp_path, [[256] * 6], data=bytes(2_000))  # Ray keeps small blocks in no store.
    order = Order(Layout.read(str(tmp_path), "train"), seed=0, batch_rows=48, shuffle_rows=256)
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        connect(address=cluster.address)
        with opened(order, num_readers=3) as stream:
            blocks = list({row.block for row in stream.draw(6 * 256)})
            places = get_object_locations([block for block in blocks if block is not None])
        assert len(places) == 6
        assert {node for place in places.values() for node in place["node_ids"]} == {
            ray.get_runtime_context().get_node_id()
        }
    finally:
        ray.shutdown()
        cluster.shutdown()
