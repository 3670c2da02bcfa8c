"""Prepare: make the prompt table out of files of any form, or the built-in data; and the tiny checkpoint.

    files -> shards -> workers: read, fetch, decode, steps, count tokens -> rows put aside
                                        | what the driver learns of each row
    duplicates, leaks, too many bad rows? <-+
    rows that stay -> workers -> <data>/{train,validation,test}*.parquet, preferences/, judgements/, README.md
    rows that do not -> quarantine.parquet, with their reasons

The driver never holds a medium. Workers are actors of the cluster that the job was submitted to, or that `RAY_ADDRESS`
names; else processes of this machine, and no Ray starts. Without `prepare.sources` the built-in digits, speech, scenes
and videos are made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import Flag, main
from jobs.directory import make
from pipeline.config import Answers, ConfigError, MediaAs, Recipe
from pipeline.data import demo
from pipeline.data.filesystems import is_uri
from pipeline.data.ingest import card
from pipeline.data.ingest.decisions import Decisions
from pipeline.data.ingest.index import Index
from pipeline.data.ingest.outputs import QUARANTINE, STAGING, check_target, clear
from pipeline.data.ingest.parts import rows_by_table, write_tables
from pipeline.data.ingest.run import check_columns, rows_of, workers_for
from pipeline.data.ingest.shards import Shard, shards_of
from pipeline.data.ingest.splits import NAMES, empty_splits
from pipeline.data.media_store import MediaStore

if TYPE_CHECKING:
    from pipeline.models.processing import PromptProcessor

ROWS_BETWEEN_CHECKS = 1000
FLAGS = (
    Flag("--from", "prepare.sources", "a file or directory to prepare; may be repeated", entry="path"),
    Flag("--map", "prepare.map.", "OURS=THEIRS: what a column of ours is called there; may be repeated"),
    Flag("--max-bad-fraction", "data.max_bad_fraction=", "share of bad rows above which the job stops"),
)


def run(recipe: Recipe) -> dict[str, int]:
    """Writes what is missing and returns the number of rows by split and task."""
    shards = shards_to_read(recipe) if recipe.prepare.sources else []  # first: a model takes longer
    if recipe.model.path is None:
        from pipeline.models import tiny  # It brings torch.

        num_parameters = tiny.build(
            recipe.checkpoint("base"),
            architecture=recipe.model.tiny_architecture,
            corpus=demo.corpus(),
            seed=recipe.run.seed,
            hidden=recipe.model.tiny_hidden,
        )
        print(f"tiny {recipe.model.tiny_architecture}: {num_parameters:,} parameters")
    if recipe.prepare.sources:
        counts = ingest(recipe, shards)
    elif recipe.data.path is None:
        check_target((), recipe.data_path)
        counts = demo.build(recipe.data_path, prepare=recipe.prepare, seed=recipe.run.seed)
    else:
        return {}
    for split in NAMES:
        tasks = (f"{key.split('/', 1)[1]} {n}" for key, n in counts.items() if key.startswith(f"{split}/"))
        print(f"{split}: " + ", ".join(tasks))
    if recipe.prepare.sources and (summary := card.read(str(recipe.data_path))):
        for line in empty_splits(recipe, summary["rows"], num_leaks=summary["left_out"].get("leak", 0)):
            print(f"warning: {line}", flush=True)
    return counts


def shards_to_read(recipe: Recipe) -> list[Shard]:
    """The shards of `prepare.sources`, which can be read and prepared as the recipe says.

    Raises:
        FileNotFoundError: a source is not there.
        ConfigError: a source is of no known form, a mapped column is missing, or the table cannot lie where it is to.
    """
    if is_uri(recipe.data.path or ""):
        raise ConfigError(f"data.path={recipe.data.path}: tables are made on disk; name a directory, and copy it then")
    check_target(recipe.prepare.sources, recipe.data_path.absolute())
    shards = shards_of(recipe.prepare.sources)
    check_columns(recipe, shards)
    return shards


def ingest(recipe: Recipe, shards: Sequence[Shard]) -> dict[str, int]:
    """Makes the prompt table of `prepare.sources` in `data_path`; returns the number of rows by split and task.

    Raises:
        ConfigError: splits leak and may not.
        TooManyBadRows: more than `data.max_bad_fraction` of the rows are bad; they lie in `quarantine.parquet`.
    """
    settings, directory = recipe.prepare, recipe.data_path.absolute()
    staging = directory / STAGING
    make(directory, "data.path")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        keeps_unanswered = settings.answers is Answers.OPTIONAL
        with closing(Index(staging / "index.sqlite", keeps_unanswered=keeps_unanswered)) as index:
            return decided(recipe, shards, index, staging=staging, directory=directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def decided(recipe: Recipe, shards: Sequence[Shard], index: Index, *, staging: Path, directory: Path) -> dict[str, int]:
    """Prepares the shards, decides which rows stay, and writes them and all that is said of them."""
    settings = recipe.prepare
    processor = partial(processor_alone, recipe, recipe.checkpoint("base")) if settings.count_tokens else None
    decisions = Decisions(settings, index)
    with workers_for(recipe, shards, directory=directory, staging=staging, processor=processor) as pool:
        try:
            for row in rows_of(pool, shards, staging):
                decisions.add(row)
                if decisions.num_rows % ROWS_BETWEEN_CHECKS == 0:
                    index.check(decisions.num_rows, recipe.data.max_bad_fraction)
            index.check(decisions.num_rows, recipe.data.max_bad_fraction)
            decisions.resolve_leaks()
        finally:
            index.write_quarantine(directory / QUARANTINE)
            print(decisions.report(), flush=True)
        clear(directory)
        # Before the tables: those of a run that ends half way through are known to the next one.
        summary = card.summarise(index, num_read=decisions.num_rows, recipe=recipe, tables=rows_by_table(index))
        card.write(directory, summary, index)
        write_tables(
            index,
            pool,
            staging=staging,
            directory=directory,
            rows_per_file=settings.rows_per_file,
            sort_train=settings.sort_by is not None,
        )
    if settings.media is MediaAs.REFERENCES:
        MediaStore(str(directory)).remove_unless(index.uses)
    return {f"{split}/{task}": n for task, by_split in summary["tasks"].items() for split, n in by_split.items()}


def processor_alone(recipe: Recipe, checkpoint: Path) -> PromptProcessor:
    """The checkpoint's processor, which counts tokens in each worker."""
    from pipeline.models import processing  # It brings torch and transformers: seconds that only those pay who count.

    return processing.processor_alone(recipe, checkpoint)


if __name__ == "__main__":
    main(run, __doc__, flags=FLAGS, needs_ray=False)
