"""What is on disk of all rows: which are in which table, in which order, and what the card counts."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil

from pipeline.data.ingest.index import CACHE_MIB, PROMPTS, Index
from pipeline.data.preferences import JUDGEMENTS, PREFERENCES
from pipeline.records import MediaKind, Quarantined
from tests.data.ingest.index_rows import described, key


def test_rows_go_to_the_tables_they_are_for_in_the_order_of_the_sources() -> None:
    index = Index(":memory:")
    rows = (
        described("plain", place=3),
        described("pair", place=1, is_pair=True, has_margin=True, modalities=["image", "audio"]),
        described("good", place=2, label=True, modalities=["video"]),
        described("bad", shard=1, label=False),
        described("gone", shard=1, place=1, is_pair=True, modalities=["video"]),
        described("other", shard=1, place=2, split="test"),
    )
    for number, row in enumerate(rows):
        assert index.add(number, row, contents=())
    index.leave_out(4)
    of = {table: list(index.places(table, "train", is_sorted=False)) for table in (PROMPTS, PREFERENCES, JUDGEMENTS)}
    assert of == {
        PROMPTS: [(0, 3, "plain"), (0, 1, "pair"), (0, 2, "good")],
        PREFERENCES: [(0, 1, "pair")],
        JUDGEMENTS: [(0, 2, "good"), (1, 0, "bad")],
    }
    assert {table: index.size(table, "train") for table in of} == {table: len(rows) for table, rows in of.items()}
    assert index.kinds(PREFERENCES) == {MediaKind.IMAGE, MediaKind.AUDIO}
    assert index.kinds(JUDGEMENTS) == {MediaKind.VIDEO}
    assert index.has_margins()
    assert index.counts("task") == {"a": {"test": 1, "train": 4}}


def test_a_sorted_split_ends_with_what_nobody_knows_the_value_of_and_equals_keep_their_order() -> None:
    index = Index(":memory:")
    for number, value in enumerate((2.0, None, 1.0, 2.0, None, 0.5)):
        index.add(number, described(str(number), place=number, sort_value=value), contents=())
    assert [place for _, place, _ in index.places(PROMPTS, "train", is_sorted=True)] == [5, 2, 0, 3, 1, 4]


def test_ids_that_repeat_get_a_number_that_no_other_id_has() -> None:
    index = Index(":memory:")
    ids = ("x", "x", "x-2", "x", "y", "x-2")
    found = [index.add(number, described(id), contents=()) for number, id in enumerate(ids)]
    assert found == ["x", "x-2", "x-2-2", "x-3", "y", "x-2-3"]
    assert [id for _, _, id in index.places(PROMPTS, "train", is_sorted=False)] == found


def test_files_are_in_use_as_long_as_a_row_stays() -> None:
    index = Index(":memory:")
    assert index.add(1, described("a", files=["x.png", "y.png"]), contents=())
    assert index.add(3, described("b", files=["x.png", "x.png"]), contents=())
    index.leave_out(1)
    assert [index.uses(name) for name in ("x.png", "y.png")] == [True, False]


def test_any_directory_may_hold_it(tmp_path: Path) -> None:
    place = tmp_path / "100 % #1? a" / "index.sqlite"
    place.parent.mkdir()
    index = Index(place)
    index.add(1, described("a"), contents=())
    assert place.is_file() and index.size(PROMPTS, "train") == 1
    assert Index(":memory:").size(PROMPTS, "train") == 0 and not Path(":memory:").exists()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    index, process = Index(tmp_path / "index.sqlite"), psutil.Process()
    used: list[int] = []
    on_disk: list[int] = []
    for number in range(40_000):
        index.add(number, described(f"{number:01000}"), contents=[bytes.fromhex(key(str(number)))])
        if number % 20_000 == 19_999:
            gc.collect()
            used.append(process.memory_full_info().uss)
            on_disk.append((tmp_path / "index.sqlite").stat().st_size)
    assert index.size(PROMPTS, "train") == 40_000
    assert on_disk[0] > CACHE_MIB * 2**20, "the cache is full"
    assert used[1] - used[0] < (on_disk[1] - on_disk[0]) / 2


def test_names_that_no_file_can_hold_are_written_with_a_mark() -> None:
    index = Index(":memory:")
    index.add(0, described("a", unread=("a\ud83d",)), contents=())
    index.refuse(1, Quarantined("b\ud83d", "wrong_type", "c\ud83d"), is_bad=True)
    assert index.unread() == [("set", "a?", 1)]
    assert index.database.execute("SELECT name, detail FROM refused").fetchall() == [("b?", "c?")]
