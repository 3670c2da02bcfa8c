"""Tables in one file or in parts, on disk or elsewhere, and the media beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow.parquet as pq
import pytest

from pipeline.data.layout import Group, Layout, parts_of
from pipeline.data.media_store import MediaStore
from pipeline.data.schema import Reason, RowError, to_row
from pipeline.data.table import PromptTable, write_prompts
from pipeline.records import MediaKind, Medium, Message, Prompt, Quarantined
from tests.data.tables import picture_prompt, write_parts

PARTS = [[3, 4], [5], [2, 2, 1]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_parts(tmp_path, PARTS)
    return tmp_path


@pytest.fixture
def address(directory: Path) -> Iterator[str]:
    """The same files in a file system that is no disk."""
    place = f"memory://{uuid4().hex}"
    system = fsspec.filesystem("memory")
    system.put(str(directory), place, recursive=True)
    yield place
    system.rm(place, recursive=True)


def test_parts_are_one_table_with_rows_numbered_through(directory: Path) -> None:
    layout = Layout.read(str(directory), "train")
    assert layout.names == tuple(f"train-0000{part}-of-00003.parquet" for part in range(3))
    assert layout.num_rows.tolist() == [3, 4, 5, 2, 2, 1] and layout.total_rows == 17
    assert layout.first.tolist() == [0, 3, 7, 12, 14, 16]
    assert layout.group_of(11) == Group(part=1, place=0, first=7, num_rows=5, size=5)
    assert layout.group_of(12) == Group(part=2, place=0, first=12, num_rows=2, size=2)


def test_the_head_of_a_table_ends_inside_a_group(directory: Path) -> None:
    head = Layout.read(str(directory), "train").head(9)
    assert head.num_rows.tolist() == [3, 4, 2] and head.size.tolist() == [3, 4, 5]
    assert head.group_of(8).first == 7
    assert head.head(100).total_rows == 9


@pytest.mark.parametrize("place", ["directory", "address"])
def test_rows_of_all_parts_are_read_by_id_and_by_number(place: str, request: pytest.FixtureRequest) -> None:
    table = PromptTable(f"{request.getfixturevalue(place)}/train.parquet")
    assert len(table) == 17 and [info.id for info in table.infos()] == [f"row-{row}" for row in range(17)]
    assert table.rows(["row-16", "row-0", "row-7"]) == [16, 0, 7]
    assert table.read(["row-16", "row-3"]) == [picture_prompt(16), picture_prompt(3)]
    assert table.read_rows([11, 2], prefix="cats/")[0] == replace(picture_prompt(11), id="cats/row-11")


def test_a_missing_part_and_a_whole_file_beside_parts_are_errors(directory: Path) -> None:
    (directory / "train-00001-of-00003.parquet").rename(directory / "validation.parquet")
    with pytest.raises(ValueError, match=r"the parts of train are not whole, see train-00001-of-00003\.parquet"):
        parts_of(str(directory), "train")
    (directory / "train.parquet").touch()
    with pytest.raises(ValueError, match=r"train\.parquet and train-00000-of-00003\.parquet are both here"):
        parts_of(str(directory), "train")
    assert parts_of(str(directory), "validation") == ("validation.parquet",)


def test_a_split_that_is_nowhere_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"train\.parquet: no prompt table here.*jobs\.prepare"):
            Layout.read(str(place), "train")


def test_a_split_without_rows_is_an_error_that_names_those_with_rows(directory: Path) -> None:
    (directory / "quarantine.parquet").touch()
    (directory / "validation.parquet").touch()
    with pytest.raises(FileNotFoundError, match=r"is in the split test, but in train, validation; .*prepare\.split"):
        Layout.read(str(directory), "test")


@pytest.mark.parametrize(
    ("split", "again"),
    [
        ("test", "a larger share of test (prepare.split.test; of the built-in data prepare.test_rows)"),
        ("train", "smaller shares of the others (prepare.split.rl, validation, test)"),
        ("val", None),
    ],
)
def test_a_split_that_no_row_is_in_advises_fields_that_there_are(tmp_path: Path, split: str, again: str | None) -> None:
    (tmp_path / "validation.parquet").touch()
    with pytest.raises(FileNotFoundError) as caught:
        parts_of(str(tmp_path), split)
    wanted = (
        "preferences.split)"
        if again is None
        else f", or make the table again with `python -m jobs.prepare` and {again}"
    )
    assert "in validation; name one of these (evaluate.split" in str(caught.value)
    assert str(caught.value).endswith(wanted)


def _stored(directory: Path, data: bytes, *, name: str | None = None) -> str:
    digest = hashlib.sha256(name.encode() if name else data).hexdigest()
    file = directory / "media" / digest[:2] / f"{digest}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return f"media/{digest[:2]}/{digest}.png"


@pytest.mark.parametrize("before", ["", "s3://where/it/was/made/", "../../"])
def test_a_medium_named_by_its_content_is_read_from_beside_the_table(tmp_path: Path, before: str) -> None:
    path = before + _stored(tmp_path, b"the picture")
    row = to_row(picture_prompt(0, path=path, data=b""), ())
    assert MediaStore(str(tmp_path)).filled(row)["images"] == [{"bytes": b"the picture", "path": path}]


def test_a_medium_that_is_gone_or_changed_is_refused_with_a_reason(tmp_path: Path) -> None:
    changed = _stored(tmp_path, b"another picture", name="the picture")
    gone = f"media/00/{'0' * 64}.png"
    prompts = [
        Prompt(f"{kind}-{number}", "task", (Message("user", kind.tag),), (Medium(kind, b"", path),), "answer")
        for kind in MediaKind
        for number, path in enumerate((changed, gone))
    ]
    store = MediaStore(str(tmp_path))
    reasons: list[Reason] = []
    for prompt in prompts:
        with pytest.raises(RowError) as caught:
            store.filled(to_row(prompt, ()))
        reasons.append(caught.value.reason)
    assert reasons == [
        Reason.CORRUPT_IMAGE, Reason.MISSING_BYTES, Reason.CORRUPT_AUDIO, Reason.MISSING_BYTES,
        Reason.CORRUPT_VIDEO, Reason.MISSING_BYTES,
    ]  # fmt: skip


def test_files_that_no_row_uses_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    store = MediaStore(str(tmp_path))
    used, unused = (Path(store.put(Medium(MediaKind.IMAGE, data, None))) for data in (b"used", b"unused"))
    cut_off = unused.with_name(f".{unused.stem}.a_b2c3d4")
    others = [
        tmp_path / "media" / name
        for name in ("cats/1.png", "ab/1.png", f"ab/{'0' * 64}.png", f"{unused.parent.name}/{unused.stem}.png.old")
    ]
    for file in (cut_off, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"mine")
    store.remove_unless({used.name}.__contains__)
    assert used.exists() and not unused.exists() and not cut_off.exists()
    assert all(file.read_bytes() == b"mine" for file in others)


@pytest.mark.parametrize(
    "path",
    [None, "/etc/passwd", "media/../secret.png", "media/ab/secret.png", f"media/ab/{'0' * 64}.png", "secret.png"],
)
def test_no_other_path_is_ever_opened(tmp_path: Path, path: str | None) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media" / "ab").mkdir(parents=True)
    (tmp_path / "media" / "ab" / f"{'0' * 64}.png").write_bytes(b"secret")
    row = to_row(picture_prompt(0, path=path, data=b""), ())
    assert MediaStore(str(tmp_path)).filled(row)["images"] == row["images"]


def test_a_table_whose_media_lie_beside_it_reads_like_one_that_holds_them(tmp_path: Path) -> None:
    write_parts(tmp_path, [[2]])
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    rows[0]["images"][0] = {"bytes": None, "path": _stored(tmp_path, b"picture")}
    rows[1]["images"][0] = {"bytes": None, "path": f"media/00/{'0' * 64}.png"}
    write_prompts(tmp_path / "test.parquet", rows)
    first, second = PromptTable(tmp_path / "test.parquet").read_rows([0, 1])
    assert isinstance(first, Prompt) and first.media[0].data == b"picture"
    assert isinstance(second, Quarantined) and (second.row_id, second.reason) == ("row-1", Reason.MISSING_BYTES)
