"""Which files of a source are read, as what, and which are named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ConfigError, Form, Source
from pipeline.data.ingest.readers import RawRow, Unreadable, read
from pipeline.data.ingest.shards import Shard, shards_of, split_in
from tests.data.ingest.test_readers import good, lost, rows_of


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
