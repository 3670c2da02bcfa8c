"""The door: every row is checked and processed before it is used; refused ones go to a counted quarantine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actors.loop.crew import Encoding, Roles
from actors.roles.encoder import Needs, PromptRef, Showing
from pipeline.config import ConfigError, Recipe
from pipeline.data.datasets import Datasets, RowKey, RowRef
from pipeline.data.held_out import HeldOut
from pipeline.data.order import Mixture, Order
from pipeline.data.schema import Reason
from pipeline.data.stream import RowStream
from pipeline.data.table import PreferenceTable, Quarantine
from pipeline.records import Opinion, PromptInfo, Quarantined

MIN_JUDGED_ROWS = 1000
"""Rows (or the whole table) whose share of bad ones `data.max_bad_fraction` bounds at least: among the first few rows,
one bad row is many."""

Lacks = Callable[[PromptInfo], str | None]
"""What a row lacks for a stage, and the cure, for the quarantine; None where it lacks nothing."""


def nothing(info: PromptInfo) -> None:
    """What a row lacks for a stage that needs no answer."""


def given(text: str | None) -> str:
    """An answer without which the door lets no row in."""
    if text is None:
        raise ValueError("a row without the answer that this stage needs came through; its door must ask (`lacks`)")
    return text


def check_some(datasets: Datasets, lacks: Lacks, num_rows: int | None = None) -> None:
    """Makes sure that a stage can use a row, of the first `num_rows` of each table: before models are loaded.

    Raises:
        ConfigError: each of them lacks something.
    """
    lack = None
    for table in (source.table for source in datasets.sources):
        for row in range(min(len(table), num_rows or len(table))):
            cells = table.cells([row], ("task", "answer", "demonstration"))[row]
            answer = cells.get("answer")
            lack = lacks(PromptInfo("", cells.get("task") or "", answer, cells.get("demonstration") or answer, ()))
            if lack is None:
                return
    paths = ", ".join(source.table.path for source in datasets.sources)
    raise ConfigError(f"{paths}: no row can be used; the last one has {lack}")


class Door:
    """Lets the good rows of one split in, and remembers why others were refused."""

    def __init__(self, roles: Roles, recipe: Recipe, split: str, *, stage: str, needs: Needs, lacks: Lacks = nothing):
        """Opens the tables.

        needs: what is made of each prompt. lacks: tells the rows that this stage can make no use of, as they have no
        answer; they are refused as `empty_answer`.
        """
        self._roles = roles
        self._recipe = recipe
        self.split = split
        self._needs = needs
        self.lacks = lacks
        self.directory = recipe.run.directory
        """Of the run."""
        self._file = self.directory / "quarantine" / f"{stage}_{split}.parquet"
        self.datasets = Datasets(recipe.datasets, split)
        """The tables, for reading some of their rows."""
        self.quarantine = Quarantine()
        self._expelled: set[RowKey] = set()

    def admit(self, ids: Sequence[str]) -> list[PromptRef]:
        """Processed prompts in the order of `ids`, without the refused ones.

        Raises:
            KeyError: the tables have no such row.
            TooManyBadRows: more than `data.max_bad_fraction` of the rows seen so far were refused.
        """
        rows = [RowRef(key) for key in self.datasets.keys(ids)]
        return self.finish(self.begin(rows), num_seen=len(rows), num_rows=self.datasets.num_rows)

    def show(self, shown: Mapping[RowKey, Showing]) -> list[PromptRef]:
        """Rows that were let in, processed again with their media shown in another way.

        Without those that do not go so (longer media may be more than a prompt holds). Their rows are good: they are in
        no quarantine.
        """
        encoding = self._roles.encode([RowRef(key) for key in shown], self.split, self._needs, shown=shown)
        return [prompt for prompt in encoding.result() if isinstance(prompt, PromptRef)]

    def again(self, prompts: Sequence[PromptRef]) -> list[PromptRef]:
        """Prompts that were let in before, in their order, processed again where they are lost.

        Raises:
            ValueError: one of them is refused now; its completions would belong to no prompt.
        """
        rows = [RowRef(prompt.row) for prompt in prompts]
        found = self._roles.encode(rows, self.split, self._needs, again=True).result()
        for prompt, now in zip(prompts, found, strict=True):
            if isinstance(now, Quarantined):
                raise ValueError(f"{prompt.id} was good before and is refused now: {now.reason}, {now.detail}")
        return [prompt for prompt in found if isinstance(prompt, PromptRef)]

    def begin(self, rows: Sequence[RowRef]) -> Encoding:
        """Has rows processed, for `finish` to take them in."""
        return self._roles.encode(rows, self.split, self._needs)

    def finish(self, encoding: Encoding, *, num_seen: int, num_rows: int) -> list[PromptRef]:
        """The prompts of rows that were begun, without the refused ones.

        num_seen: different rows that were asked for so far; num_rows: how many there are.

        Raises:
            TooManyBadRows: more than `data.max_bad_fraction` of the rows seen so far were refused.
        """
        admitted: list[PromptRef] = []
        row_of: dict[str, RowKey] = {}
        num_refused = len(self.quarantine)
        for prompt in encoding.result():
            if isinstance(prompt, Quarantined):
                self.quarantine.add(prompt)
            elif prompt.row in self._expelled:
                continue
            elif row_of.setdefault(prompt.id, prompt.row) != prompt.row:
                detail = f"rows {row_of[prompt.id].row} and {prompt.row.row} have this id"
                self.quarantine.add(Quarantined(prompt.id, Reason.DUPLICATE_ID.value, detail))
            elif (detail := self.lacks(prompt.info)) is not None:
                self.quarantine.add(Quarantined(prompt.id, Reason.EMPTY_ANSWER.value, detail))
            else:
                admitted.append(prompt)
        if len(self.quarantine) > num_refused or not self._file.is_file():
            self.quarantine.write(self._file)
        self.quarantine.check(max(num_seen, min(num_rows, MIN_JUDGED_ROWS)), self._recipe.data.max_bad_fraction)
        return admitted

    def expel(self, prompt: PromptRef, reason: Reason, detail: str) -> None:
        """Refuses a prompt that was let in, and does not let it in again."""
        self._expelled.add(prompt.row)
        self.quarantine.add(Quarantined(prompt.id, reason.value, detail))
        self.quarantine.write(self._file)

    def metrics(self) -> dict[str, float]:
        """Refused rows so far, by reason."""
        return {f"counts/quarantined:{name}": float(count) for name, count in self.quarantine.counts().items()}


class Batches:
    """Batches of `size` rows of a split in the order of the recipe, let in by the door. Close it when done.

    Batch number k is the same whether this came there or began there.
    """

    def __init__(self, door: Door, recipe: Recipe, *, size: int, cursor: int = 0, num_rows: int | None = None):
        """Starts reading.

        cursor: the number of the first batch; num_rows: how many rows of each table are used, the first ones; None is
        all.
        """
        data = recipe.data
        layouts = [source.table.layout.head(num_rows) for source in door.datasets.sources]
        self.num_rows = sum(layout.total_rows for layout in layouts)
        """Rows of all tables."""
        self.cursor = cursor
        """Batches taken so far, by this and whoever came before: the data position."""
        self._door = door
        self._size = size
        self._names = [source.dataset.label for source in door.datasets.sources]
        self._mixture = Mixture([source.dataset.weight for source in door.datasets.sources])
        self._orders = [
            Order(
                layout,
                seed=recipe.run.seed,
                batch_rows=size,
                order=data.order,
                shuffle_rows=data.shuffle_rows,
                window_bytes=data.shuffle_mib * 2**20,
            )
            for layout in layouts
        ]
        self._first = cursor
        self._pending: deque[Encoding] = deque()
        self._stream = RowStream(self._orders, self._mixture, position=cursor * size, num_readers=data.num_readers)

    def announce(self, count: int = 1) -> None:
        """Has the rows of the next `count` batches processed, so that they are ready when they are taken."""
        while len(self._pending) < count:
            self._pending.append(self._door.begin(self._stream.draw(self._size)))

    def take(self) -> list[PromptRef]:
        """The next batch that has a good row: its good rows.

        Raises:
            TooManyBadRows: more than `data.max_bad_fraction` of the rows seen so far were refused, or all of a table.
        """
        while True:
            self.announce()
            num_seen = min((self.cursor + 1 - self._first) * self._size, self.num_rows)
            prompts = self._door.finish(self._pending[0], num_seen=num_seen, num_rows=self.num_rows)
            # Only now: a batch that is lost on the way is not passed over.
            self._pending.popleft()
            self.cursor += 1
            if prompts:
                return prompts
            if num_seen == self.num_rows:
                self._door.quarantine.check(num_seen, 0.0)

    def again(self, prompts: Sequence[PromptRef]) -> list[PromptRef]:
        """Prompts that were taken, processed again where they are lost."""
        return self._door.again(prompts)

    def expel(self, prompt: PromptRef, reason: Reason, detail: str) -> None:
        """Refuses a prompt that was taken; it does not come again."""
        self._door.expel(prompt, reason, detail)

    def close(self) -> None:
        """Stops reading."""
        self._stream.close()

    def record_rows(self, stage: str) -> None:
        """Keeps which rows the run's stage has drawn so far, for `shared_rows`."""
        rows = {
            name: np.unique(order.rows(0, min(count, order.num_rows)))
            for name, count, order in zip(
                self._names, self._mixture.positions(self.cursor * self._size), self._orders, strict=True
            )
        }
        file = rows_file(self._door.directory, stage)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **{f"{self._door.split}/{name}": found for name, found in rows.items()})

    def metrics(self) -> dict[str, float]:
        """Rows taken of each dataset so far, and how many epochs that is."""
        drawn = self._mixture.positions(self.cursor * self._size)
        return {
            **{f"data/rows/{name}": float(count) for name, count in zip(self._names, drawn, strict=True)},
            **{
                f"data/epoch/{name}": count / order.num_rows
                for name, count, order in zip(self._names, drawn, self._orders, strict=True)
            },
        }


def rows_file(directory: Path, stage: str) -> Path:
    """Where a run keeps the numbers of the rows that a stage has drawn: int64 by `split/dataset`."""
    return directory / "rows" / f"{stage}.npz"


def shared_rows(directory: Path, one: str, other: str) -> dict[str, int] | None:
    """How many different rows two stages of a run have drawn, and how many both have; None where one did not end."""
    files = [rows_file(directory, stage) for stage in (one, other)]
    if not all(file.is_file() for file in files):
        return None
    first, second = (dict(np.load(file)) for file in files)
    both = sum(len(np.intersect1d(rows, second[name])) for name, rows in first.items() if name in second)
    return {one: sum(map(len, first.values())), other: sum(map(len, second.values())), "both": both}


class PairBatches:
    """Batches of `size` rows of a preference table (pairs, rankings, ratings) in the order of the recipe.

    Each with its prompt, let in by the door.
    """

    def __init__(self, door: Door, recipe: Recipe, table: PreferenceTable, *, size: int, held_out: HeldOut):
        """held_out: rows that are passed over.

        Raises:
            ValueError: no others are left.
        """
        self.num_rows = len(table) - len(held_out.rows)
        """Rows that are not held out."""
        if not self.num_rows:
            raise ValueError(f"{table.path}: all {len(table)} rows are held out")
        self.num_refused = 0
        """Rows so far whose prompt was refused."""
        self._door = door
        self._table = table
        self._size = size
        self._held_out = held_out
        self._order = Order(
            table.layout,
            seed=recipe.run.seed,
            # Among so many rows in sequence there is a whole batch.
            batch_rows=size + len(held_out.rows),
            order=recipe.data.order,
            shuffle_rows=recipe.data.shuffle_rows,
        )
        self._position = 0
        self._num_taken = 0
        self._pending: deque[tuple[list[Opinion], Encoding]] = deque()

    def announce(self, count: int = 1) -> None:
        """Has the prompts of the next `count` batches processed, so that they are ready when they are taken."""
        while len(self._pending) < count:
            pairs = self._draw()
            keys = self._door.datasets.keys(list({pair.prompt_id: None for pair in pairs}))
            self._pending.append((pairs, self._door.begin([RowRef(key) for key in keys])))

    def take(self) -> list[tuple[Opinion, PromptRef]]:
        """The next batch that has a good prompt: rows whose prompts are good.

        Raises:
            KeyError: the tables have no such prompt.
            TooManyBadRows: the prompts refused so far are more than `data.max_bad_fraction` of the rows, or all.
        """
        while True:
            self.announce()
            pairs, encoding = self._pending.popleft()
            self._num_taken += self._size
            num_seen, num_rows = min(self._num_taken, self.num_rows), self.num_rows
            prompts = {each.id: each for each in self._door.finish(encoding, num_seen=num_seen, num_rows=num_rows)}
            found = [(pair, prompts[pair.prompt_id]) for pair in pairs if pair.prompt_id in prompts]
            self.num_refused += len(pairs) - len(found)
            if found:
                return found
            if num_seen == num_rows:
                self._door.quarantine.check(num_seen, 0.0)

    def _draw(self) -> list[Opinion]:
        """The next `size` rows that are not held out."""
        found: list[Opinion] = []
        while missing := self._size - len(found):
            pairs = self._table.read(self._order.rows(self._position, missing))
            self._position += missing
            found += [pair for pair in pairs if pair.prompt_id not in self._held_out]
        return found
