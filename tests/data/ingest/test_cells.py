"""Tables of Arrow and Parquet: cells as they were meant, and what is damaged."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Source
from pipeline.data.ingest import shards
from pipeline.data.ingest.readers import RawRow, Unreadable
from pipeline.data.ingest.shards import shards_of, split_in
from tests.data.ingest.test_readers import good, lost, rows_of


def test_a_damaged_row_group_costs_each_of_its_rows_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [f"{n:050d}" for n in range(90)]}), path, row_group_size=30, compression="gzip")
    page = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[page : page + 20] = bytes(20)
    path.write_bytes(data)
    rows = rows_of(path)
    assert [type(row) for row in rows] == [*[RawRow] * 30, *[Unreadable] * 30, *[RawRow] * 30]
    assert [row.place for row in rows] == [f"t.parquet-{n}" for n in range(90)] and not lost(rows)


def test_a_value_of_a_column_that_python_cannot_hold_costs_its_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    assert [type(row) for row in rows_of(tmp_path / "t.parquet")] == [RawRow, Unreadable, RawRow]


def test_what_python_cannot_hold_comes_as_text_and_costs_no_row(tmp_path: Path) -> None:
    columns = {
        "day": pa.array([3_000_000, 0], pa.date32()),  # in the year 10183
        "at": pa.array([0, 1], pa.timestamp("us", "Mars/Phobos")),
    }
    pq.write_table(pa.table({"n": [1, 2], **columns}), tmp_path / "t.parquet")
    rows = good(rows_of(tmp_path / "t.parquet"))
    assert [row["n"] for row in rows] == [1, 2]
    assert (rows[0]["day"], rows[1]["day"]) == ("10183-09-21", date(1970, 1, 1))
    assert rows[1]["at"] == "1970-01-01 00:00:00.000001Z"


def test_numbers_of_16_and_32_bits_are_those_that_were_written_wherever_they_stand(tmp_path: Path) -> None:
    box = pa.struct([("x", pa.float32()), ("n", pa.int64()), ("far", pa.float64())])
    columns = {
        "half": pa.array(np.array([0.1], np.float16)),
        "box": pa.array([{"x": 0.1, "n": 3, "far": 1 / 3}], box),
        "boxes": pa.array([[{"x": 0.7, "n": None, "far": None}, None]], pa.list_(box)),
        "pair": pa.array([[0.1, None]], pa.list_(pa.float32(), 2)),
        "none": pa.array([None], box),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert good(rows_of(tmp_path / "t.parquet")) == [
        {
            "half": 0.1,
            "box": {"x": 0.1, "n": 3, "far": 1 / 3},
            "boxes": [{"x": 0.7, "n": None, "far": None}, None],
            "pair": [0.1, None],
            "none": None,
        }
    ]


def test_classes_have_their_names_inside_lists_and_objects_and_minus_one_is_none(tmp_path: Path) -> None:
    pets = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {
            "label": pets,
            "several": datasets.Sequence(pets),
            "inside": {"label": pets, "n": datasets.Value("int64")},
            "each": [{"label": pets}],
            "columns": datasets.Sequence({"label": pets}),
        }
    )
    row = {"label": -1, "several": [0, 1, -1], "inside": {"label": 1, "n": 1}, "each": [{"label": 0}]}
    table = datasets.Dataset.from_list([{**row, "columns": {"label": [1, 0]}}], features=features)
    table.to_parquet(tmp_path / "t.parquet")
    (found,) = good(rows_of(tmp_path / "t.parquet"))
    assert found == {
        "label": None,
        "several": ["cat", "dog", None],
        "inside": {"label": "dog", "n": 1},
        "each": [{"label": "cat"}],
        "columns": {"label": ["dog", "cat"]},
    }
    floats = pq.read_table(tmp_path / "t.parquet").select(["label"])
    floats = floats.set_column(0, "label", pa.array([1.0])).replace_schema_metadata(floats.schema.metadata)
    pq.write_table(floats, tmp_path / "t.parquet")  # as pandas does
    assert good(rows_of(tmp_path / "t.parquet")) == [{"label": "dog"}]


def test_numbers_of_32_bits_are_those_that_were_written(tmp_path: Path) -> None:
    columns = {"x": pa.array([0.1, None], pa.float32()), "box": pa.array([[0.7, 2.0], []], pa.list_(pa.float32()))}
    pq.write_table(pa.table({**columns, "y": pa.array([0.1, 1 / 3])}), tmp_path / "t.parquet")
    assert good(rows_of(tmp_path / "t.parquet")) == [
        {"x": 0.1, "box": [0.7, 2.0], "y": 0.1},
        {"x": None, "box": [], "y": 1 / 3},
    ]


def test_an_arrow_stream_that_was_cut_off_is_lost_from_there(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table, ends = pa.table({"n": list(range(100))}), list[int]()
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        for batch in table.to_batches(max_chunksize=50):
            out.write_batch(batch)
            ends.append(file.tell())
    whole = path.read_bytes()
    assert len(good(rows_of(path))) == 100
    for end in (ends[0], ends[0] + 100):  # between two batches, and within one
        path.write_bytes(whole[:end])
        rows = rows_of(path)
        assert len(good(rows[:-1])) == 50 and len(lost(rows)) == 1


def test_what_lies_behind_the_end_mark_of_an_arrow_stream_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table, ends = pa.table({"n": list(range(200))}), list[int]()
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        for batch in table.to_batches(max_chunksize=50):
            out.write_batch(batch)
            ends.append(file.tell())
    whole = path.read_bytes()
    damaged = {
        "a stream that was appended": (whole + whole, 200),
        "a hole": (whole[: ends[0]] + bytes(ends[1] - ends[0]) + whole[ends[1] :], 50),
        "zeros to the end": (whole[: ends[0]] + bytes(len(whole) - ends[0]), 50),
    }
    for name, (content, num_good) in damaged.items():
        path.write_bytes(content)
        rows = rows_of(path)
        assert (len(good(rows[:-1])), len(lost(rows))) == (num_good, 1), name


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_arrow_files_that_say_where_their_batches_lie_are_read(tmp_path: Path, name: str) -> None:
    table = pa.table({"n": list(range(100))})
    with pa.ipc.new_file(tmp_path / name, table.schema) as out:
        for batch in table.to_batches(max_chunksize=40):
            out.write_batch(batch)
    rows = rows_of(tmp_path)
    assert good(rows) == table.to_pylist() and len({row.place for row in rows}) == 100
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    assert len(lost(rows_of(tmp_path))) == 1


def test_parquet_by_row_groups_with_the_names_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"n": datasets.Value("int64"), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"n": list(range(10)), "label": [0, 1] * 5}, features=features)
    table.to_parquet(tmp_path / "t.parquet", batch_size=3)
    monkeypatch.setattr(shards, "PARQUET_ROWS", 4)
    pieces = shards_of([Source(path=str(tmp_path))])
    rows = rows_of(tmp_path)
    assert len(pieces) > 1
    assert good(rows) == [{"n": n, "label": ["cat", "dog"][n % 2]} for n in range(10)]
    assert [row.place for row in rows] == [f"t.parquet-{n}" for n in range(10)]


def test_what_datasets_saves_to_disk_is_read(tmp_path: Path) -> None:
    both = datasets.DatasetDict()
    both["train"], both["test"] = (datasets.Dataset.from_dict({"n": [n]}) for n in range(2))
    both.save_to_disk(tmp_path / "saved")
    rows = [row for row in rows_of(tmp_path / "saved") if isinstance(row, RawRow)]
    found = [(split_in(row.path.removeprefix(str(tmp_path))), row.values["n"]) for row in rows]
    assert sorted(found, key=str) == [("test", 1), ("train", 0)]
