"""Training reads the prompt table as a stream of rows, through Ray Data.

    footers -> order of windows -> read tasks of Ray Data (a window each, shuffled) -> blocks in the object store
    blocks  -> rows of a batch: references to a block and places in it -> whoever processes prompts

The driver holds references to the blocks at hand, and never a row. How many readers there are changes no order, and
the row at a position is the same whether the stream was opened there or came there.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.data.datasets import RowKey, RowRef
from pipeline.data.layout import Layout, Part
from pipeline.data.order import Mixture, Order, Window

BLOCK_BYTES = 4 * 2**20
"""About what a block holds: rows that travel together."""
_WINDOWS_AT_ONCE = 16
"""Small windows are read several in a run of Ray Data, as many as hold what a large one does: starting a run takes a
tenth of a second, and two CPU-seconds where Ray has to start the process that reads."""
_CLOSE_S = 5.0
_NODE_ID = "ray.io/node-id"
"""A label that Ray gives each node."""
_LOCK = threading.Lock()
"""Held while Ray Data's context, which all threads share, is ours."""


class RowStream:
    """The rows of one or several tables from a position on, read ahead in the background. Close it when done."""

    def __init__(self, orders: Sequence[Order], mixture: Mixture, *, position: int, num_readers: int):
        """Starts reading.

        position: rows drawn before, over all datasets.
        """
        self.position = position
        self._mixture = mixture
        self._readers = [
            _Reader(order, position=start, num_readers=num_readers)
            for order, start in zip(orders, mixture.positions(position), strict=True)
        ]

    def draw(self, count: int) -> list[RowRef]:
        """The next `count` rows; waits until they are read."""
        members = self._mixture.members(self.position, count)
        self.position += count
        return [self._next(member) for member in members]

    def close(self) -> None:
        """Stops reading."""
        for reader in self._readers:
            reader.close()

    def _next(self, member: int) -> RowRef:
        row, block, place = next(self._readers[member])
        return RowRef(RowKey(member, row), block, place)


class _Reader:
    """An iterator over the rows of one table: number, block, place in the block.

    Ray Data reads some windows to their end, and the next ones when about one window of these is left. It is never held
    up by a full store half-way: its scheduler would then spin, and take a core from those who train.
    """

    def __init__(self, order: Order, *, position: int, num_readers: int):
        self._order = order
        self._num_readers = num_readers
        self._window_rows = order.num_rows // order.num_windows
        self._blocks: queue.SimpleQueue[tuple[ray.ObjectRef[pa.Table], int] | BaseException] = queue.SimpleQueue()
        self._num_at_hand = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._rows = self._walk(position)
        self._thread = threading.Thread(target=self._read, args=(position,), daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[int, ray.ObjectRef[pa.Table], int]:
        return next(self._rows)

    def close(self) -> None:
        """Ends the thread that reads, and with it Ray Data's run."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _walk(self, position: int) -> Iterator[tuple[int, ray.ObjectRef[pa.Table], int]]:
        numbers = (int(row) for window, skip in self._order.windows(position) for row in window.rows()[skip:])
        while True:
            found = self._blocks.get()
            if isinstance(found, BaseException):
                raise found
            block, num_rows = found
            for place in range(num_rows):
                yield next(numbers), block, place
            self._count(-num_rows)

    def _read(self, position: int) -> None:
        order = self._order
        at_once = order.window_bytes * order.num_windows // max(1, int(order.layout.num_bytes.sum()))
        num_windows = max(self._num_readers, min(_WINDOWS_AT_ONCE, at_once))
        windows = order.windows(position)
        try:
            while not self._is_closed:
                found = _blocks(order.layout, list(islice(windows, num_windows)), num_readers=self._num_readers)
                for block, num_rows in found:
                    self._blocks.put((block, num_rows))
                    self._count(num_rows)
                    if self._is_closed:
                        return
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._num_at_hand <= self._window_rows)
        except BaseException as error:  # For the driver to see, when it asks for the next row.
            self._blocks.put(error)

    def _count(self, num_rows: int) -> None:
        with self._changed:
            self._num_at_hand += num_rows
            self._changed.notify()


def _blocks(
    layout: Layout, windows: Sequence[tuple[Window, int]], *, num_readers: int
) -> Iterator[tuple[ray.ObjectRef[pa.Table], int]]:
    """The blocks of some windows in order, as soon as they are read, with their numbers of rows."""
    # Where the rows are drawn: blocks that lay elsewhere would keep a node that the autoscaler could take away, or go
    # with it.
    here = {_NODE_ID: ray.get_runtime_context().get_node_id()}
    with _in_order():
        # Reading asks for no CPU: the workers that train may have reserved all there are.
        dataset = ray.data.read_datasource(
            _Windows(layout, windows),
            num_cpus=0,
            label_selector=here,
            compute=ray.data.TaskPoolStrategy(min(num_readers, len(windows))),
            override_num_blocks=len(windows),
        )
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            if entry.metadata.num_rows:
                yield cast("ray.ObjectRef[pa.Table]", entry.ref), entry.metadata.num_rows


@contextmanager
def _in_order() -> Generator[None]:
    """Data sets that are made in here keep order, in blocks of about `BLOCK_BYTES`, and say nothing on the way."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    # The console alone: Ray's own log files keep everything, and what fails is raised.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    with _LOCK, ray.data.DataContext.current(context):
        yield


class _Windows(Datasource):
    """A read task a window."""

    def __init__(self, layout: Layout, windows: Sequence[tuple[Window, int]]):
        super().__init__()
        self._place = layout.directory, layout.names
        self._windows = windows
        self._row_bytes = int(layout.num_bytes.sum()) / layout.total_rows

    def estimate_inmemory_data_size(self) -> int:
        return int(sum(window.num_rows - skip for window, skip in self._windows) * self._row_bytes)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(read_window, *self._place, window, skip),
                BlockMetadata(
                    num_rows=window.num_rows - skip,
                    size_bytes=int((window.num_rows - skip) * self._row_bytes),
                    exec_stats=None,
                    input_files=None,
                ),
            )
            for window, skip in self._windows
        ]


def read_window(directory: str, names: Sequence[str], window: Window, skip: int) -> Iterator[pa.Table]:
    """The rows of a window in the order in which they are drawn, without the first `skip`, in small tables."""
    by_part = sorted(window.groups, key=lambda group: group.part)  # Stable: each file is read once.
    tables: list[pa.Table] = []
    for part, groups in groupby(by_part, key=lambda group: group.part):
        with Part(directory, names[part]) as file:
            tables.append(file.read_row_groups([group.place for group in groups], use_threads=False))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    tables.clear()
    starts = np.cumsum([0, *(group.size for group in by_part)])
    place_of = dict(zip((group.first for group in by_part), starts.tolist(), strict=False))
    firsts = np.sort([group.first for group in by_part])
    rows = window.rows()[skip:]
    first = firsts[np.searchsorted(firsts, rows, side="right") - 1]
    places = rows - first + np.array([place_of[each] for each in first.tolist()])
    rows_a_table = max(1, int(BLOCK_BYTES * len(table) / max(1, table.nbytes)))
    for start in range(0, len(places), rows_a_table):
        yield table.take(places[start : start + rows_a_table])
