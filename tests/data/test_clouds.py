"""Sources and tables in S3 and Google Cloud Storage, by their real protocols: the same rows as from disk."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import prepare
from jobs.command import connect
from pipeline.config import ConfigError, Form, Recipe, Source, load_recipe
from pipeline.data.filesystems import files_below
from pipeline.data.ingest.readers import Raw, read
from pipeline.data.ingest.rows import Prepared, RowPreparer
from pipeline.data.ingest.shards import shards_of
from pipeline.data.layout import Layout
from pipeline.data.media_store import MediaStore
from pipeline.data.order import Mixture, Order
from pipeline.data.schema import Reason, RowError, from_row, to_row
from pipeline.data.stream import RowStream
from pipeline.data.table import PromptTable, write_prompts
from pipeline.records import Prompt, Quarantined
from tests.data import clouds
from tests.data.clouds import Store, upload
from tests.data.ingest import samples
from tests.data.tables import picture_prompt, write_parts


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with clouds.s3(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with clouds.gcs(tmp_path_factory.mktemp("gcs")) as store:
        yield store


@pytest.fixture(params=["s3", "gcs"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def near_s3(s3: Store) -> Iterator[Store]:
    """The store, and a Ray that was started when the environment named it: its workers inherit that."""
    ray.shutdown()
    connect(address="local", num_cpus=8, include_dashboard=False)
    yield s3
    ray.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Source]]:
    directory = tmp_path_factory.mktemp("samples")
    return directory, samples.every_form(directory)


def moved(sources: list[Source], directory: Path, address: str) -> list[Source]:
    """The sources where `upload` put them."""
    return [each.model_copy(update={"path": each.path.replace(str(directory), address)}) for each in sources]


def rows_of(sources: list[Source]) -> list[Raw]:
    return [row for shard in shards_of(sources) for row in read(shard, root=sources[shard.source].path)]


def recipe_of(sources: list[Source], *overrides: str) -> Recipe:
    named = json.dumps([source.model_dump(mode="json") for source in sources])
    return load_recipe(None, [f"prepare.sources={named}", "prepare.count_tokens=false", *overrides])


def prepared(sources: list[Source], *overrides: str) -> list[Prepared | Quarantined]:
    preparer = RowPreparer(recipe_of(sources, *overrides), directory=Path("unused"), processor=None)
    return [
        preparer(row, shard.source)
        for shard in shards_of(sources)
        for row in read(shard, root=sources[shard.source].path)
    ]


def test_every_form_gives_the_rows_that_it_gives_on_disk(local: tuple[Path, list[Source]], store: Store) -> None:
    directory, sources = local
    upload(directory, f"{store.root}/forms")
    found = rows_of(moved(sources, directory, f"{store.root}/forms"))
    expected = rows_of(sources)
    assert len(found) == samples.ROWS * len(samples.FORMS)
    assert [(row.place, getattr(row, "values", row)) for row in found] == [
        (row.place, getattr(row, "values", row)) for row in expected
    ]


def test_media_named_by_path_are_read_from_beside_their_table(local: tuple[Path, list[Source]], store: Store) -> None:
    directory, every = local
    sources = [source for source in every if source.name in ("llava", "swift", "folder")]
    upload(directory, f"{store.root}/media")
    found = prepared(moved(sources, directory, f"{store.root}/media"))
    assert found == prepared(sources)
    assert len(found) == 3 * samples.ROWS and all(isinstance(row, Prepared) for row in found)


def test_media_named_by_address_come_from_the_roots_and_from_nowhere_else(tmp_path: Path, store: Store) -> None:
    (tmp_path / "up" / "open").mkdir(parents=True)
    for name in ("open/0.png", "secret.png"):
        (tmp_path / "up" / name).write_bytes(samples.digit(0)[0])
    upload(tmp_path / "up", f"{store.root}/pictures")
    named = [f"{store.address}/pictures/{name}" for name in ("open/0.png", "secret.png", "open/none.png")]
    rows = [{"question": "<image>?", "answer": "x", "image": name} for name in named]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(path=str(tmp_path / "rows.jsonl"))
    good, *refused = prepared([source], f"data.access.roots=['{store.root}/pictures/open']")
    assert isinstance(good, Prepared) and good.row["images"][0]["bytes"] == samples.digit(0)[0]
    assert [row.reason for row in refused if isinstance(row, Quarantined)] == [Reason.OUTSIDE_ROOTS, Reason.NOT_FOUND]
    assert [row.reason for row in prepared([source]) if isinstance(row, Quarantined)] == [Reason.OUTSIDE_ROOTS] * 3


def test_names_are_taken_as_they_are(tmp_path: Path, store: Store) -> None:
    names = ["a cat/1 + 2.png", "katze ü/100%.png", "what?/%20.png", "#1/a&b=c.png", "@home/x:y.png"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(samples.digit(index)[0])
    upload(tmp_path, f"{store.root}/odd names")
    places = (str(tmp_path), f"{store.root}/odd names")
    here, there = (Source(path=place, question="<image>?", name="odd") for place in places)
    assert files_below(there.path) == sorted(f"{there.path}/{name}" for name in names)
    assert prepared([there]) == prepared([here])
    assert all(isinstance(row, Prepared) for row in prepared([here]))


def test_a_file_is_read_with_few_requests(tmp_path: Path, s3: Store) -> None:
    lines = [json.dumps({"n": n, "text": "x" * 200}) for n in range(4000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.csv").write_text("n,text\n" + "\n".join(f"{n},{'x' * 200}" for n in range(4000)))
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        for n in range(400):
            info = tarfile.TarInfo(f"{n}.txt")
            info.size = 2000
            archive.addfile(info, io.BytesIO(bytes(2000)))
    upload(tmp_path, f"{s3.root}/large")
    for name, form, num_rows in (
        ("a.jsonl", Form.JSON, 4000),
        ("b.csv", Form.CSV, 4000),
        ("c.tar", Form.WEBDATASET, 400),
    ):
        source = Source(path=f"{s3.root}/large/{name}", form=form)
        before = s3.num_reads()
        assert len(rows_of([source])) == num_rows
        assert 0 < s3.num_reads() - before <= 2 * len(shards_of([source]))


def test_a_source_that_is_not_there_is_said_at_once(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is here"):
        shards_of([Source(path=f"{store.root}/nothing")])


@pytest.mark.parametrize("field", ["prepare.sources=[{path: '%s'}]", "data.path=%s", "data.mixture=[{path: '%s'}]"])
@pytest.mark.parametrize("address", ["s3://shelf/a?region=eu-west-1", "s3://name:secret@shelf/a"])
def test_options_and_passwords_in_an_address_are_refused_with_what_to_do_instead(field: str, address: str) -> None:
    with pytest.raises(ConfigError, match=r"write s3://bucket/path, and set AWS_REGION, AWS_ENDPOINT_URL, "):
        load_recipe(None, [field % address])


def test_a_table_in_parts_and_its_media_are_found_in_a_store(tmp_path: Path, store: Store) -> None:
    write_parts(tmp_path, [[3, 4], [5]])
    data = samples.digit(0)[0]
    digest = hashlib.sha256(data).hexdigest()
    path = f"media/{digest[:2]}/{digest}.png"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(data)
    row = to_row(picture_prompt(0, path=f"/where/it/was/{path}", data=b""), ())
    row["images"][0]["bytes"] = None
    write_prompts(tmp_path / "test.parquet", [row])
    upload(tmp_path, f"{store.root}/table")
    here, there = (Layout.read(place, "train") for place in (str(tmp_path), f"{store.root}/table"))
    assert there.names == here.names and there.num_rows.tolist() == [3, 4, 5]
    assert PromptTable(f"{store.root}/table/train.parquet").read(["row-9", "row-2"]) == [
        picture_prompt(9), picture_prompt(2)
    ]  # fmt: skip
    (prompt,) = PromptTable(f"{store.root}/table/test.parquet").read_rows([0])
    assert isinstance(prompt, Prompt) and prompt.media[0].data == data
    gone: dict[str, Any] = to_row(picture_prompt(1, path=f"media/00/{'0' * 64}.png", data=b""), ())
    with pytest.raises(RowError) as caught:
        MediaStore(f"{store.root}/table").filled(gone)
    assert caught.value.reason is Reason.MISSING_BYTES


def test_training_draws_the_rows_from_a_store_in_the_order_of_the_disk(tmp_path: Path, near_s3: Store) -> None:
    write_parts(tmp_path, [[8] * 5, [8] * 4])
    upload(tmp_path, f"{near_s3.root}/stream")
    drawn: list[list[str]] = []
    for place in (str(tmp_path), f"{near_s3.root}/stream"):
        order = Order(Layout.read(place, "train"), seed=3, batch_rows=8, shuffle_rows=24)
        with closing(RowStream([order], Mixture((1.0,)), position=5, num_readers=2)) as stream:
            blocks = [(ray.get(row.block), row.place) for row in stream.draw(100) if row.block is not None]
        drawn.append([block["id"][row].as_py() for block, row in blocks])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 100


def test_a_table_is_prepared_out_of_a_store(local: tuple[Path, list[Source]], tmp_path: Path, near_s3: Store) -> None:
    directory, every = local
    sources = [source for source in every if source.name in ("hugging_face", "swift")]
    upload(directory, f"{near_s3.root}/job")
    recipe = recipe_of(
        moved(sources, directory, f"{near_s3.root}/job"),
        f"run.directory={tmp_path}",
        f"model.path={tmp_path}",  # Nothing of it is read where no tokens are counted.
        "prepare.num_workers=1",
        "prepare.split={validation: 0, test: 0}",
    )
    assert prepare.run(recipe) == {"train/hugging_face": samples.ROWS, "train/swift": samples.ROWS}
    table = PromptTable(recipe.data_path / "train.parquet")
    expected = [row.row for row in prepared(sources) if isinstance(row, Prepared)]
    assert table.read_rows(range(len(table))) == [from_row(row) for row in expected]
