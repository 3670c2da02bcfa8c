"""Samples of tar files: what belongs together, and where one ends."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from pipeline.data.ingest.readers import RawRow, Unreadable
from tests.data.ingest.test_readers import good, lost, rows_of


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
