"""Batches that the door lets in: the same from any cursor, refused rows counted once, datasets in proportion."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from actors.fleet.failures import FEATURES, InputsLost
from actors.loop.door import Batches, Door, Lacks, PairBatches, nothing, shared_rows
from actors.loop.judge import lacks as lacks_for_rewards
from actors.roles.encoder import Needs, PromptRef, Showing
from jobs import reward_model, sft
from pipeline.config import Recipe, load_recipe
from pipeline.data.datasets import Datasets, RowKey, RowRef
from pipeline.data.held_out import HeldOut
from pipeline.data.schema import Reason
from pipeline.data.table import (
    PreferenceTable,
    Quarantine,
    TooManyBadRows,
    info_of,
    write_preferences,
    write_prompts,
)
from pipeline.records import Preference, Prompt, Quarantined, RaterKind
from tests.data.tables import write_parts

pytestmark = pytest.mark.usefixtures("local_ray")

IN_ORDER = ("data.order=file", "data.shuffle_rows=1")


class ReadingRoles:
    """Encoders that read the rows they are given, and make nothing of them."""

    def __init__(self, recipe: Recipe):
        self._datasets = Datasets(recipe.datasets, "train")
        self.num_read = 0
        self.shown: Mapping[RowKey, Showing] | None = None
        self.again = False

    def encode(
        self,
        rows: Sequence[RowRef],
        split: str,
        needs: Needs,
        *,
        shown: Mapping[RowKey, Showing] | None = None,
        again: bool = False,
    ) -> ReadingRoles.Done:
        self.num_read += len(rows)
        self.shown, self.again = shown, again
        prompts = self._datasets.read(rows)
        return self.Done([self._ref(row, prompt) for row, prompt in zip(rows, prompts, strict=True)])

    def _ref(self, row: RowRef, prompt: Prompt | Quarantined) -> PromptRef | Quarantined:
        return prompt if isinstance(prompt, Quarantined) else PromptRef(info_of(prompt), row.key, 1, cast(Any, None))

    class Done:
        def __init__(self, prompts: list[PromptRef | Quarantined]):
            self._prompts = prompts

        def result(self) -> list[PromptRef | Quarantined]:
            return self._prompts


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 60 rows in three parts."""
    write_parts(tmp_path / "first", [[10, 10], [20], [20]])
    return tmp_path / "first"


def _recipe(directory: Path, *options: str) -> Recipe:
    return load_recipe(None, [f"run.directory={directory.parent / 'run'}", f"data.path={directory}", *options])


def _changed(directory: Path, changes: Mapping[int, Mapping[str, Any]]) -> Path:
    """The table with other cells in some rows, in one file of a directory of its own."""
    rows = [row for part in sorted(directory.iterdir()) for row in pq.read_table(part).to_pylist()]
    for number, cells in changes.items():
        rows[number] |= cells
    write_prompts(directory.with_name("changed") / "train.parquet", rows)
    return directory.with_name("changed")


@contextmanager
def _opened(
    recipe: Recipe, *, size: int, cursor: int = 0, lacks: Lacks = nothing, **options: Any
) -> Generator[tuple[Door, Batches]]:
    door = Door(cast(Any, ReadingRoles(recipe)), recipe, "train", stage="test", needs=Needs(), lacks=lacks)
    with closing(Batches(door, recipe, size=size, cursor=cursor, **options)) as batches:
        yield door, batches


def _ids(batches: Batches, count: int) -> list[list[str]]:
    return [[prompt.id for prompt in batches.take()] for _ in range(count)]


def test_a_batch_is_the_same_whether_one_came_or_began_there_and_whatever_was_announced(table: Path) -> None:
    recipe = _recipe(table, "data.num_readers=3")
    with _opened(recipe, size=7) as (_, batches):
        whole = _ids(batches, 20)
    assert {name for batch in whole[:9] for name in batch} == {f"row-{row}" for row in range(60)}
    assert all(len(set(batch)) == 7 for batch in whole)
    with _opened(_recipe(table, "data.num_readers=1"), size=7, cursor=11) as (_, batches):
        assert _ids(batches, 3) == whole[11:14]
        batches.announce(4)
        assert _ids(batches, 6) == whole[14:20]
        assert batches.cursor == 20
        assert batches.metrics() == {"data/rows/data": 140.0, "data/epoch/data": 140 / 60}


def test_the_first_rows_alone_are_drawn_where_that_is_asked(table: Path) -> None:
    with _opened(_recipe(table), size=5, num_rows=15) as (_, batches):
        assert batches.num_rows == 15
        assert {name for batch in _ids(batches, 3) for name in batch} == {f"row-{row}" for row in range(15)}


def test_a_run_tells_how_many_rows_two_stages_share(table: Path) -> None:
    directory = table.parent / "run"
    with _opened(_recipe(table), size=5, num_rows=15) as (_, batches):
        _ids(batches, 4)  # A batch more than there are rows.
        batches.record_rows("sft")
    assert shared_rows(directory, "sft", "rlhf") is None
    with _opened(_recipe(table), size=5) as (_, batches):
        drawn = {name for batch in _ids(batches, 6) for name in batch}
        batches.record_rows("rlhf")
    both = len(drawn & {f"row-{row}" for row in range(15)})
    assert both > 0
    assert shared_rows(directory, "sft", "rlhf") == {"sft": 15, "rlhf": 30, "both": both}


def test_refused_rows_make_a_batch_smaller_and_count_once_whatever_the_epoch(table: Path) -> None:
    directory = _changed(table, {3: {"answer": ""}, 40: {"images": []}, 41: {"id": "row-42"}})
    with _opened(_recipe(directory, "data.max_bad_fraction=0.1"), size=60) as (door, batches):
        for _ in range(3):
            assert len(batches.take()) == 57
        assert door.quarantine.counts() == {"empty_answer": 1, "placeholder_mismatch": 1, "duplicate_id": 1}
    refused = Quarantine.read(table.parent / "run" / "quarantine" / "test_train.parquet")
    assert {row.row_id for row in refused} == {"row-3", "row-40", "row-42"}


def test_too_many_refused_rows_stop_and_a_table_without_a_good_row_always_does(table: Path) -> None:
    directory = _changed(table, {row: {"answer": ""} for row in (3, 40)})
    with _opened(_recipe(directory), size=60) as (_, batches), pytest.raises(TooManyBadRows, match="2 of 60 rows"):
        batches.take()
    directory = _changed(table, {row: {"answer": ""} for row in range(60)})
    recipe = _recipe(directory, "data.max_bad_fraction=1")
    with _opened(recipe, size=20) as (_, batches), pytest.raises(TooManyBadRows, match="60 of 60 rows"):
        batches.take()


def test_one_bad_row_among_the_first_of_a_large_table_does_not_stop(tmp_path: Path) -> None:
    write_parts(tmp_path / "large", [[1000]])
    rows = pq.read_table(tmp_path / "large" / "train.parquet").to_pylist()
    rows[0]["answer"] = ""
    write_prompts(tmp_path / "large" / "train.parquet", rows)
    with _opened(_recipe(tmp_path / "large", *IN_ORDER), size=4) as (door, batches):
        assert _ids(batches, 2) == [["row-1", "row-2", "row-3"], ["row-4", "row-5", "row-6", "row-7"]]
        assert len(door.quarantine) == 1


def test_a_batch_without_a_good_row_is_passed_over(table: Path) -> None:
    directory = _changed(table, {row: {"answer": ""} for row in range(5, 10)})
    with _opened(_recipe(directory, *IN_ORDER, "data.max_bad_fraction=0.5"), size=5) as (_, batches):
        assert [batch[0] for batch in _ids(batches, 2)] == ["row-0", "row-10"] and batches.cursor == 3


NEITHER: Mapping[str, Any] = {"answer": None, "demonstration": None}


@pytest.mark.parametrize(
    ("rewards", "cure"),
    [
        ("{learned: 1.0}", None),
        ("{learned: 1.0, exact_match: 1.0}", r"rlhf\.rewards compares with \(exact_match\); rewards=\{learned: 1\.0\}"),
        ("{wer: 1.0, learned: 1.0, length: 0.1}", r"\(wer, length\)"),
    ],
)
def test_rlhf_takes_rows_without_an_answer_where_no_reward_compares_with_it(
    table: Path, rewards: str, cure: str | None
) -> None:
    directory = _changed(table, {3: NEITHER, 4: {"answer": None, "demonstration": "said"}})
    recipe = _recipe(directory, f"rlhf.rewards={rewards}", "data.max_bad_fraction=0.1")
    with _opened(recipe, size=60, lacks=lacks_for_rewards(recipe)) as (door, batches):
        assert len(batches.take()) == (60 if cure is None else 58)
        assert door.quarantine.counts() == ({} if cure is None else {"empty_answer": 2})
        assert all(re.search(str(cure), row.detail) for row in door.quarantine)


def test_sft_takes_a_demonstration_for_an_answer_and_refuses_what_has_neither(table: Path) -> None:
    directory = _changed(table, {3: NEITHER, 4: {"answer": None, "demonstration": "said"}})
    recipe = _recipe(directory, *IN_ORDER, "data.max_bad_fraction=0.1")
    with _opened(recipe, size=60, lacks=sft.lacks) as (door, batches):
        learned = {prompt.id: prompt.info.demonstration for prompt in batches.take()}
    assert learned == {f"row-{row}": "said" if row == 4 else str(row) for row in range(60) if row != 3}
    (refused,) = Quarantine.read(table.parent / "run" / "quarantine" / "test_train.parquet")
    assert (refused.row_id, refused.reason) == ("row-3", "empty_answer") and "sft.rows" in refused.detail
    assert len(door.quarantine) == 1


def test_the_scripted_rater_needs_an_answer_and_a_demonstration_is_none(table: Path) -> None:
    directory = _changed(table, {row: {"answer": None, "demonstration": "said"} for row in range(60)})
    recipe = _recipe(directory)
    message = r"20 empty_answer.*First: row-\d+: .*preferences\.parquet"
    with (
        _opened(recipe, size=20, lacks=reward_model.lacks) as (_, batches),
        pytest.raises(TooManyBadRows, match=message),
    ):
        batches.take()


def test_datasets_of_a_mixture_keep_apart_ids_that_they_share(table: Path) -> None:
    write_parts(table.with_name("second"), [[8]])
    datasets = f"[{{path: {table}, weight: 3}}, {{path: {table.with_name('second')}, name: small}}]"
    recipe = _recipe(table, f"data.mixture={datasets}")
    with _opened(recipe, size=16) as (door, batches):
        (batch,) = _ids(batches, 1)
        assert sum(name.startswith("first/row-") for name in batch) == 12 and len(set(batch)) == 16
        assert sum(name.startswith("small/row-") for name in batch) == 4
        assert batches.metrics() == {
            "data/rows/first": 12.0, "data/rows/small": 4.0, "data/epoch/first": 0.2, "data/epoch/small": 0.5,
        }  # fmt: skip
        ids = ["small/row-3", "first/row-3"]
        assert [prompt.id for prompt in door.admit(ids)] == ids
        assert door.datasets.num_rows == len(door.datasets.infos()) == 68
        with pytest.raises(KeyError, match="begins with the name of no dataset; there are first, small"):
            door.admit(["row-3"])


def test_a_prompt_that_is_expelled_is_counted_once_and_does_not_come_again(table: Path) -> None:
    recipe = _recipe(table, *IN_ORDER, "data.max_bad_fraction=0.05")
    with _opened(recipe, size=20) as (door, batches):
        deadly = batches.take()[3]
        batches.expel(deadly, Reason.KILLS_WORKER, "4 workers died of generate")
        again = [prompt.id for _ in range(3) for prompt in batches.take()]
        assert len(again) == 59 and deadly.id not in again
        assert door.quarantine.counts() == {"kills_worker": 1}
    (refused,) = Quarantine.read(table.parent / "run" / "quarantine" / "test_train.parquet")
    assert (refused.row_id, refused.detail) == (deadly.id, "4 workers died of generate")


def test_a_batch_that_is_lost_on_its_way_is_not_passed_over(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(table)
    with _opened(recipe, size=7) as (_, batches):
        expected = _ids(batches, 3)
    with _opened(recipe, size=7) as (_, batches):
        first = _ids(batches, 1)
        with monkeypatch.context() as patch:
            patch.setattr(ReadingRoles.Done, "result", lambda _: raises(InputsLost(FEATURES, "gone")))
            with pytest.raises(InputsLost):
                batches.take()
        assert batches.cursor == 1
        assert first + _ids(batches, 2) == expected


def raises(error: Exception) -> Any:
    raise error


def test_prompts_that_were_lost_are_asked_for_again_as_such(table: Path) -> None:
    recipe = _recipe(table)
    roles = ReadingRoles(recipe)
    door = Door(cast(Any, roles), recipe, "train", stage="test", needs=Needs())
    (prompt,) = door.admit(["row-3"])
    assert not roles.again
    assert [each.id for each in door.again([prompt])] == ["row-3"] and roles.again


def test_rows_shown_in_another_way_come_without_those_that_do_not_go_so_and_nothing_is_quarantined(table: Path) -> None:
    directory = _changed(table, {3: {"images": []}})
    recipe = _recipe(directory)
    roles = ReadingRoles(recipe)
    door = Door(cast(Any, roles), recipe, "train", stage="test", needs=Needs())
    wanted = {RowKey(0, row): Showing(donor=RowKey(0, row + 1)) for row in (7, 3, 5)}
    assert [prompt.id for prompt in door.show(wanted)] == ["row-7", "row-5"]
    assert roles.shown == wanted and len(door.quarantine) == 0


def _pair_batches(directory: Path, num_pairs: int, held_out: HeldOut, *options: str) -> tuple[Door, PairBatches]:
    """Comparisons on the first ten prompts in turn, in batches of 8; the first chosen token is their number."""
    recipe = _recipe(directory, "data.max_bad_fraction=0.1", *options)
    path = directory.parent / "preferences.parquet"
    write_preferences(
        path,
        (
            Preference(f"row-{number % 10}", (number,), (0,), "yes", "no", "anna", RaterKind.HUMAN)
            for number in range(num_pairs)
        ),
    )
    door = Door(cast(Any, ReadingRoles(recipe)), recipe, "train", stage="test", needs=Needs())
    return door, PairBatches(door, recipe, PreferenceTable(path), size=8, held_out=held_out)


def test_comparisons_come_in_batches_of_which_an_epoch_holds_each_once_without_refused_prompts(table: Path) -> None:
    directory = _changed(table, {3: {"images": []}})
    lowest = HeldOut.of((f"row-{number % 10}" for number in range(50)), fraction=1e-9, most=1)
    (held_out,) = {number % 10 for number in lowest.rows}
    assert held_out != 3 and len(lowest.rows) == 5
    # Of 50 comparisons 45 are learned.
    door, batches = _pair_batches(directory, 50, lowest)
    assert batches.num_rows == 45
    batches.announce(3)
    taken = [batches.take() for _ in range(45)]
    assert [prompt.id for batch in taken for _, prompt in batch] == [
        pair.prompt_id for each in taken for pair, _ in each
    ]
    numbers = [pair.completions[0][0] for batch in taken for pair, _ in batch]
    learned = [number for number in range(50) if number % 10 not in (3, held_out)]
    # 45 batches of 8 are 8 epochs; those on the refused prompt are counted instead.
    assert sorted(numbers) == sorted(8 * learned)
    assert numbers[: len(learned)] != learned and sorted(numbers[: len(learned)]) == learned
    assert batches.num_refused == 8 * 5
    assert door.metrics() == {"counts/quarantined:placeholder_mismatch": 1.0}


def test_comparisons_of_which_all_are_held_out_are_an_error(table: Path) -> None:
    everything = HeldOut(below=1.0, rows=tuple(range(20)))
    with pytest.raises(ValueError, match=r"preferences\.parquet: all 20 rows are held out"):
        _pair_batches(table, 20, everything)
