"""The page of a joint embedding: what it finds, what it tells apart, how it learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Recipe
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.page import Figure, MediaItem, Section, Table, curves, write_page
from pipeline.evaluation.report import interval, number
from pipeline.evaluation.retrieval import RECALL_AT, Retrieval
from pipeline.evaluation.retrieval_results import Example, FewShotResults, RetrievalResults
from pipeline.records import Medium
from pipeline.tracking import read_metrics

MOST_RANKS = 20
"""Of the curve of recall over k."""
PANELS = {
    "Loss": ("nats a row", ("loss",)),
    "Partner found in the batch": ("share", ("accuracy/",)),
    "Temperature": ("", ("temperature",)),
    "Warm-up": ("loss", ("warm_up_loss/",)),
}


def write_embedding_report(
    path: Path, *, recipe: Recipe, retrieval: RetrievalResults | None, few_shot: FewShotResults | None
) -> None:
    """Writes the page, with the curves of the run's training where it has some."""
    sections: list[Section] = []
    if retrieval is not None:
        sections.append(_retrieval(retrieval, recipe))
    if few_shot is not None:
        sections.append(_few_shot(few_shot, recipe))
    if learning := _learning(recipe.run.directory):
        sections.append(Section("Training", figures=learning))
    if retrieval is not None:
        sections += [_example(each, retrieval) for each in retrieval.examples]
    write_page(path, title=recipe.run.name, sections=sections)


def answers_section(title: str, items: Sequence[tuple[str, Sequence[Medium]]], *, text: str = "") -> Section:
    """Captioned media, side by side."""
    media = tuple(MediaItem(caption, medium) for caption, found in items for medium in found)
    return Section(title, text, media=media)


def _retrieval(found: RetrievalResults, recipe: Recipe) -> Section:
    kinds = {**{f"by {modality}": each for modality, each in found.by_query.items()}, "all": found.overall}
    header = ("Queries", *(f"Recall@{k}" for k in RECALL_AT), "MRR", "Median rank", "Rows")
    rows = tuple((name, *_cells(each)) for name, each in kinds.items())
    places = range(1, min(MOST_RANKS, found.overall.num_rows) + 1)
    lines = {
        f"by {modality}": [(k, float((ranks <= k).float().mean())) for k in places]
        for modality, ranks in found.ranks.items()
    }
    text = (
        f"Each of {found.overall.num_rows} rows of the split {recipe.retrieve.split} is searched for among all: "
        f"its {found.target} by its {', its '.join(found.by_query)}. In brackets: 95 % intervals over rows."
    )
    figure = curves("Recall at k", lines, unit="share of queries", along="k")
    return Section("Retrieval", text, Table(header, rows), (figure,))


def _cells(found: Retrieval) -> tuple[str, ...]:
    estimates = [*found.recall.values(), found.mrr]
    return (*map(_with_interval, estimates), number(found.median_rank, 1), str(found.num_rows))


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate)} {interval(estimate)}"


def _few_shot(found: FewShotResults, recipe: Recipe) -> Section:
    asked = recipe.retrieve.few_shot
    labels = {
        "zero_shot": "names of the classes alone",
        "supervised_probe": f"linear probe on all {found.num_labelled} labelled rows",
        **{
            str(shots): f"{shots} labelled row{'s' * (shots > 1)} a class, mean of {asked.num_draws} draws"
            for shots in found.by_shots
        },
    }
    rows = tuple((labels[name], _with_interval(estimate)) for name, estimate in found.named.items())
    ends = [0, max(found.by_shots, default=1)]
    lines = {
        "nearest mean": [(shots, estimate.value) for shots, estimate in found.by_shots.items()],
        "zero-shot": [(x, found.zero_shot.value) for x in ends],
        "supervised probe": [(x, found.supervised_probe.value) for x in ends],
    }
    text = (
        f"{found.zero_shot.num_prompts} rows of the split {recipe.retrieve.split} are told apart by their "
        f"{asked.modality}, in {found.num_classes} classes, always in the same embedding."
    )
    figure = curves("Accuracy by labelled rows", lines, unit="share right", along="shot")
    return Section("Zero- and few-shot", text, Table(("Labels", "Accuracy"), rows), (figure,))


def _learning(directory: Path) -> tuple[Figure, ...]:
    steps = read_metrics(directory / "metrics").get("pretrain", [])
    figures: list[Figure] = []
    for title, (unit, starts) in PANELS.items():
        names = dict.fromkeys(name for row in steps for name in row if name.startswith(starts))
        lines = {
            name: [(float(row["step"]), float(row[name])) for row in steps if row.get(name) is not None]
            for name in names
        }
        if lines:
            figures.append(curves(title, lines, unit=unit))
    return tuple(figures)


def _example(example: Example, found: RetrievalResults) -> Section:
    prompt, sample = example.query
    heard = [medium for medium in prompt.media if medium.kind.value == example.modality.value]
    asked = [(f"asked by {example.modality}: {sample.text or ''}", heard)] if heard else []
    answers = [
        (f"{place}. {answer.text or row.id}", [each for each in row.media if each.kind.value == found.target.value])
        for place, (row, answer) in enumerate(example.answers, start=1)
    ]
    title = f"By {example.modality}: {sample.text or prompt.id}"
    return answers_section(title, [*asked, *answers], text=f"The right one is number {example.rank}.")
