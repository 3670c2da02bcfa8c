"""What `jobs.prepare` writes into a directory: which files there are an earlier run's, and which are in its way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config import ConfigError, Source
from pipeline.data.filesystems import is_uri
from pipeline.data.ingest import card
from pipeline.data.ingest.index import PROMPTS
from pipeline.data.ingest.parts import TABLES, directory_of
from pipeline.data.ingest.splits import NAMES

QUARANTINE = "quarantine.parquet"
STAGING = ".staging"

_PART = re.compile(rf"({'|'.join(NAMES)})(-\d{{5}}-of-\d{{5}})?\.parquet")
_STAGED = re.compile(r"index\.sqlite|plans|\d{6}\.(arrow|index)")
_BUILT_IN = re.compile(rf"({'|'.join(NAMES)})-[a-z]+-\d{{5}}")
"""Ids of the built-in data."""


def check_target(sources: Sequence[Source], directory: Path) -> None:
    """Makes sure that nothing is replaced but what an earlier run wrote; without sources, what the built-in data are.

    Raises:
        ConfigError: a source lies where the table goes, or files do that no such run wrote.
    """
    target, cure = directory.resolve(), "set data.path or run.directory to another directory"
    for source in sources:
        place = Path(source.path).resolve()
        if not is_uri(source.path) and (target in (place, *place.parents) or place in target.parents):
            raise ConfigError(f"prepare.sources path={source.path}: lies where the table goes ({directory}); {cure}")
    foreign = [str(path.relative_to(directory)) for path in (_foreign if sources else _not_built_in)(directory)]
    if foreign:
        why = "was not made of sources" if sources else "the built-in data would replace"
        raise ConfigError(f"{directory}: holds {', '.join(foreign)}, which {why}; {cure}, or move it away")


def _foreign(directory: Path) -> Iterator[Path]:
    """Files with the names of ours that no earlier run wrote, as far as it says."""
    tables = card.tables(directory)
    for table in TABLES:
        if table not in (tables or ()):
            yield from files_of(table, directory)
    ours = {
        card.FILE: tables is not None,
        card.PICTURE: tables is not None,
        card.README: card.is_ours(directory / card.README),
        # A run that stopped leaves it alone.
        QUARANTINE: tables is not None or _column(directory / QUARANTINE, "row_id") is not None,
        STAGING: all(_STAGED.fullmatch(each.name) for each in (directory / STAGING).glob("*")),
    }
    yield from (directory / name for name, is_ours in ours.items() if not is_ours and (directory / name).exists())


def _not_built_in(directory: Path) -> Iterator[Path]:
    for file in files_of(PROMPTS, directory):
        if not all(_BUILT_IN.fullmatch(str(id)) for id in _column(file, "id") or [""]):
            yield file


def _column(file: Path, name: str) -> list[object] | None:
    """A column of a Parquet file; None where it has none, or is none."""
    try:
        return pq.read_table(file, columns=[name])[name].to_pylist()
    except (OSError, ValueError, KeyError):
        return None


def files_of(table: str, directory: Path) -> list[Path]:
    """The files of a table's splits, by their names."""
    found = directory_of(table, directory).glob("*.parquet")
    return sorted(file for file in found if _PART.fullmatch(file.name))


def clear(directory: Path) -> None:
    """Removes the tables of an earlier run, whose files must not mix with the new ones."""
    for table in TABLES:
        for file in files_of(table, directory):
            file.unlink()
