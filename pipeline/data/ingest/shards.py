"""The files of a source, cut into shards that workers read on their own."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.config import ConfigError, Form, Source
from pipeline.data.filesystems import files_below, filesystem
from pipeline.data.inspection import SUFFIXES as MEDIA_SUFFIXES

JSON_BYTES = 2**16
"""A piece of a small file: some hundred rows that name their media by path."""
_PIECES, _MOST_PIECES = 32, 1024
_LARGE_JSON_BYTES = 2**20
PARQUET_ROWS = 512
FOLDER_FILES = 512

SUFFIXES: dict[Form, tuple[str, ...]] = {
    Form.PARQUET: (".parquet",),
    Form.ARROW: (".arrow",),
    Form.JSON: (".jsonl", ".json", ".ndjson"),
    Form.CSV: (".csv", ".tsv"),
    Form.WEBDATASET: (".tar", ".tar.gz", ".tgz"),
    Form.FOLDER: tuple(f".{suffix}" for suffixes in MEDIA_SUFFIXES.values() for suffix in suffixes),
}
"""What the files of each form are called; the first form that is found is the form of a directory."""

_BESIDE = (
    *(".md", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html", ".py", ".ini", ".db"),
    *(".zip", ".tar", ".gz"),
)
"""What lies beside media in a folder, and is none."""

_COMPRESSED = re.compile(r"(\.(?:jsonl|json|ndjson|csv|tsv))\.(?:gz|bz2|zst)$")

SPLITS = {
    **{name: "train" for name in ("train", "training")},
    **{name: "rl" for name in ("rl", "rlhf")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval")},
    **{name: "test" for name in ("test", "testing", "heldout")},
}
"""What others call our splits."""


@dataclass(frozen=True)
class Shard:
    """A piece of a source: files, or a range of one (row groups of a Parquet file, bytes of a JSON Lines file)."""

    source: int
    form: Form
    paths: tuple[str, ...]
    start: int = 0
    end: int | None = None

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def where(self) -> str:
        """For messages."""
        return f"at {self.path}" + ("" if self.end is None else f", {self.start} to {self.end}")


def uncompressed(path: str) -> str:
    """The name of a file in lower case, without the suffix of a compression that is undone while a table is read."""
    return _COMPRESSED.sub(r"\1", path.lower())


def split_in(path: str) -> str | None:
    """The split that a file's name, or a directory above it, says: `train-00000-of-00001.parquet`, `val/cat/1.png`."""
    *directories, name = path.split("/")
    for word in (name.replace(".", "-").replace("_", "-").split("-")[0], *reversed(directories)):
        if word.lower() in SPLITS:
            return SPLITS[word.lower()]
    return None


def form_of(source: Source, files: Sequence[str]) -> Form:
    """The form of a source: as stated, or by the names of its files.

    Raises:
        ConfigError: no file is of a known form.
    """
    if source.form is not Form.AUTO:
        return source.form
    names = [posixpath.basename(file) for file in files]
    if any(name in ("metadata.jsonl", "metadata.csv") for name in names):
        return Form.FOLDER
    for form, suffixes in SUFFIXES.items():
        if any(uncompressed(name).endswith(suffixes) for name in names):
            return form
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise ConfigError(f"prepare.sources path={source.path}: no file of a known form here; known: {known}")


def shards_of(sources: Sequence[Source]) -> list[Shard]:
    """The shards of all sources, in order.

    Raises:
        FileNotFoundError: a source is not there.
        ConfigError: a source has no file of its form.
    """
    shards: list[Shard] = []
    for number, source in enumerate(sources):
        files = files_below(source.path)
        form = form_of(source, files)
        wanted = [file for file in files if uncompressed(file).endswith(SUFFIXES[form])]
        if form is Form.FOLDER:
            # What is of no form that is known counts as a row, and is refused by its name.
            wanted = [file for file in files if posixpath.splitext(file)[1].lower() not in ("", *_BESIDE)]
            tables = [file for file in files if posixpath.basename(file) in ("metadata.jsonl", "metadata.csv")]
            if tables:
                form_of_table = {".jsonl": Form.JSON, ".csv": Form.CSV}
                for table in tables:
                    shards += _pieces(number, form_of_table[posixpath.splitext(table)[1]], table)
                continue
        elif form in (Form.JSON, Form.ARROW):  # what `datasets` keeps beside its tables
            wanted = [
                file
                for file in wanted
                if posixpath.basename(file) not in ("dataset_info.json", "state.json", "dataset_dict.json")
                and not posixpath.basename(file).startswith("cache-")
            ]
        if not wanted:
            raise ConfigError(f"prepare.sources path={source.path}: no {' or '.join(SUFFIXES[form])} file here")
        if form is Form.FOLDER:
            shards += [
                Shard(number, form, tuple(wanted[at : at + FOLDER_FILES])) for at in range(0, len(wanted), FOLDER_FILES)
            ]
        else:
            shards += [piece for file in wanted for piece in _pieces(number, form, file)]
    return shards


def _pieces(source: int, form: Form, path: str) -> Iterator[Shard]:
    if form is Form.PARQUET:
        yield from _row_groups(source, path)
    elif form is Form.JSON and path.lower().endswith((".jsonl", ".ndjson")):
        system, inner = filesystem(path)
        size = system.get_file_info(inner).size or 0
        step = max(JSON_BYTES, min(size // _PIECES, _LARGE_JSON_BYTES), size // _MOST_PIECES)
        for start in range(0, max(size, 1), step):
            yield Shard(source, form, (path,), start, min(start + step, size))
    else:
        yield Shard(source, form, (path,))


def _row_groups(source: int, path: str) -> Iterator[Shard]:
    system, inner = filesystem(path)
    try:
        metadata = pq.read_metadata(inner, filesystem=system)
    except (OSError, ValueError):  # What reads the shard says so, and counts it.
        yield Shard(source, Form.PARQUET, (path,))
        return
    start = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= PARQUET_ROWS or group == metadata.num_row_groups - 1:
            yield Shard(source, Form.PARQUET, (path,), start, group + 1)
            start, rows = group + 1, 0
