"""Shards as raw rows, one at a time: Parquet, Arrow, JSON, CSV, WebDataset and folders.

What cannot be read comes as `Unreadable` in its place: a row, or the rest of a file, which holds nobody knows how many.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Form
from pipeline.data.filesystems import filesystem
from pipeline.data.ingest.shards import Shard, uncompressed
from pipeline.data.inspection import SUFFIXES
from pipeline.data.schema import MEDIA_COLUMNS

MAX_LINE_BYTES = 2**28
"""Of a line, of a cell of a CSV, of a file in a tar file; `data.limits` bounds the medium in it."""
_BATCH_ROWS = 32
_BUFFER_BYTES = 2**20
"""A store answers every read with a request: few large ones, then."""

_ARROW_ERRORS = (OSError, ValueError, KeyError, OverflowError, pa.ArrowException)
_ARROW_END = b"\xff" * 4 + bytes(4)
_HOLE = b"\0" * 512
"""What a disk gives back for a sector that was never written: any number of lines may have stood there."""
_NO_VALUE = ("", "nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "None", "null", "NULL", "NA", "N/A", "n/a", "#NA", "#N/A")
"""Cells of a CSV that hold no value, as pandas and `datasets` read them: a CSV has no other way to write that."""
COLUMN_OF_SUFFIX = {suffix: MEDIA_COLUMNS[kind] for kind, suffixes in SUFFIXES.items() for suffix in suffixes}


@dataclass(frozen=True)
class RawRow:
    """A row as its file has it. `place` is unique in the source and stays when the file grows at its end."""

    place: str
    values: Mapping[str, Any]
    path: str
    may_be_many: bool = False
    """Whether it is a whole file that may hold rows in a way that nobody here reads."""


@dataclass(frozen=True)
class Unreadable:
    """A row that cannot be read, or (`is_rest`) the rest of a file, which holds nobody knows how many."""

    place: str
    detail: str
    path: str
    is_rest: bool = False


Raw = RawRow | Unreadable


def read(shard: Shard, *, root: str) -> Iterator[Raw]:
    """The rows of a shard in order, places given relative to `root`."""
    readers = {
        Form.PARQUET: _parquet,
        Form.ARROW: _arrow,
        Form.JSON: _json if uncompressed(shard.path).endswith(".json") else _json_lines,
        Form.CSV: _csv,
        Form.WEBDATASET: _webdataset,
        Form.FOLDER: _folder,
    }
    num_read = 0
    try:
        for raw in readers[shard.form](shard, root):
            yield raw
            num_read += 1
    except (*_ARROW_ERRORS, csv.Error, tarfile.TarError, EOFError) as error:
        detail = f"after {num_read} rows: {type(error).__name__}: {error}"
        yield Unreadable(relative(shard.path, root), detail, shard.path, is_rest=True)


def relative(path: str, root: str) -> str:
    """`path` below `root`, or the file's name where `root` is the file."""
    return posixpath.relpath(path, root) if path != root else posixpath.basename(path)


def _stream(shard: Shard) -> Any:
    """A shard's file from its beginning."""
    system, inner = filesystem(shard.path)
    return system.open_input_stream(inner, buffer_size=_BUFFER_BYTES)


def _parquet(shard: Shard, root: str) -> Iterator[Raw]:
    """Rows of row groups. How many a damaged group has, the footer says: each counts."""
    system, inner = filesystem(shard.path)
    file = pq.ParquetFile(inner, filesystem=system)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    for group in range(shard.start, shard.end if shard.end is not None else file.num_row_groups):
        row, end = sum(counts[:group]), sum(counts[: group + 1])
        try:
            batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], use_threads=False)
            for raw in _rows(batches, file.schema_arrow, shard.path, root, first=row):
                yield raw
                row += 1
        except _ARROW_ERRORS as error:
            detail = f"row group {group} is damaged: {type(error).__name__}: {error}"
            name = relative(shard.path, root)
            yield from (Unreadable(f"{name}-{lost}", detail, shard.path) for lost in range(row, end))


def _arrow(shard: Shard, root: str) -> Iterator[Raw]:
    with _stream(shard) as stream, pa.ipc.open_stream(stream) as reader:
        batches = (batch.slice(at, _BATCH_ROWS) for batch in reader for at in range(0, len(batch), _BATCH_ROWS))
        yield from _rows(batches, reader.schema, shard.path, root)
    system, inner = filesystem(shard.path)
    with system.open_input_file(inner) as file:
        file.seek(file.size() - len(_ARROW_END))
        if file.read() != _ARROW_END:  # Arrow itself takes the end of the file for the end of the stream.
            raise EOFError("the stream has no end mark: it was cut off, or its writer died")


def _rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: str, root: str, first: int = 0) -> Iterator[Raw]:
    labels = _class_labels(schema)
    short = [field.name for field in schema if "float" in str(field.type)]
    for batch in batches:
        for values in _values(batch):
            place = f"{relative(path, root)}-{first}"
            first += 1
            if isinstance(values, str):
                yield Unreadable(place, values, path)
                continue
            for column, names in labels.items():
                if isinstance(values[column], int) and 0 <= values[column] < len(names):
                    values[column] = names[values[column]]
            yield RawRow(place, values | {column: _shortest(values[column]) for column in short}, path)


def _values(batch: pa.RecordBatch) -> list[Any]:
    """The rows of a batch, or in the place of a row what is wrong with it."""
    try:
        return batch.to_pylist()
    except _ARROW_ERRORS as error:  # text that is no UTF-8, a date after the year 9999
        if len(batch) == 1:
            return [f"{type(error).__name__}: {error}"]
        return [row for index in range(len(batch)) for row in _values(batch.slice(index, 1))]


def _shortest(value: Any) -> Any:
    """Numbers of 32 bits as they were written: 0.1, where 64 bits show 0.10000000149011612."""
    if isinstance(value, list):
        return [_shortest(each) for each in cast(list[Any], value)]
    return float(str(np.float32(value))) if isinstance(value, float) else value


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
    name, end = relative(shard.path, root), math.inf if shard.end is None else shard.end
    if shard.end is None:
        opened, size = _stream(shard), _BUFFER_BYTES
    else:
        system, inner = filesystem(shard.path)
        opened = system.open_input_file(inner)
        size = max(io.DEFAULT_BUFFER_SIZE, min(_BUFFER_BYTES, shard.end - shard.start))
    with io.BufferedReader(opened, size) as file:
        position = shard.start
        if position > 0:  # The shard before has the line that this position is in.
            file.seek(position - 1)
            position += len(file.readline(MAX_LINE_BYTES)) - 1
        while position < end:
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            place, position = f"{name}-{position}", position + len(line)
            if line.strip():
                yield from _json_rows(line, place, shard.path)


def _json_rows(line: bytes, place: str, path: str) -> Iterator[Raw]:
    """The row of a line, or the rows of an array in it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        detail, is_rest = f"{type(error).__name__}: {error}", True
        if _HOLE in line:
            detail = "a hole of NUL bytes in the file"
        elif len(line) >= MAX_LINE_BYTES:
            detail = f"a line of over {MAX_LINE_BYTES} bytes"
        elif not line.endswith(b"\n"):
            detail = f"the file ends within this row; {detail}"
        else:
            is_rest = False
        yield Unreadable(place, detail, path, is_rest)
        return
    if isinstance(found, list) and found:
        yield from (_checked(values, f"{place}-{index}", path) for index, values in enumerate(cast(list[Any], found)))
    else:
        yield _checked(found, place, path)


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
        lines = [line for line in content.splitlines(keepends=True) if line.strip()]
        rows = [raw for index, line in enumerate(lines) for raw in _json_rows(line, f"{name}-{index}", shard.path)]
        if len(lines) > 1 and any(isinstance(row, RawRow) for row in rows):
            yield from rows
        else:
            detail = f"none of {len(content)} bytes could be read: {type(error).__name__}: {error}"
            yield Unreadable(name, detail, shard.path, is_rest=True)
        return
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    if isinstance(found, dict):
        yield RawRow(f"{name}-0", found, shard.path, may_be_many=_holds_rows(found))
        return
    for index, values in enumerate(found if isinstance(found, list) else [found]):
        yield _checked(values, f"{name}-{index}", shard.path)


def _holds_rows(values: Mapping[str, Any]) -> bool:
    """Whether an object may be a table: a list of objects under some name, or columns of one length."""
    found = [value for value in values.values() if isinstance(value, list | dict) and len(value) > 1]
    objects = [value for value in found if isinstance(value, list) and all(isinstance(each, dict) for each in value)]
    tables = [value for value in objects if not {"role", "from", "type", "path"}.intersection(*value)]  # turns, media
    return bool(tables) or (len(found) == len(values) and len({len(value) for value in found}) == 1)


def _csv(shard: Shard, root: str) -> Iterator[Raw]:
    """Rows below a header. Where one is broken, each line that it went over counts: it may have swallowed as many."""
    name, path = relative(shard.path, root), shard.path
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process; its default is 128 KiB
    dialect = "excel-tab" if uncompressed(path).endswith(".tsv") else "excel"
    # Bytes that are no UTF-8 cost their row, not the file.
    with io.TextIOWrapper(io.BufferedReader(_stream(shard)), "utf-8-sig", "surrogateescape", newline="") as text:
        last = [""]
        reader = csv.reader(_kept(text, last), dialect=dialect, strict=True)
        header = next(reader, [])
        for index in count():
            place, line, problem = f"{name}-{index}", reader.line_num + 1, ""
            try:
                cells = next(reader, None)
            except csv.Error as error:
                cells, problem = [""], f"{error} (a quote inside a quoted cell is doubled)"
            if cells is None:
                return
            if not problem and len(cells) not in (0, len(header)):
                problem = f"{len(cells)} cells under {len(header)} columns"
            if problem:
                is_rest = len(cells) < len(header) and not last[0].endswith(("\n", "\r"))
                where = f"the file ends within line {line}, after {index} rows" if is_rest else f"line {line}"
                yield Unreadable(place, f"{where}: {problem}", path, is_rest)
                for swallowed in range(line + 1, reader.line_num + 1):
                    yield Unreadable(f"{place}-{swallowed}", f"line {swallowed}: within the row of line {line}", path)
            elif not _is_unicode(cells):
                yield Unreadable(place, "not UTF-8", path)
            elif cells:
                values = (None if cell in _NO_VALUE else cell for cell in cells)
                yield RawRow(place, dict(zip(header, values, strict=True)), path)


def _kept(lines: Iterable[str], last: list[str]) -> Iterator[str]:
    """Lines as they are, the last one kept in `last`."""
    for last[0] in lines:
        yield last[0]


def _is_unicode(cells: Iterable[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _webdataset(shard: Shard, root: str) -> Iterator[Raw]:
    """Samples of a tar file: neighbours whose names are equal up to the first dot, a field an extension."""
    name = relative(shard.path, root)
    with _stream(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        members = (member for member in archive if not member.isdir())
        for key, sample in groupby(members, key=lambda member: _key_of(member.name)):
            values: dict[str, Any] = {}
            problems = [problem for member in sample if (problem := _add_member(values, archive, member))]
            place = f"{name}-{key}"
            yield Unreadable(place, problems[0], shard.path) if problems else RawRow(place, values, shard.path)
        while behind := cast(Any, archive.fileobj).read(_BUFFER_BYTES):
            if any(behind):
                raise tarfile.ReadError("something lies behind the end mark, such as an archive that was appended")


class _Header(tarfile.TarInfo):
    """A header of a tar file. Python takes what is none, and the end of the file, for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # a block of zeros: the true end
                raise
            raise tarfile.ReadError(f"{error} in place of a file or the end mark") from None


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
        if suffix not in COLUMN_OF_SUFFIX:
            known = f"{', '.join(COLUMN_OF_SUFFIX)}; convert it, or leave it out of the folder"
            yield Unreadable(place, f".{suffix} is the ending of no form that is read: {known}", path)
            continue
        values: dict[str, Any] = {COLUMN_OF_SUFFIX[suffix]: [{"path": posixpath.basename(path)}]}
        if label:
            values["label"] = label
        yield RawRow(place, values, path)
