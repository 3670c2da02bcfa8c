"""Files of every form as rows: none lost, none twice, the unreadable ones in their places."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import datasets
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
    (row,) = rows_of(cut)
    assert isinstance(row, Unreadable)


def test_csv_rows_with_quotes_and_line_ends_inside_and_one_that_is_short(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["question", "answer"], ['say "a,\nb"', "ü"], ["short"], ["q", "a"]])
    with path.open("ab") as file:
        file.write(b"latin,\xfc\n")
    rows = rows_of(path)
    assert good([rows[0], rows[2]]) == [{"question": 'say "a,\nb"', "answer": "ü"}, {"question": "q", "answer": "a"}]
    assert [type(row) for row in rows] == [RawRow, Unreadable, RawRow, Unreadable]


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


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
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


def test_a_tar_file_that_is_cut_off_gives_what_it_holds_and_says_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    tar(path, {f"{n}.txt": bytes(2000) for n in range(4)})
    path.write_bytes(path.read_bytes()[:6000])
    rows = rows_of(path)
    assert [type(row) for row in rows] == [RawRow, RawRow, Unreadable]


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


def test_a_folder_with_a_table_of_its_files_is_read_by_the_table(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat"}\n')
    assert good(rows_of(tmp_path)) == [{"file_name": "1.png", "text": "a cat"}]


def test_a_file_that_is_not_what_its_name_says_costs_itself_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), tmp_path / "b.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "c.parquet").write_bytes(b"")
    rows = rows_of(tmp_path)
    assert [type(row) for row in rows] == [Unreadable, RawRow, Unreadable]


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
