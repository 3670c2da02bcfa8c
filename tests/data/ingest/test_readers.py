"""Files of every form as rows: none lost, none twice, the unreadable ones in their places."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError, Form, Source
from pipeline.data.ingest import shards
from pipeline.data.ingest.readers import Raw, RawRow, Unreadable, read
from pipeline.data.ingest.shards import Shard, shards_of, split_in


def rows_of(path: Path, **options: str) -> list[Raw]:
    return [row for shard in shards_of([Source(path=str(path), **options)]) for row in read(shard, root=str(path))]  # pyright: ignore[reportArgumentType]


def good(rows: list[Raw]) -> list[dict[str, object]]:
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [dict(row.values) for row in rows if isinstance(row, RawRow)]


def lost(rows: list[Raw]) -> list[str]:
    """What is said of rests of files that cannot be read."""
    return [row.detail for row in rows if isinstance(row, Unreadable) and row.is_rest]


def test_json_lines_in_shards_of_any_size_give_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.jsonl"
    expected = [{"n": n, "text": "x" * (n % 37)} for n in range(200)]
    path.write_text("\n".join(json.dumps(row) for row in expected))
    whole = rows_of(path)
    assert good(whole) == expected
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(shards, "JSON_BYTES", size)
        assert rows_of(path) == whole  # places too: they do not depend on the cut


def test_broken_lines_cost_themselves_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    deep = "[" * 100_000
    path.write_bytes(b'{"n": 1}\n{"n": \n\n[1]\n\xff\xfe\n' + deep.encode() + b'\n{"n": 2}\n')
    rows = rows_of(path)
    assert [isinstance(row, RawRow) for row in rows] == [True, False, False, False, False, True]
    assert len({row.place for row in rows}) == 6


def test_a_json_array_its_data_field_and_lines_under_its_name_are_read(tmp_path: Path) -> None:
    expected = [{"n": 1}, {"n": 2}]
    for number, text in enumerate((json.dumps(expected), json.dumps({"data": expected}), '{"n": 1}\n{"n": 2}\n')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        assert good(rows_of(path)) == expected
    cut = tmp_path / "cut.json"
    cut.write_text('[{"n": 1}, {"n": 2')
    (detail,) = lost(rows_of(cut))
    assert "none of 18 bytes could be read" in detail


def test_csv_rows_with_quotes_and_line_ends_inside_and_one_that_is_short(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["question", "answer"], ['say "a,\nb"', "ü"], ["short"], ["q", "a"]])
    with path.open("ab") as file:
        file.write(b"latin,\xfc\n")
    rows = rows_of(path)
    assert good([rows[0], rows[2]]) == [{"question": 'say "a,\nb"', "answer": "ü"}, {"question": "q", "answer": "a"}]
    assert [type(row) for row in rows] == [RawRow, Unreadable, RawRow, Unreadable]


def test_a_cell_of_any_size_is_read_and_those_after_it(tmp_path: Path) -> None:
    large = "x" * 200_000
    (tmp_path / "t.csv").write_text(f"n,text\n1,{large}\n2,small\n")
    assert good(rows_of(tmp_path / "t.csv")) == [{"n": "1", "text": large}, {"n": "2", "text": "small"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_is_never_closed_costs_every_line_that_it_swallows(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.csv"
    lines = ["n,text", "1,a", '2,"b', *(f"{n},c" for n in range(3, 8)), '8,"d"', "9,e"]
    path.write_bytes("".join(line + end for line in lines).encode())
    rows = rows_of(path)
    assert [type(row) for row in rows] == [RawRow, *[Unreadable] * 7, RawRow]  # lines 3 to 9
    assert [row.values for row in rows if isinstance(row, RawRow)] == [{"n": "1", "text": "a"}, {"n": "9", "text": "e"}]
    assert len({row.place for row in rows}) == 9 and not lost(rows)
    assert isinstance(rows[1], Unreadable) and "line 3" in rows[1].detail


def test_a_csv_that_ends_within_a_row_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for end, num_lost in (('3,"not clo', 1), ("3", 1), ("3,c", 0), ("3,c,d", 0), ("3\n", 0)):
        path.write_text(f"n,text\n1,a\n2,b\n{end}")
        rows = rows_of(path)
        assert len(rows) == 3 and len(lost(rows)) == num_lost, end
    path.write_text('n,text\n1,a\n2,"b')
    assert "after 1 rows" in lost(rows_of(path))[0]


def test_cells_of_a_csv_that_say_nothing_hold_no_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,d\n,nan,None,0\nNaN,<NA>,nano,7.0\n")
    assert good(rows_of(tmp_path / "t.csv")) == [
        {"a": None, "b": None, "c": None, "d": "0"},
        {"a": None, "b": None, "c": "nano", "d": "7.0"},
    ]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstd)])
@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_compressed_tables_are_read_and_one_that_is_cut_off_is_lost(
    tmp_path: Path, name: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    noise = np.random.default_rng(0).integers(0, 10**9, 50_000)
    rows = [{"n": str(n)} for n in noise]
    text = {
        "t.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "t.json": json.dumps(rows),
        "t.csv": "n\n" + "".join(f"{n}\n" for n in noise),
    }[name]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(compress(text.encode()))
    assert good(rows_of(path)) == rows
    path.write_bytes(path.read_bytes()[:-100])
    assert len(lost(rows_of(path))) == 1


def test_json_lines_that_end_within_a_row_or_have_a_hole_are_lost_from_there(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n"')
    assert [type(row) for row in rows_of(path)] == [RawRow, RawRow, Unreadable]
    assert "the file ends within this row" in lost(rows_of(path))[0]
    path.write_bytes(b'{"n": 1}\n{"n": ' + bytes(4096) + b'2}\n{"n": 3}\n')
    assert [type(row) for row in rows_of(path)] == [RawRow, Unreadable, RawRow]
    assert "hole" in lost(rows_of(path))[0]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 987654321\n"
PAGE = b"\n<!DOCTYPE html>\n<html><title>404</title></html>\n"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "tar", "jsonl.gz", "csv.zst"])
@pytest.mark.parametrize(
    ("content", "said"), [(POINTER, "git lfs pull"), (PAGE, "a page"), (b"PK\3\4", "ZIP"), (b"", "an empty file")]
)
def test_what_stands_in_the_place_of_a_table_is_lost_rows_and_named_with_its_cure(
    tmp_path: Path, suffix: str, content: bytes, said: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(content)
    (detail,) = lost(rows_of(path))
    is_archive = said == "ZIP" and suffix in ("tar", "jsonl.gz", "csv.zst")  # which may be packed, if in another way
    assert is_archive or said in detail


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"n": 1}\n'.encode("utf-16")),
        ("t.jsonl", '{"n": 1}\n'.encode("utf-16-le")),
        ("t.csv", "n,m\n1,2\n".encode("utf-16-le")),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n" * 9),
        ("t.jsonl", b"PAR1\x15\4\0\n"),
    ],
)
def test_what_is_no_text_is_no_bad_line_of_a_table(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (detail,) = lost(rows_of(tmp_path / name))
    assert "no text in UTF-8" in detail and "iconv" in detail


@pytest.mark.parametrize(
    ("name", "pack"), [("t.JSONL.GZ", gzip.compress), ("t.csv.Gz", gzip.compress), ("T.CSV.BZ2", bz2.compress)]
)
def test_names_in_capitals_say_how_a_table_is_packed_too(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    text = '{"n": "1"}\n{"n": "2"}\n' if "json" in name.lower() else "n\n1\n2\n"
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert good(rows_of(tmp_path)) == [{"n": "1"}, {"n": "2"}]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.json"])
def test_a_packed_table_whose_name_does_not_say_so_is_lost_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"n\n" * 100_000))
    assert "gunzip" in lost(rows_of(tmp_path / name))[0]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_hole_in_a_csv_loses_the_rest_of_it(tmp_path: Path, suffix: str) -> None:
    text = b"n,text\n" + b"".join(f"{n},text {n}\n".encode() for n in range(400))
    text = text.replace(b",", b"\t") if suffix == "tsv" else text
    start, end = text.index(b"\n80") + 1, text.index(b"\n200") + 1
    path = tmp_path / f"t.{suffix}"
    for hole_start, hole_end in ((start, end), (start + 2, end + 2), (start, len(text) - 1)):
        path.write_bytes(text[:hole_start] + bytes(hole_end - hole_start) + text[hole_end:])
        rows = rows_of(path)
        assert len(good(rows[:-1])) == 80 and "after 80 rows: a hole" in lost(rows)[0]
    path.write_bytes(bytes(len(text)))
    assert "a hole" in lost(rows_of(path))[0]


HEADS = {
    "another separator": "n;text\n1;a, b\n2;c\n",
    "a separator named by Excel": "sep=;\nn;text\n1;a, b\n2;c\n",
    "tabs": 'n\ttext\n1\ta, b\n2\t"c"\n',
    "blank lines before": '\n \r\nn,text\n1,"a, b"\n2,c\n',
    "blanks behind commas": 'n, text\n1, "a, b"\n2, c\n',
    "blanks around one name": 'n ,text\n1,"a, b"\n2,c\n',
}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("head", HEADS)
def test_a_csv_is_read_as_its_head_says_it_is_written(tmp_path: Path, head: str, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(HEADS[head].encode(encoding))
        assert good(rows_of(path)) == [{"n": "1", "text": "a, b"}, {"n": "2", "text": "c"}], encoding


def test_lines_of_a_csv_are_counted_from_the_first_one_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\nsep=;\nn;text\n1;a\n2\n3;c\n")
    (bad,) = [row for row in rows_of(tmp_path / "t.csv") if isinstance(row, Unreadable)]
    assert bad.detail == "line 5: 1 cells under 2 columns"


def test_a_stray_quote_in_a_tsv_costs_the_lines_that_it_joins_and_no_text_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('n\ttext\n1\ta\n2\t"To be\n3\tb\n4\tor not"\n5\tc\n')
    rows = rows_of(path)
    assert [type(row) for row in rows] == [RawRow, *[Unreadable] * 3, RawRow] and not lost(rows)
    path.write_text('n\ttext\n1\t"a\n2\tb"c\n3\td\n')
    (bad, *_) = rows_of(path)
    assert isinstance(bad, Unreadable) and "is doubled" in bad.detail
    texts = ["def f():\n\treturn 1", "a\n\nb", "x\ty\nz"]
    with path.open("w", newline="") as file:
        csv.writer(file, dialect="excel-tab").writerows([["n", "text"], *enumerate(texts)])
    assert [row["text"] for row in good(rows_of(path))] == texts


def test_a_name_above_two_columns_is_refused_before_one_of_them_is_lost(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,image,image,answer\nq,a.png,b.png,a\n")
    assert "2 columns are called 'image'" in lost(rows_of(tmp_path / "t.csv"))[0]
    (tmp_path / "nameless.csv").write_text("q,a,,\n1,2,,\n")
    assert good(rows_of(tmp_path / "nameless.csv")) == [{"q": "1", "a": "2", "": None}]
    twice = pa.Table.from_arrays([pa.array(["yes"]), pa.array(["no"])], names=["answer", "answer"])
    pq.write_table(twice, tmp_path / "t.parquet")
    with pa.ipc.new_stream(tmp_path / "t.arrow", twice.schema) as out:
        out.write_table(twice)
    for name in ("t.parquet", "t.arrow"):
        assert "2 columns are called 'answer'" in lost(rows_of(tmp_path / name))[0]


def test_a_key_that_stands_twice_in_an_object_costs_its_row_unless_both_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1, "a": 2}\n{"a": 1, "a": 1}\n{"b": [{"a": 1, "a": 2}]}\n{"a": 3}\n')
    rows = rows_of(path)
    assert [type(row) for row in rows] == [Unreadable, RawRow, Unreadable, RawRow] and not lost(rows)
    assert isinstance(rows[0], Unreadable) and "'a' stands twice, with 1 and 2" in rows[0].detail


def test_an_array_in_a_line_is_as_many_rows_as_it_has(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"n": 1}\n[{"n": 2}, {"n": 3}, 4]\n')
    rows = rows_of(path)
    assert good(rows[:3]) == [{"n": 1}, {"n": 2}, {"n": 3}] and isinstance(rows[3], Unreadable)
    assert len({row.place for row in rows}) == 4


@pytest.mark.parametrize(
    ("content", "may_be_many"),
    [
        ({"rows": [{"n": 1}, {"n": 2}]}, True),
        ({"n": {"0": 1, "1": 2}, "m": {"0": 3, "1": 4}}, True),
        ({"rows": [{"n": 1}]}, True),
        ({"1": {"question": "Q"}, "2": {"question": "Q", "hint": "H"}}, True),
        ({"version": 1, "1": {"question": "Q"}, "2": {"question": "Q", "hint": "H"}}, True),
        ({"question": ["Q", "R"], "answer": ["A", "B"], "n": 2}, True),
        ({"question": "Q", "answer": "A"}, False),
        ({"question": "Q", "choices": {"A": "1", "B": "2"}}, False),
        ({"messages": [{"role": "user", "content": "Q"}] * 2, "images": ["a.png"]}, False),
    ],
)
def test_an_object_that_may_be_a_table_is_told_from_a_row(
    tmp_path: Path, content: dict[str, Any], may_be_many: bool
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(content))
    (row,) = rows_of(tmp_path / "t.json")
    assert isinstance(row, RawRow) and row.may_be_many is may_be_many


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


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_webdataset_samples_hold_a_field_an_extension(tmp_path: Path) -> None:
    path = tmp_path / "000.tar"
    tar(
        path,
        {
            "a/1.png": b"one",
            "a/1.json": b'{"question": "Q"}',
            "a/1.txt": "ü\n".encode(),
            "a/2.0.jpg": b"two",
            "a/2.1.jpg": b"three",
            "a/2.cls": b"7",
            "a/3.json": b"{",
            "a/3.png": b"x",
            "a/4.wav": b"four",
        },
    )
    rows = rows_of(path)
    assert [type(row) for row in rows] == [RawRow, RawRow, Unreadable, RawRow]
    one, two, four = good([rows[0], rows[1], rows[3]])
    assert one == {"images": [{"bytes": b"one", "path": "a/1.png"}], "question": "Q", "text": "ü"}
    assert (two["label"], [each["bytes"] for each in two["images"]]) == ("7", [b"two", b"three"])  # pyright: ignore
    assert four == {"audios": [{"bytes": b"four", "path": "a/4.wav"}]}


@pytest.mark.parametrize(
    ("members", "num_good", "said"),
    [
        (["0.png", "0.txt", "0.png", "0.txt"], 0, "0.png stands twice in its sample"),
        (["0.txt", "0.txt"], 0, "0.txt stands twice in its sample"),
        (["0.png", "1.png", "0.txt", "1.txt"], 2, "the sample 0 goes on behind others"),
    ],
)
def test_samples_that_would_be_joined_or_split_lose_the_rest_of_a_tar_file(
    tmp_path: Path, members: list[str], num_good: int, said: str
) -> None:
    tar(tmp_path / "t.tar", [(name, b"x") for name in members])
    rows = rows_of(tmp_path / "t.tar")
    assert len(good(rows[:-1])) == num_good and said in lost(rows)[0]


def test_values_of_one_name_in_a_sample_cost_it_unless_they_are_equal(tmp_path: Path) -> None:
    members = {
        "0.json": b'{"images": ["0.png"]}',
        "0.png": b"x",
        "1.json": b'{"text": "a"}',
        "1.txt": b"b",
        "2.json": b'{"text": "a"}',
        "2.txt": b"a",
    }
    tar(tmp_path / "t.tar", members)
    rows = rows_of(tmp_path / "t.tar")
    assert [type(row) for row in rows] == [Unreadable, Unreadable, RawRow] and not lost(rows)
    assert isinstance(rows[0], Unreadable) and "'images' stands twice" in rows[0].detail


def test_hidden_files_belong_to_no_sample_and_arrays_are_left_as_they_are(tmp_path: Path) -> None:
    array = b"\x93NUMPY\1\0\xff\xff"
    files = {"._0.png": b"\0\5\x16", "0.png": b"x", "._0.txt": b"\0\5\x16", "0.txt": b"x", "0.npy": array}
    tar(tmp_path / "t.tar", files)
    (row,) = good(rows_of(tmp_path / "t.tar"))
    assert row == {"images": [{"bytes": b"x", "path": "0.png"}], "text": "x", "npy": array}


def test_a_tar_file_that_is_cut_off_gives_what_it_holds_and_says_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    tar(path, {f"{n}.txt": bytes(2000) for n in range(4)})
    path.write_bytes(path.read_bytes()[:6000])
    rows = rows_of(path)
    assert [type(row) for row in rows] == [RawRow, RawRow, Unreadable]
    assert len(lost(rows)) == 1


def test_whatever_else_ends_a_tar_file_before_its_end_mark_loses_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    tar(path, {f"{n}.txt": b"a" for n in range(3)})  # a header and a block each
    whole = path.read_bytes()
    damaged = {
        # A sample may go on behind the last file that is there.
        "between two files": (whole[:2048], 1),
        "within a header": (whole[: 2048 + 100], 1),
        "a header that is none": (whole[:1024] + b"x" * 512 + whole[1536:], 0),
        "an archive that was appended": (whole + whole, 3),
        "more zeros than tar fills up with": (whole[:3072] + bytes(1024 + tarfile.RECORDSIZE), 3),
        "zeros from a sample on": (whole[:1024] + bytes(50_000), 1),
        "zeros alone": (bytes(50_000), 0),
    }
    assert len(good(rows_of(path))) == 3
    path.write_bytes(whole[:3072] + bytes(512 + tarfile.RECORDSIZE))
    assert len(good(rows_of(path))) == 3
    for name, (content, num_good) in damaged.items():
        path.write_bytes(content)
        rows = rows_of(path)
        assert (len(good(rows[:-1])), len(lost(rows))) == (num_good, 1), name
    packed = tmp_path / "t.tgz"
    path.unlink()
    packed.write_bytes(gzip.compress(whole)[:-30])
    assert len(lost(rows_of(packed))) == 1


def test_folders_name_the_labels_of_their_files(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.JPG", "test/cat/3.wav", "train/dog/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = rows_of(tmp_path)
    found = {row.place: row.values for row in rows if isinstance(row, RawRow)}
    assert found == {
        "test/cat/3.wav": {"audios": [{"path": "3.wav"}], "label": "cat"},
        "train/cat/1.png": {"images": [{"path": "1.png"}], "label": "cat"},
        "train/dog/2.JPG": {"images": [{"path": "2.JPG"}], "label": "dog"},
    }


def test_a_file_of_a_folder_whose_ending_nobody_reads_counts_and_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("1.png", "2.HEIC", "3.tiff", "4.wmv", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    rows = rows_of(tmp_path)
    assert [row.place for row in rows if isinstance(row, RawRow)] == ["1.png", "3.tiff"]
    found = {row.place: row.detail for row in rows if isinstance(row, Unreadable) and not row.is_rest}
    assert list(found) == ["2.HEIC", "4.wmv"]
    assert ".heic is the ending of no form that is read: png, jpg" in found["2.HEIC"]


def test_a_folder_with_a_table_of_its_files_is_read_by_the_table(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat"}\n')
    assert good(rows_of(tmp_path)) == [{"file_name": "1.png", "text": "a cat"}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_a_table_of_the_files_of_a_folder_may_be_of_any_form_and_in_capitals(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    path = tmp_path / f"METADATA.{suffix.upper()}"
    separator = "\t" if suffix == "tsv" else ","
    path.write_text(f"file_name{separator}text\n1.png{separator}a cat\n")
    if suffix == "jsonl":
        path.write_text('{"file_name": "1.png", "text": "a cat"}\n')
    if suffix == "parquet":
        pq.write_table(pa.table({"file_name": ["1.png"], "text": ["a cat"]}), path)
    for form in ("auto", "folder"):
        assert good(rows_of(tmp_path, form=form)) == [{"file_name": "1.png", "text": "a cat"}]


@pytest.mark.parametrize(
    ("other", "is_refused"),
    [
        ("b.csv", True), ("b.tar", True), ("b.jsonl.xz", True), ("b.jsonl.lz4", True), ("b.parquet.gz", True),
        ("b.xlsx", True), ("dataset_info.json", False), ("README.md", False), ("LICENSE", False), ("b.txt", False),
        ("b.yaml", False), ("b.png", False),
    ],
)  # fmt: skip
def test_tables_of_several_forms_are_refused_until_one_is_meant_and_the_others_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, is_refused: bool
) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    (tmp_path / other).write_bytes(b"x")
    if is_refused:
        with pytest.raises(ConfigError, match=rf"several forms here, .*{other}.*form: \.\.\."):
            rows_of(tmp_path)
    assert good(rows_of(tmp_path, form="json" if is_refused else "auto")) == [{"n": 1}]
    assert (other in capsys.readouterr().out) is is_refused


def test_media_above_which_lies_no_table_of_a_folder_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/a/1.png", "test/cat/2.png", "test/notes.txt", "captions.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a/1.png"}\n')
    assert good(rows_of(tmp_path)) == [{"file_name": "a/1.png"}]
    said = capsys.readouterr().out
    assert "2 files are not read" in said and "captions.csv" in said and "test/cat/2.png" in said


def test_a_file_that_is_not_what_its_name_says_is_lost_and_the_others_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "c.parquet").write_bytes(b"")
    rows = rows_of(tmp_path)
    assert [type(row) for row in rows] == [Unreadable, RawRow, Unreadable]
    assert len(lost(rows)) == 2  # how many rows were in them is unknown


def test_a_source_that_is_not_there_or_of_no_known_form_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is here"):
        shards_of([Source(path=str(tmp_path / "missing"))])
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no file of a known form here"):
        shards_of([Source(path=str(tmp_path))])
    with pytest.raises(ConfigError, match=r"no \.csv or \.tsv file here"):
        shards_of([Source(path=str(tmp_path), form=Form.CSV)])


def test_files_behind_any_address_that_fsspec_opens_are_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/set/part/one.jsonl", b'{"n": 1}\n{"n": 2}\n')
    source = Source(path="memory://set")
    rows = [row for shard in shards_of([source]) for row in read(shard, root=source.path)]
    assert good(rows) == [{"n": 1}, {"n": 2}]
    assert [row.place for row in rows] == ["part/one.jsonl-0", "part/one.jsonl-9"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00003.parquet", "train"),
        ("data/val_2.jsonl", "validation"),
        ("dev.csv", "validation"),
        ("test/cat/1.png", "test"),
        ("trains/cat.png", None),
        ("cats.csv", None),
    ],
)
def test_names_of_files_and_directories_say_the_split(path: str, split: str | None) -> None:
    assert split_in(path) == split


def test_shards_can_be_sent_to_workers() -> None:
    shard = Shard(0, Form.JSON, ("a.jsonl",), 0, 10)
    assert shard.path == "a.jsonl"
