"""Which row comes when: a pure function of seed and position, that needs the row groups of a table and not its rows.

An epoch permutes the table's row groups and cuts them into windows of about `shuffle_rows` rows; the rows of a window
are permuted among each other. A window is what a reader reads at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RowOrder
from pipeline.data.layout import Group, Layout

_MIN_WINDOW_ROWS = 256
"""Windows of fewer rows are not worth a read of their own; rows are shuffled among fewer all the same."""
_SLOTS = 1000
"""Draws in which a mixture keeps its proportions exactly."""


@dataclass(frozen=True)
class Window:
    """Row groups that are read together, and how their rows are shuffled: in `num_runs` runs, each by itself.

    before: the windows that end the epoch before, where this one begins an epoch; `seam`: rows there, at either side,
    among which none may occur twice.
    """

    seed: int
    epoch: int
    index: int
    groups: tuple[Group, ...]
    num_runs: int
    before: tuple[Window, ...] = ()
    seam: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of all its groups."""
        return sum(group.num_rows for group in self.groups)

    def rows(self) -> NDArray[np.int64]:
        """int64 [num_rows]: the numbers of its rows in the split, in the order in which they are drawn."""
        rows = np.concatenate([np.arange(group.first, group.first + group.num_rows) for group in self.groups])
        if self.num_runs < len(rows):
            random = np.random.default_rng([self.seed, self.epoch, self.index + 1])
            rows = np.concatenate([random.permutation(run) for run in np.array_split(rows, self.num_runs)])
        if self.before:
            rows = _apart(rows, np.concatenate([window.rows() for window in self.before])[-self.seam :])
        return rows


def _apart(rows: NDArray[np.int64], tail: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows`, the first of them free of those in `tail`, as many as that has; what is in the way moves behind them."""
    free = np.flatnonzero(~np.isin(rows, tail))[: len(tail)]
    return np.concatenate([rows[free], np.delete(rows, free)])


class Order:
    """The endless order of a table's rows.

    No `batch_rows` rows in sequence hold a row twice, across epochs neither, if the table has three times as many:
    rows that the end of an epoch has just given move back, out of the first `batch_rows` of the next one. That leaves
    the ends of epochs as they were, so that an epoch depends on the one before and no further.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        seed: int,
        batch_rows: int,
        order: RowOrder = RowOrder.SHUFFLED,
        shuffle_rows: int = 4096,
        window_bytes: int = 2**26,
    ):
        """Plans the windows.

        Raises:
            ValueError: the table has no rows.
        """
        if not layout.total_rows:
            raise ValueError(f"{layout.directory}: the table {layout.names[0]} has no rows")
        self.layout = layout
        self.num_rows = layout.total_rows
        self.window_bytes = window_bytes
        """What a window of large rows holds at most, uncompressed."""
        self._seed = seed
        self._order = order
        self._shuffle_rows = shuffle_rows
        self._seam = batch_rows if self.num_rows >= 3 * batch_rows else 0
        wanted = max(
            self.num_rows // max(shuffle_rows, _MIN_WINDOW_ROWS), math.ceil(int(layout.num_bytes.sum()) / window_bytes)
        )
        # The rows that move at the start of an epoch must find free ones in its first window.
        self.num_windows = max(1, min(wanted, self.num_rows // (2 * batch_rows)))
        self._known: tuple[int, list[Window]] | None = None

    def epoch(self, epoch: int) -> list[Window]:
        """The windows of an epoch (from 0)."""
        if self._known is None or self._known[0] != epoch:
            windows = self._cut(epoch)
            if epoch and self._seam:
                before = self._ending(self._cut(epoch - 1))
                first = windows[0]
                windows[0] = Window(self._seed, epoch, 0, first.groups, first.num_runs, before=before, seam=self._seam)
            self._known = (epoch, windows)
        return self._known[1]

    def windows(self, position: int) -> Iterator[tuple[Window, int]]:
        """The windows from the row at `position` on, for ever, and how many rows of each lie before that."""
        epoch, skip = divmod(position, self.num_rows)
        while True:
            for window in self.epoch(epoch):
                if skip < window.num_rows:
                    yield window, skip
                skip = max(0, skip - window.num_rows)
            epoch += 1

    def rows(self, position: int, count: int) -> list[int]:
        """The numbers in the split of the `count` rows from `position` on."""
        found: list[int] = []
        for window, skip in self.windows(position):
            found += window.rows()[skip : skip + count - len(found)].tolist()
            if len(found) == count:
                return found
        raise AssertionError("the order has no end")

    def _cut(self, epoch: int) -> list[Window]:
        groups = np.arange(len(self.layout.num_rows))
        if self._order is RowOrder.SHUFFLED:
            groups = np.random.default_rng([self._seed, epoch, 0]).permutation(groups)
        num_rows = self.layout.num_rows[groups]
        window_of = (np.cumsum(num_rows) - num_rows) * self.num_windows // self.num_rows
        cuts = np.flatnonzero(np.diff(window_of)) + 1
        return [self._window(epoch, index, each) for index, each in enumerate(np.split(groups, cuts))]

    def _window(self, epoch: int, index: int, groups: NDArray[np.int64]) -> Window:
        num_runs = max(1, int(self.layout.num_rows[groups].sum()) // self._shuffle_rows)
        return Window(self._seed, epoch, index, tuple(self.layout.group(int(each)) for each in groups), num_runs)

    def _ending(self, windows: Sequence[Window]) -> tuple[Window, ...]:
        """The last windows, as many as hold the rows of a seam."""
        count = num_rows = 0
        while num_rows < self._seam:
            count += 1
            num_rows += windows[-count].num_rows
        return tuple(windows[len(windows) - count :])


class Mixture:
    """Which dataset each draw comes from: the one that lags furthest behind its weight, in cycles of `_SLOTS` draws."""

    def __init__(self, weights: Sequence[float]):
        shares = _shares(weights)
        drawn = np.zeros(len(shares), np.int64)
        self._cycle: list[int] = []
        # drawn[k]: rows of each dataset among the first k of a cycle.
        self._drawn = np.zeros((sum(shares) + 1, len(shares)), np.int64)
        for slot in range(sum(shares)):
            member = int(np.argmax(np.array(shares) * (slot + 1) - drawn * sum(shares)))
            drawn[member] += 1
            self._cycle.append(member)
            self._drawn[slot + 1] = drawn

    def members(self, position: int, count: int) -> list[int]:
        """The datasets of the `count` draws from `position` on."""
        return [self._cycle[place % len(self._cycle)] for place in range(position, position + count)]

    def positions(self, position: int) -> list[int]:
        """How many rows of each dataset the first `position` draws take."""
        cycles, rest = divmod(position, len(self._cycle))
        return (cycles * self._drawn[-1] + self._drawn[rest]).tolist()


def _shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights, each at least 1: exact where `_SLOTS` allows, else rounded to it."""
    exact = [Fraction(weight / sum(weights)).limit_denominator(_SLOTS) for weight in weights]
    scale = math.lcm(*(each.denominator for each in exact))
    shares = [int(each * scale) for each in exact]
    shares = [each // math.gcd(*shares) for each in shares]
    if sum(shares) <= _SLOTS and all(shares):
        return shares
    return [max(1, round(_SLOTS * weight / sum(weights))) for weight in weights]
