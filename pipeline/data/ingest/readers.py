"""Shards as raw rows, one at a time: Parquet, Arrow, JSON, CSV, WebDataset and folders.

What cannot be read comes as `Unreadable` in its place: a row, or the rest of a file, which holds nobody knows how many.
"""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby
from typing import Any, NamedTuple, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Form
from pipeline.data.filesystems import filesystem
from pipeline.data.ingest.cells import ARROW_ERRORS, changes_of, loads, once, rows_in
from pipeline.data.ingest.shards import BUFFER_BYTES, HOLE, UTF_16, Lost, Shard, check_beginning, opened, uncompressed
from pipeline.data.inspection import SUFFIXES
from pipeline.data.schema import MEDIA_COLUMNS

MAX_LINE_BYTES = 2**28
"""Of a line, of a cell of a CSV, of a file in a tar file; `data.limits` bounds the medium in it."""
_BATCH_ROWS = 32
_ARROW_END = b"\xff" * 4 + bytes(4)
_ARROW_FILE = b"ARROW1"
_NO_VALUE = ("", "nan", "NaN", "-nan", "-NaN", "<NA>", "NaT", "None", "null", "NULL", "NA", "N/A", "n/a", "#NA", "#N/A")
"""Cells of a CSV that hold no value, as pandas and `datasets` read them: a CSV has no other way to write that."""
COLUMN_OF_SUFFIX = {suffix: MEDIA_COLUMNS[kind] for kind, suffixes in SUFFIXES.items() for suffix in suffixes}


class RawRow(NamedTuple):
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
        if shard.start == 0 and shard.form is not Form.FOLDER:
            check_beginning(shard)
        for raw in readers[shard.form](shard, root):
            yield raw
            num_read += 1
    except (Lost, *ARROW_ERRORS, csv.Error, tarfile.TarError, EOFError) as error:
        detail = f"{error}" if isinstance(error, Lost) else f"{type(error).__name__}: {error}"
        yield Unreadable(relative(shard.path, root), f"after {num_read} rows: {detail}", shard.path, is_rest=True)


def relative(path: str, root: str) -> str:
    """`path` below `root`, or the file's name where `root` is the file."""
    return posixpath.relpath(path, root) if path != root else posixpath.basename(path)


def _check_names(names: Iterable[str]) -> None:
    """Of columns of one name, one would be lost: then raises `Lost`."""
    for name, num_columns in Counter(names).items():
        if name and num_columns > 1:
            raise Lost(f"{num_columns} columns are called {name!r}; rename one")


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
        except ARROW_ERRORS as error:
            detail = f"row group {group} is damaged: {type(error).__name__}: {error}"
            name = relative(shard.path, root)
            yield from (Unreadable(f"{name}-{lost}", detail, shard.path) for lost in range(row, end))


def _arrow(shard: Shard, root: str) -> Iterator[Raw]:
    """Rows of a stream (what `datasets` writes), or of a file that says where its batches lie (Polars, Feather)."""
    system, inner = filesystem(shard.path)
    with opened(shard) as stream, system.open_input_file(inner) as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        reader: Any = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(stream)
        found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        batches = (batch.slice(at, _BATCH_ROWS) for batch in found for at in range(0, len(batch), _BATCH_ROWS))
        yield from _rows(batches, reader.schema, shard.path, root)
        file.seek(file.size() - len(_ARROW_END))
        # Arrow itself takes the end of the file, and any end mark, for the end of the stream.
        if not is_file and (stream.read(1) or file.read() != _ARROW_END):
            raise Lost("no end mark, or something behind it: it was cut off, has a hole, or another was appended")


def _rows(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: str, root: str, first: int = 0) -> Iterator[Raw]:
    name, changes = relative(path, root), changes_of(schema)
    _check_names(schema.names)
    for batch in batches:
        for row, values in enumerate(rows_in(batch, changes), first):
            place = f"{name}-{row}"
            yield Unreadable(place, values, path) if isinstance(values, str) else RawRow(place, values, path)
        first += len(batch)


def _json_lines(shard: Shard, root: str) -> Iterator[Raw]:
    """Lines that begin in [start, end). The first line of a later shard is the one after the first line end."""
    name, end = relative(shard.path, root), math.inf if shard.end is None else shard.end
    if shard.end is None:
        stream, size = opened(shard), BUFFER_BYTES
    else:
        system, inner = filesystem(shard.path)
        stream = system.open_input_file(inner)
        size = min(BUFFER_BYTES, shard.end - shard.start + io.DEFAULT_BUFFER_SIZE)  # and what its last line has left
    with io.BufferedReader(stream, size) as file:
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
        found = loads(line.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        detail, is_rest = f"{type(error).__name__}: {error}", True
        if HOLE in line:
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
    with opened(shard) as stream:
        content: bytes = stream.read()
    try:
        found = loads(content.decode(json.detect_encoding(content), "surrogatepass"))
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
    """Whether an object may be a table: rows in a list, or mostly rows by their ids, or columns."""
    found = [value for value in values.values() if isinstance(value, list | dict) and value]
    objects = [value for value in found if isinstance(value, list) and all(isinstance(each, dict) for each in value)]
    own = [value for value in objects if {"role", "from", "type", "path"}.intersection(*value)]  # turns, media
    held = [value for value in found if value not in own and (isinstance(value, dict) or len(value) > 1)]
    return len(objects) > len(own) or 2 * len(held) > len(values)


def _csv(shard: Shard, root: str) -> Iterator[Raw]:
    """Rows below a header. Where one is broken, each line that it went over counts: it may have swallowed as many."""
    name, path = relative(shard.path, root), shard.path
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process; its default is 128 KiB
    file = io.BufferedReader(opened(shard))
    encoding = "utf-16" if file.peek(2)[:2] in UTF_16 else "utf-8-sig"
    # Bytes that are no UTF-8 cost their row, not the file.
    with io.TextIOWrapper(file, encoding, "surrogateescape", newline="") as text:
        last = [""]
        num_before, reader = _csv_reader(_kept(text, last), "\t" if uncompressed(path).endswith(".tsv") else ",")
        header = [cell.strip() for cell in next(reader, [])]
        _check_names(header)
        for index in count():
            place, line, problem = f"{name}-{index}", num_before + reader.line_num + 1, ""
            try:
                cells = next(reader, None)
            except csv.Error as error:
                cells, problem = [""], f"{error} (a quote inside a quoted cell is doubled)"
            if cells is None:
                return
            end = num_before + reader.line_num
            if not problem and len(cells) not in (0, len(header)):
                problem = f"{len(cells)} cells under {len(header)} columns"
            elif end > line and reader.dialect.delimiter == "\t" and _are_rows("\t".join(cells).splitlines()):
                problem = f"a quote at the beginning of a cell joins it with what look like rows, up to line {end}"
            if problem:
                is_rest = len(cells) < len(header) and not last[0].endswith(("\n", "\r"))
                where = f"the file ends within line {line}, after {index} rows" if is_rest else f"line {line}"
                yield Unreadable(place, f"{where}: {problem}", path, is_rest)
                for swallowed in range(line + 1, end + 1):
                    yield Unreadable(f"{place}-{swallowed}", f"line {swallowed}: within the row of line {line}", path)
            elif not _is_unicode(cells):
                yield Unreadable(place, "not UTF-8", path)
            elif cells:
                values = (None if cell in _NO_VALUE else cell for cell in cells)
                yield RawRow(place, dict(zip(header, values, strict=True)), path)


def _csv_reader(lines: Iterator[str], separator: str) -> tuple[int, Any]:
    """How many lines stand before the header (blank ones, Excel's `sep=;`), and the rows from there on."""
    num_before, first = 0, ""
    for first in lines:
        named = re.fullmatch(r"sep=(.)\s*", first)
        if first.strip() and not named:
            break
        num_before, separator = num_before + 1, named[1] if named else separator
    if separator not in first:
        separator = next((each for each in ",;\t" if each in first), separator)
    has_blanks = 0 < first.count(separator) == first.count(f"{separator} ")
    rows = csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=has_blanks, strict=True)
    return num_before, rows


def _kept(lines: Iterable[str], last: list[str]) -> Iterator[str]:
    """Lines as they are, the last one kept in `last`; at a hole raises `Lost`."""
    hole = HOLE.decode()
    for last[0] in lines:
        if hole in last[0]:
            raise Lost("a hole of NUL bytes in the file")
        yield last[0]


def _are_rows(lines: Sequence[str]) -> bool:
    """Whether all of several lines have as many tabs as the first one, and none begins with a tab."""
    return len(lines) > 1 and all(line[:1] != "\t" and 0 < line.count("\t") == lines[0].count("\t") for line in lines)


def _is_unicode(cells: Iterable[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _webdataset(shard: Shard, root: str) -> Iterator[Raw]:
    """Samples of a tar file: neighbours whose names are equal up to the first dot, a field an extension."""
    name, path, keys = relative(shard.path, root), shard.path, set[int]()
    with opened(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        members = (  # macOS puts a `._0.png` beside `0.png`.
            member for member in archive if not member.isdir() and not posixpath.basename(member.name).startswith(".")
        )
        for key, sample in groupby(members, key=lambda member: _key_of(member.name)):
            if hash(key) in keys:
                raise Lost(f"the sample {key} goes on behind others: write the archive by name (tar --sort=name)")
            keys.add(hash(key))  # of a name, which may be long
            place, values = f"{name}-{key}", _sample(archive, sample)
            yield Unreadable(place, values, path) if isinstance(values, str) else RawRow(place, values, path)
        num_behind = 0
        while behind := cast(Any, archive.fileobj).read(BUFFER_BYTES):
            num_behind += len(behind)
            if behind.strip(b"\0") or num_behind > tarfile.RECORDSIZE:  # which is what tar fills up
                raise Lost("something lies behind the end mark: an archive that was appended, or a hole of zeros")


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


def _sample(archive: tarfile.TarFile, members: Iterable[tarfile.TarInfo]) -> dict[str, Any] | str:
    """The values of a sample, or what is wrong with it. Files of one name, as many samples would have, raise `Lost`."""
    media, others, values = dict[str, list[Any]](), list[tuple[str, Any]](), dict[str, Any]()
    fields: set[str] = set()
    for member in members:
        field = posixpath.basename(member.name).partition(".")[2].lower()
        suffix = field.rsplit(".", 1)[-1]
        if field in fields:
            raise Lost(f"{member.name} stands twice in its sample: give each sample a name of its own")
        fields.add(field)
        if not member.isfile():
            return f"{member.name}: no regular file"
        if member.size > MAX_LINE_BYTES:
            return f"{member.name}: {member.size} bytes; at most {MAX_LINE_BYTES}"
        content: bytes = cast(Any, archive.extractfile(member)).read()
        try:
            if suffix in COLUMN_OF_SUFFIX:
                media.setdefault(COLUMN_OF_SUFFIX[suffix], []).append({"bytes": content, "path": member.name})
            elif suffix != "json":  # Arrays, which hold zeros, are no text.
                text = content if b"\0" in content else content.decode().strip()
                others.append(({"txt": "text", "cls": "label"}.get(field, field), text))
            elif isinstance(loaded := loads(content.decode("utf-8-sig")), dict):
                others += cast(dict[str, Any], loaded).items()
            else:
                return f"{member.name}: {type(loaded).__name__}; wanted a mapping of columns"
            values = once([*media.items(), *others])
        except (ValueError, RecursionError) as error:
            return f"{member.name}: {type(error).__name__}: {error}"
    return values


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
