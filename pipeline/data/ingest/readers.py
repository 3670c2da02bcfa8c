"""Shards as raw rows, one at a time: Parquet, Arrow, JSON, CSV, WebDataset and folders.

What cannot be read comes as `Unreadable` in its place: a line, or the rest of a file whose end nothing can find.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Form
from pipeline.data.filesystems import filesystem
from pipeline.data.ingest.shards import Shard
from pipeline.data.inspection import SUFFIXES
from pipeline.data.schema import MEDIA_COLUMNS

MAX_LINE_BYTES = 2**28
_BATCH_ROWS = 32
_BUFFER_BYTES = 2**20
"""A store answers every read with a request: few large ones, then."""

_ARROW_ERRORS = (OSError, ValueError, KeyError, pa.ArrowException)
COLUMN_OF_SUFFIX = {suffix: MEDIA_COLUMNS[kind] for kind, suffixes in SUFFIXES.items() for suffix in suffixes}


@dataclass(frozen=True)
class RawRow:
    """A row as its file has it. `place` is unique in the source and stays when the file grows at its end."""

    place: str
    values: Mapping[str, Any]
    path: str


@dataclass(frozen=True)
class Unreadable:
    """A row, or the rest of a file, that cannot be read."""

    place: str
    detail: str
    path: str


Raw = RawRow | Unreadable


def read(shard: Shard, *, root: str) -> Iterator[Raw]:
    """The rows of a shard in order, places given relative to `root`."""
    readers = {
        Form.PARQUET: _parquet,
        Form.ARROW: _arrow,
        Form.JSON: _json_lines if shard.end is not None else _json,
        Form.CSV: _csv,
        Form.WEBDATASET: _webdataset,
        Form.FOLDER: _folder,
    }
    name = relative(shard.path, root)
    try:
        yield from readers[shard.form](shard, root)
    except (*_ARROW_ERRORS, UnicodeDecodeError, csv.Error, tarfile.TarError, EOFError) as error:
        yield Unreadable(name, f"{type(error).__name__}: {error}", shard.path)


def relative(path: str, root: str) -> str:
    """`path` below `root`, or the file's name where `root` is the file."""
    return posixpath.relpath(path, root) if path != root else posixpath.basename(path)


def _stream(shard: Shard) -> Any:
    """A shard's file from its beginning."""
    system, inner = filesystem(shard.path)
    return system.open_input_stream(inner, buffer_size=_BUFFER_BYTES)


def _parquet(shard: Shard, root: str) -> Iterator[Raw]:
    system, inner = filesystem(shard.path)
    file = pq.ParquetFile(inner, filesystem=system)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    groups = range(shard.start, shard.end if shard.end is not None else file.num_row_groups)
    batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(groups), use_threads=False)
    yield from _rows(batches, file.schema_arrow, shard.path, root, first=sum(counts[: shard.start]))


def _arrow(shard: Shard, root: str) -> Iterator[Raw]:
    with _stream(shard) as stream, pa.ipc.open_stream(stream) as reader:
        batches = (batch.slice(at, _BATCH_ROWS) for batch in reader for at in range(0, len(batch), _BATCH_ROWS))
        yield from _rows(batches, reader.schema, shard.path, root)


def _rows(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: str, root: str, first: int = 0
) -> Iterator[RawRow]:
    labels = _class_labels(schema)
    for batch in batches:
        for values in batch.to_pylist():
            for column, names in labels.items():
                if isinstance(values[column], int) and 0 <= values[column] < len(names):
                    values[column] = names[values[column]]
            yield RawRow(f"{relative(path, root)}-{first}", values, path)
            first += 1


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of columns that `datasets` stores as numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _json_lines(shard: Shard, root: str) -> Iterator[Raw]:
    """Lines that begin in [start, end). The first line of a later shard is the one after the first line end."""
    system, inner = filesystem(shard.path)
    name = relative(shard.path, root)
    size = max(io.DEFAULT_BUFFER_SIZE, min(_BUFFER_BYTES, cast(int, shard.end) - shard.start))
    with io.BufferedReader(system.open_input_file(inner), size) as file:
        position = shard.start
        if position > 0:  # The shard before has the line that this position is in.
            file.seek(position - 1)
            position += len(file.readline(MAX_LINE_BYTES)) - 1
        while position < cast(int, shard.end):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            place, position = f"{name}-{position}", position + len(line)
            if line.strip():
                yield _json_row(line, place, shard.path)


def _json_row(line: bytes, place: str, path: str) -> Raw:
    try:
        return _checked(json.loads(line), place, path)
    except (ValueError, RecursionError) as error:
        return Unreadable(place, f"{type(error).__name__}: {error}", path)


def _checked(values: object, place: str, path: str) -> Raw:
    if isinstance(values, dict):
        return RawRow(place, cast(dict[str, Any], values), path)
    return Unreadable(place, f"a row is {type(values).__name__}; wanted a mapping of columns", path)


def _json(shard: Shard, root: str) -> Iterator[Raw]:
    """An array of rows, `{"data": [rows]}`, or (under the wrong name) a row a line."""
    name = relative(shard.path, root)
    with _stream(shard) as stream:
        content: bytes = stream.read()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        lines = [line for line in content.split(b"\n") if line.strip()]
        rows = [_json_row(line, f"{name}-{index}", shard.path) for index, line in enumerate(lines)]
        if len(lines) > 1 and any(isinstance(row, RawRow) for row in rows):
            yield from rows
        else:
            yield Unreadable(name, f"{type(error).__name__}: {error}", shard.path)
        return
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    for index, values in enumerate(found if isinstance(found, list) else [found]):
        yield _checked(values, f"{name}-{index}", shard.path)


def _csv(shard: Shard, root: str) -> Iterator[Raw]:
    name = relative(shard.path, root)
    with io.BufferedReader(_stream(shard)) as stream:
        # Bytes that are no UTF-8 cost their row, not the file.
        text = (line.decode("utf-8", errors="surrogateescape") for line in stream)
        reader = csv.reader(text, dialect="excel-tab" if shard.path.lower().endswith(".tsv") else "excel")
        header = [column.removeprefix("\ufeff") for column in next(reader, [])]
        for index, cells in enumerate(reader):
            place = f"{name}-{index}"
            if not cells:
                continue
            if len(cells) != len(header):
                yield Unreadable(place, f"{len(cells)} cells under {len(header)} columns", shard.path)
            elif any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
                yield Unreadable(place, "not UTF-8", shard.path)
            else:
                yield RawRow(place, dict(zip(header, cells, strict=True)), shard.path)


def _webdataset(shard: Shard, root: str) -> Iterator[Raw]:
    """Samples of a tar file: neighbours whose names are equal up to the first dot, a field an extension."""
    name = relative(shard.path, root)
    with _stream(shard) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        members = (member for member in archive if not member.isdir())
        for key, sample in groupby(members, key=lambda member: _key_of(member.name)):
            values: dict[str, Any] = {}
            problems = [problem for member in sample if (problem := _add_member(values, archive, member))]
            place = f"{name}-{key}"
            yield Unreadable(place, problems[0], shard.path) if problems else RawRow(place, values, shard.path)


def _key_of(path: str) -> str:
    directory, name = posixpath.split(path)
    return posixpath.join(directory, name.split(".")[0])


def _add_member(values: dict[str, Any], archive: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """Adds a file of a sample to its values; says what is wrong with it."""
    if not member.isfile():
        return f"{member.name}: no regular file"
    if member.size > MAX_LINE_BYTES:
        return f"{member.name}: {member.size} bytes; at most {MAX_LINE_BYTES}"
    content = cast(Any, archive.extractfile(member)).read()
    field = posixpath.basename(member.name).partition(".")[2].lower()
    suffix = field.rsplit(".", 1)[-1]
    if suffix in COLUMN_OF_SUFFIX:
        values.setdefault(COLUMN_OF_SUFFIX[suffix], []).append({"bytes": content, "path": member.name})
        return None
    try:
        if suffix == "json":
            loaded = json.loads(content)
            if not isinstance(loaded, dict):
                return f"{member.name}: {type(loaded).__name__}; wanted a mapping of columns"
            values.update(loaded)
        else:
            values[{"txt": "text", "cls": "label"}.get(field, field)] = content.decode().strip()
    except (ValueError, RecursionError) as error:
        return f"{member.name}: {type(error).__name__}: {error}"
    return None


def _folder(shard: Shard, root: str) -> Iterator[Raw]:
    """Files in directories that name their label; the root and names of splits are no labels."""
    for path in shard.paths:
        place = relative(path, root)
        label = posixpath.basename(posixpath.dirname(place))
        suffix = posixpath.splitext(path)[1][1:].lower()
        values: dict[str, Any] = {COLUMN_OF_SUFFIX[suffix]: [{"path": posixpath.basename(path)}]}
        if label:
            values["label"] = label
        yield RawRow(place, values, path)
