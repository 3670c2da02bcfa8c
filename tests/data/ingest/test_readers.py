"""Files of every form as rows: none lost, none twice, the unreadable ones in their places."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Source
from pipeline.data.ingest import shards
from pipeline.data.ingest.readers import Raw, RawRow, Unreadable, read
from pipeline.data.ingest.shards import shards_of


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
