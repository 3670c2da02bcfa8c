"""What a prepared table is made of: the dataset card, a picture of the distributions, and the same for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pyarrow import fs

from pipeline.config import Recipe
from pipeline.data.filesystems import filesystem
from pipeline.data.ingest.index import PROMPTS, Index
from pipeline.data.ingest.splits import NAMES

FILE, README, PICTURE = "prepare.json", "README.md", "distributions.png"
_MADE = "Made by Polyphony's `jobs.prepare`"


def summarise(
    index: Index, *, num_read: int, recipe: Recipe, tables: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Counts of a table. tables: rows by table and split."""
    datasets = index.counts("dataset")
    return {
        "rows_read": num_read,
        "rows": {split: sum(counts.get(split, 0) for counts in datasets.values()) for split in NAMES},
        "refused": index.reasons(is_bad=True),
        "left_out": index.reasons(is_bad=False),
        "unread": [dict(zip(("dataset", "path", "rows"), each, strict=True)) for each in index.unread()],
        "tables": {name: dict(counts) for name, counts in tables.items()},
        "without_answer": index.counts("has_answer").get(False, {}),
        "datasets": datasets,
        "tasks": index.counts("task"),
        "modalities": _named(index.counts("modalities")),
        "num_tokens": quantiles(index.histogram("num_tokens")),
        "num_answer_tokens": quantiles(index.histogram("num_answer_tokens")),
        "seconds": round(index.total("seconds"), 1),
        "settings": recipe.prepare.model_dump(
            mode="json", exclude={"train_rows", "validation_rows", "test_rows", "tasks"}
        ),
        "limits": recipe.data.limits.model_dump(mode="json"),
        "seed": recipe.run.seed,
    }


def _named(modalities: Mapping[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {name or "text": counts for name, counts in modalities.items()}


def quantiles(histogram: Mapping[str, Mapping[float, int]]) -> dict[str, float] | None:
    """Mean and quantiles over all splits of what is known."""
    if not histogram:
        return None
    values, counts = (
        np.array([pair[place] for each in histogram.values() for pair in each.items()]) for place in (0, 1)
    )
    places = {"min": 0.0, "p50": 0.5, "p95": 0.95, "max": 1.0}
    return {
        "mean": round(float(np.average(values, weights=counts)), 1),
        **{
            name: float(np.quantile(values, place, weights=counts, method="inverted_cdf"))
            for name, place in places.items()
        },
    }


def write(directory: Path, summary: Mapping[str, Any], index: Index) -> None:
    """Writes `README.md`, `distributions.png` and `prepare.json`."""
    (directory / FILE).write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    draw(directory / PICTURE, summary, index)
    (directory / README).write_text(card(summary), encoding="utf-8")


def read(directory: str) -> dict[str, Any] | None:
    """What `write` said of the table in a directory; None where the table was not prepared from sources."""
    system, inner = filesystem(f"{directory.rstrip('/')}/{FILE}")
    if system.get_file_info(inner).type != fs.FileType.File:
        return None
    with system.open_input_stream(inner) as file:
        return json.loads(file.read())


def tables(directory: Path) -> Mapping[str, Any] | None:
    """Rows by table and split as `write` said; None where it said nothing, or somebody else did."""
    try:
        return (read(str(directory)) or {})["tables"]
    except (ValueError, KeyError, TypeError):
        return None


def is_ours(readme: Path) -> bool:
    """Whether `write` wrote a card."""
    return readme.is_file() and _MADE in readme.read_text(encoding="utf-8", errors="replace")


def card(summary: Mapping[str, Any]) -> str:
    """The dataset card, its head as `datasets` reads it."""

    def numbers(num_rows: int) -> str:
        return "" if num_rows <= summary["settings"]["rows_per_file"] else "-*-of-*"

    configs = [
        {
            "config_name": "default" if table == PROMPTS else table,
            "data_files": [
                {"split": split, "path": f"{'' if table == PROMPTS else table + '/'}{split}{numbers(count)}.parquet"}
                for split, count in counts.items()
            ],
        }
        for table, counts in summary["tables"].items()
    ]
    head = yaml.safe_dump({"configs": configs, "tags": ["polyphony"]}, sort_keys=False, allow_unicode=True)
    tokens = [[name, *(summary[name] or {}).values()] for name in ("num_tokens", "num_answer_tokens") if summary[name]]
    refused = [*summary["refused"].items(), *((f"{name} (left out)", n) for name, n in summary["left_out"].items())]
    steps = [
        [step["step"], ", ".join(f"{name}={value}" for name, value in step.items() if name != "step")]
        for step in summary["settings"]["steps"]
    ]
    unread = [list(each.values()) for each in summary.get("unread", ())]
    kept = sum(summary["rows"].values())
    parts = [
        f"---\n{head}---\n\n# Prompts\n\n{_MADE}: {summary['rows_read']} rows read, {kept} "
        f"kept, with {summary['seconds']:g} seconds of sound and video.",
        "![Distributions](distributions.png)",
        *(_section(f"Rows by {title}", [title, *NAMES], _by_split(summary[key])) for title, key in _COUNTED),
        _section("Rows by table", ["table", *NAMES], _by_split(summary["tables"])),
        _section("Rows without an answer", list(NAMES), _without_answer(summary)),
        _section("Tokens", ["", "mean", "min", "p50", "p95", "max"], tokens),
        _section("Rows that are not here (`quarantine.parquet`)", ["reason", "rows"], [list(row) for row in refused]),
        _section("Not read", ["dataset", "column or key", "rows"], unread),
        _section("Preprocessing, in this order", ["step", "parameters"], steps),
        "## Settings\n\n```yaml\n"
        + yaml.safe_dump(
            {key: summary[key] for key in ("seed", "settings", "limits")}, sort_keys=False, allow_unicode=True
        )
        + "```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _without_answer(summary: Mapping[str, Any]) -> list[list[int]]:
    counts = summary["without_answer"]
    return [[counts.get(split, 0) for split in NAMES]] if counts else []


_COUNTED = (("task", "tasks"), ("modality", "modalities"), ("dataset", "datasets"))


def _by_split(counts: Mapping[str, Mapping[str, int]]) -> list[list[Any]]:
    return [[name, *(by_split.get(split, 0) for split in NAMES)] for name, by_split in counts.items()]


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return f"## {title}\n\n" + "\n".join(lines)


def _cell(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:200]


def draw(path: Path, summary: Mapping[str, Any], index: Index) -> None:
    """A picture of how tokens, answers, seconds and modalities are distributed in each split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    (tokens, answers), (seconds, kinds) = figure.subplots(2, 2)
    measures = (
        (tokens, "num_tokens", "tokens of a prompt"),
        (answers, "num_answer_tokens", "tokens of an answer"),
        (seconds, "seconds", "seconds of sound and video"),
    )
    for axes, name, title in measures:
        histogram = index.histogram(name)
        by_split = [{value: n for value, n in histogram.get(split, {}).items() if value} for split in NAMES]
        if any(by_split):
            weights = [list(each.values()) for each in by_split]
            axes.hist([list(each) for each in by_split], weights=weights, bins=30, label=NAMES, stacked=True)
            axes.legend(loc="upper right")
        axes.set(xlabel=title, ylabel="rows")
    counts = Counter({name: sum(by_split.values()) for name, by_split in summary["modalities"].items()})
    kinds.barh([name for name, _ in counts.most_common(12)], [n for _, n in counts.most_common(12)])
    kinds.invert_yaxis()
    kinds.set(xlabel="rows")
    figure.savefig(path, dpi=110)
