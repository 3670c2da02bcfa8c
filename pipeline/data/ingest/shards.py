"""The files of a source, cut into shards that workers read on their own."""

from __future__ import annotations

import codecs
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.config import ConfigError, Form, Source
from pipeline.data.filesystems import files_below, filesystem
from pipeline.data.inspection import EDGE_BYTES, format_of
from pipeline.data.inspection import SUFFIXES as MEDIA_SUFFIXES

BUFFER_BYTES = 2**20
"""A store answers every read with a request: few large ones, then."""
JSON_BYTES = 2**16
"""A piece of a small file: some hundred rows that name their media by path."""
_PIECES, _MOST_PIECES = 32, 1024
_LARGE_JSON_BYTES = 2**20
PARQUET_ROWS = 512
FOLDER_FILES = 512

SUFFIXES: dict[Form, tuple[str, ...]] = {
    Form.PARQUET: (".parquet",),
    Form.ARROW: (".arrow", ".feather"),
    Form.JSON: (".jsonl", ".json", ".ndjson"),
    Form.CSV: (".csv", ".tsv"),
    Form.WEBDATASET: (".tar", ".tar.gz", ".tgz"),
    Form.FOLDER: tuple(f".{suffix}" for suffixes in MEDIA_SUFFIXES.values() for suffix in suffixes),
}
"""What the files of each form are called; tables come before media, which may be named in them."""

_BESIDE = (
    *(".md", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".xml", ".html", ".py", ".ini", ".db"),
    *(".zip", ".tar", ".gz"),
)
"""What lies beside media in a folder, and is none."""

_COMPRESSED = re.compile(r"(\.(?:jsonl|json|ndjson|csv|tsv))\.(?:gz|bz2|zst)$")
_NOT_READ = re.compile(
    r"\.(?:parquet|arrow|feather|jsonl?|ndjson|[ct]sv|tar)\.(?:gz|bz2|zst|xz|lz4|lzma|br|zip|7z|rar)$|\.xlsx?$"
)
"""Tables, and packed ones, that nobody reads."""
_METADATA = re.compile(r"(?:.*/)?metadata\.(?:jsonl|csv|tsv|parquet)", re.IGNORECASE)
_OF_DATASETS = re.compile(r"(?:dataset_infos?|dataset_dict|state)\.json|cache-.*\.arrow")
"""What `datasets` keeps beside its tables."""

_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
HOLE = b"\0" * 512
"""What a disk gives back for a sector that was never written: any number of lines may have stood there."""
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body|error)", re.IGNORECASE)

SPLITS = {
    **{name: "train" for name in ("train", "training")},
    **{name: "rl" for name in ("rl", "rlhf")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval", "development")},
    **{name: "test" for name in ("test", "testing", "heldout", "holdout")},
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


class Lost(Exception):
    """The rest of a file holds nobody knows how many rows."""


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


def _form_in(path: str) -> Form | None:
    """The form that a file's name says; `auto` for a table of none that is read."""
    name = uncompressed(posixpath.basename(path))
    if _OF_DATASETS.fullmatch(name):
        return None
    known = (form for form, suffixes in SUFFIXES.items() if name.endswith(suffixes))
    return next(known, Form.AUTO if _NOT_READ.search(name) else None)


def form_of(source: Source, files: Sequence[str]) -> Form:
    """The form of a source: as stated, or by the names of its files.

    Raises:
        ConfigError: no file is of a known form, or tables are of several.
    """
    if source.form is not Form.AUTO:
        return source.form
    first = {_form_in(file): file for file in reversed(files)}
    tables = [form for form in (*SUFFIXES, Form.AUTO) if form in first and form is not Form.FOLDER]
    if Form.FOLDER in first and (not tables or any(map(_METADATA.fullmatch, files))):
        return Form.FOLDER
    where = f"prepare.sources path={source.path}"
    if len(tables) > 1:
        found = " and ".join(posixpath.relpath(first[form], source.path) for form in tables)
        cure = "unpack or convert some, name each as a source of its own, or say which form is meant (form: ...)"
        raise ConfigError(f"{where}: tables of several forms here, {found}; {cure}")
    if tables in ([], [Form.AUTO]):
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        raise ConfigError(f"{where}: no file of a known form here; known: {known}")
    return tables[0]


def shards_of(sources: Sequence[Source]) -> list[Shard]:
    """The shards of all sources, in order. Of files that may hold rows and are not read, a line is printed.

    Raises:
        FileNotFoundError: a source is not there.
        ConfigError: a source has no file of its form, or tables of several forms and none is stated.
    """
    shards: list[Shard] = []
    for number, source in enumerate(sources):
        files = files_below(source.path)
        form = form_of(source, files)
        named = [file for file in files if _METADATA.fullmatch(file)]
        read = named if form is Form.FOLDER else [file for file in files if _form_in(file) is form]
        shards += [piece for file in read for piece in _pieces(number, _form_in(file) or form, file)]
        if form is Form.FOLDER and not read:
            # What is of no form that is known counts as a row, and is refused by its name.
            read = [file for file in files if posixpath.splitext(file)[1].lower() not in ("", *_BESIDE)]
            pieces = (tuple(read[at : at + FOLDER_FILES]) for at in range(0, len(read), FOLDER_FILES))
            shards += [Shard(number, form, files) for files in pieces]
        if not read:
            raise ConfigError(f"prepare.sources path={source.path}: no {' or '.join(SUFFIXES[form])} file here")
        found, covered = {*read}, tuple({f"{posixpath.dirname(file)}/" for file in read})
        forms = {file: _form_in(file) for file in files if file not in found}
        left = [  # tables, and in a folder of tables the media above which lies none
            file
            for file, other in forms.items()
            if other not in (None, Form.FOLDER) or (other is form and not file.startswith(covered))
        ]
        if left:
            names = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
            print(f"warning: {len(left)} files are not read ({names}); convert or name them", flush=True)
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


def opened(shard: Shard) -> Any:
    """A shard's file from its beginning, unpacked if its name says so."""
    system, inner = filesystem(shard.path)
    codec = _CODECS.get(shard.path.rpartition(".")[2].lower())
    return system.open_input_stream(inner, compression=codec, buffer_size=BUFFER_BYTES)


def check_beginning(shard: Shard) -> None:
    """Makes sure that a table lies there.

    Raises:
        Lost: a pointer, a page, an archive or what is no text does in its place, or nothing.
    """
    system, inner = filesystem(shard.path)
    with system.open_input_stream(inner, compression=None) as file:
        head = file.read(EDGE_BYTES)
    found, name = format_of(head), shard.path.lower()
    may_be_packed = shard.form is Form.WEBDATASET or uncompressed(name) != name
    is_hole_or_utf_16 = HOLE in head or (shard.form is Form.CSV and head.startswith(UTF_16))
    if not head:
        raise Lost("an empty file, as a download leaves that never began; remove it if no row belongs there")
    if found and found.cure and not (may_be_packed and found.cure.startswith("unpack")):
        raise Lost(f"{found.name} in the place of a table: {found.cure}")
    if _PAGE.match(head):
        raise Lost("a page (HTML or XML), as servers send it to say that there is no such file: fetch it again")
    if b"\0" in head[:64] and name.endswith((".jsonl", ".ndjson", ".csv", ".tsv")) and not is_hole_or_utf_16:
        raise Lost(f"no text in UTF-8: it begins with {head[:16]!r}; if UTF-16, iconv -f UTF-16 -t UTF-8 makes it one")
