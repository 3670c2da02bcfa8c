"""Retrieval across modalities: find pictures by what is said of them, or whatever the joint embedding has aligned.

    index     embeds `retrieve.target` of the rows of `retrieve.split`, and keeps it in <run>/index
    query     answers a text, a picture file or a sound file with the nearest rows, in <run>/query.html
    evaluate  measures recall among unseen rows, and zero- and few-shot classification: <run>/summary.json, report.html;
              trains the encoder first (`jobs.pretrain`) where the run has none

Each takes `--config recipe.yaml section.field=value ...`, as the stages do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import pretrain
from jobs.command import USER_ERRORS, connect
from jobs.directory import held
from jobs.subcommands import CommandLine, user_path
from pipeline.config import ConfigError, Device, Recipe
from pipeline.config.fusion import Modality
from pipeline.data.datasets import Datasets
from pipeline.data.media import decode
from pipeline.data.schema import RowError
from pipeline.evaluation.embedding_report import answers_section, write_embedding_report
from pipeline.evaluation.page import write_page
from pipeline.evaluation.retrieval_results import Found, few_shot_results, retrieval_results
from pipeline.models.dual_encoder import Index, IndexInfo, JointEncoder, load_joint_encoder
from pipeline.models.dual_encoder.rows import SampleReader, having
from pipeline.models.fusion.samples import Sample
from pipeline.records import MediaKind, Medium, Prompt
from pipeline.tracking import finite

SUMMARY_FILE, REPORT_FILE, QUERY_FILE = "summary.json", "report.html", "query.html"


def index(recipe: Recipe, options: argparse.Namespace) -> None:
    """Embeds the rows of a split and keeps them."""
    settings = recipe.retrieve
    encoder = opened(recipe)
    rows = having(list(reader_of(recipe, settings.split).all()), [settings.target])
    if not rows:
        raise ConfigError(f"retrieve.target={settings.target}: no row of retrieve.split={settings.split} has one")
    vectors = encoder.embed([sample for _, sample in rows], settings.target, batch_size=settings.batch_size)
    info = IndexInfo(encoder.key, encoder.embedding_size, settings.target.value, settings.split)
    Index(info, [prompt.id for prompt, _ in rows], vectors).save(index_path(recipe))
    print(f"{index_path(recipe)}: {len(rows)} rows of {settings.split}, {encoder.embedding_size} dimensions")


def query(recipe: Recipe, options: argparse.Namespace) -> None:
    """Writes a page with the rows that are nearest to a text, a picture or a sound."""
    settings = recipe.retrieve
    found = Index.load(index_path(recipe))
    encoder = opened(recipe)
    found.check(encoder, place=str(index_path(recipe)))
    sample, modality, medium = asked(recipe, options)
    if not encoder.sees(modality):
        raise ConfigError(f"--{modality}: the encoder has no tower for it, but for {', '.join(encoder.modalities)}")
    cosines, places = found.search(encoder.embed([sample], modality), top=settings.top, backend=settings.backend)
    ids = [found.ids[place] for place in places[0].tolist()]
    rows = read_rows(recipe, found.info.split, ids)
    path = recipe.run.directory / QUERY_FILE
    sections = [
        answers_section(
            "Asked", [(medium.path or modality.value, (medium,))] if medium else [], text=sample.text or ""
        ),
        answers_section(
            "Nearest",
            [
                (f"{cosine:.3f}  {row.answer or row.id}", row.media)
                for row, cosine in zip(rows, cosines[0].tolist(), strict=True)
            ],
        ),
    ]
    write_page(path, title=f"Nearest to a {modality}", sections=sections)
    for row, cosine in zip(rows, cosines[0].tolist(), strict=True):
        print(f"{cosine:.3f}  {row.id}  {row.answer or ''}")
    print(path.absolute())


def evaluate(recipe: Recipe, options: argparse.Namespace) -> None:
    """Measures retrieval, and zero- and few-shot classification, on unseen rows."""
    pretrain.make_table(recipe)
    check_splits(recipe)
    if recipe.retrieve.encoder is None and not recipe.checkpoint("pretrain").is_dir():
        connect(copies=recipe.cluster.device is Device.CPU)
        pretrain.run(recipe)
    run(recipe)


def check_splits(recipe: Recipe) -> None:
    """Makes sure that there are rows to measure on, before an encoder is trained.

    Raises:
        ConfigError: there are too few.
    """
    settings = recipe.retrieve
    num_rows = Datasets(recipe.datasets, settings.split).check("retrieve.split").num_rows
    if settings.queries and num_rows < (settings.num_rows or 2):
        raise ConfigError(
            f"retrieve.num_rows={settings.num_rows}: retrieve.split={settings.split} has {num_rows} rows in all; use "
            "at most so many, and at least 2"
        )
    if settings.few_shot.classes:
        Datasets(recipe.datasets, settings.train_split).check("retrieve.train_split")


def run(recipe: Recipe) -> dict[str, Any]:
    """Measures an encoder that is there; writes the summary and the report, and returns the summary.

    Raises:
        ConfigError: the encoder lacks a tower, or the split has too few rows.
    """
    settings, encoder = recipe.retrieve, opened(recipe)
    found = list(reader_of(recipe, settings.split).all())
    summary: dict[str, Any] = {"seed": recipe.run.seed, "split": settings.split, "encoder": encoder.key}
    results = retrieval_results(encoder, rows_of(recipe, found), settings) if settings.queries else None
    classes = None
    if settings.few_shot.classes:
        labelled = list(reader_of(recipe, settings.train_split, field="retrieve.train_split").all())
        classes = few_shot_results(encoder, labelled, found, settings, seed=recipe.run.seed)
    summary |= ({"retrieval": results.as_json()} if results else {}) | (
        {"few_shot": classes.as_json()} if classes else {}
    )
    directory = recipe.run.directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SUMMARY_FILE).write_text(json.dumps(finite(summary), indent=1), encoding="utf-8")
    write_embedding_report(directory / REPORT_FILE, recipe=recipe, retrieval=results, few_shot=classes)
    print(json.dumps({name: part for name, part in summary.items() if name in ("retrieval", "few_shot")}))
    print(f"report: {(directory / REPORT_FILE).absolute()}", flush=True)
    return summary


def rows_of(recipe: Recipe, found: Sequence[Found]) -> list[Found]:
    """The rows that are searched: those that have all of it, each text once, the first `retrieve.num_rows`."""
    settings = recipe.retrieve
    rows = having(found, [settings.target, *settings.queries])
    if settings.distinct:
        rows = list({sample.text: (prompt, sample) for prompt, sample in reversed(rows)}.values())[::-1]
    wanted = settings.num_rows or len(rows)
    if len(rows) < max(2, wanted):
        kinds = ", ".join([settings.target, *settings.queries])
        raise ConfigError(
            f"retrieve.num_rows={wanted}: retrieve.split={settings.split} has {len(rows)} rows with {kinds}"
            f"{' and a text of their own' if settings.distinct else ''}; use at most so many, and at least 2"
        )
    return rows[:wanted]


def opened(recipe: Recipe) -> JointEncoder:
    """The encoder that the recipe names, or that of this run."""
    path = recipe.retrieve.encoder or recipe.checkpoint("pretrain")
    if not path.is_dir():
        raise ConfigError(
            f"retrieve.encoder={path}: no dual encoder here; train one with `python -m jobs.pretrain`, or name another"
        )
    return load_joint_encoder(path)


def reader_of(recipe: Recipe, split: str, *, field: str = "retrieve.split") -> SampleReader:
    """Reads a split's rows; `field` names it.

    Raises:
        ConfigError: it has none.
    """
    datasets = Datasets(recipe.datasets, split).check(field)
    return SampleReader(datasets, recipe.data, text=recipe.retrieve.text)


def index_path(recipe: Recipe) -> Path:
    """Directory of the index."""
    return recipe.retrieve.index or recipe.run.directory / "index"


def read_rows(recipe: Recipe, split: str, ids: Sequence[str]) -> list[Prompt]:
    """The rows of these ids; those that have become unreadable are left out."""
    datasets = Datasets(recipe.datasets, split).check("retrieve.split")
    tables = {source.prefix: source.table for source in datasets.sources}
    rows: list[Prompt] = []
    for key in datasets.keys(ids):
        source = datasets.sources[key.dataset]
        rows += [
            row for row in tables[source.prefix].read_rows([key.row], prefix=source.prefix) if isinstance(row, Prompt)
        ]
    return rows


def asked(recipe: Recipe, options: argparse.Namespace) -> tuple[Sample, Modality, Medium | None]:
    """What the command line asks with.

    Raises:
        ConfigError: not exactly one of text, picture and sound is given, or a file cannot be decoded.
    """
    given = {name: getattr(options, name) for name in ("text", "image", "audio") if getattr(options, name) is not None}
    if len(given) != 1:
        raise ConfigError("ask with one of --text WORDS, --image FILE and --audio FILE")
    ((name, value),) = given.items()
    if name == "text":
        return Sample("query", text=value), Modality.TEXT, None
    medium = Medium(MediaKind(name), Path(value).read_bytes(), path=str(value))
    try:
        decoded: Any = decode(medium, recipe.data.limits)
    except RowError as error:
        raise ConfigError(f"--{name} {value}: {error}") from None
    return Sample("query", **{name: decoded}), Modality(name), medium


def main() -> None:
    """Command line."""
    line = CommandLine(__doc__)
    _, asking, _ = (line.add(each) for each in (index, query, evaluate))
    asking.add_argument("--text", help="what is searched for, in words")
    asking.add_argument("--image", type=user_path, help="a picture file")
    asking.add_argument("--audio", type=user_path, help="a sound file")
    try:
        options, recipe = line.read()
        with held(recipe.run.directory):
            options.run(recipe, options)
    except USER_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
