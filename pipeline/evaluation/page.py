"""A page of figures: tables, curves and media in one static HTML file, in the style of the report.

What a row or a model says is untrusted, as in the report: text is escaped, media are embedded only in formats that are
recognised by their bytes, and a content security policy allows no script and no request at all.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from markupsafe import Markup

from pipeline.evaluation import charts
from pipeline.evaluation.report import embedded, sniff
from pipeline.records import Medium


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first of each row names it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A chart: a PNG file, or an SVG element of our own making, such as `curves` draws. `legend` names its colours."""

    caption: str
    svg_or_png: bytes
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class MediaItem:
    """A picture, sound or video to look at, in a file that browsers play."""

    caption: str
    medium: Medium


@dataclass(frozen=True)
class Section:
    """A titled part of the page: words, then a table, then charts, then media. Blank lines part paragraphs."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    media: tuple[MediaItem, ...] = ()


def write_page(path: Path, *, title: str, sections: Sequence[Section]) -> None:
    """Writes one HTML file that needs no server, no network and no other file.

    Raises:
        ValueError: a row of a table has another number of cells than its header, or a figure is neither PNG nor SVG.
    """
    for section in sections:
        _check(section)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast(dict[str, Any], environment.filters).update(embedded=embedded, drawn=_drawn)
    style = Markup(environment.get_template("report.css.jinja").render())
    page = environment.get_template("page.html.jinja").render(
        title=title, sections=sections, style=style, num_colours=charts.NUM_COLOURS
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.lstrip() + "\n", encoding="utf-8", errors="replace")


def curves(
    caption: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, unit: str, along: str = "step"
) -> Figure:
    """A chart of named curves, each of (x, y) points. `unit` labels the vertical axis, `along` the horizontal one."""
    series = tuple(charts.Series(name, tuple(points)) for name, points in lines.items())
    svg = charts.line_chart(charts.Panel(stage=caption, title=caption, unit=unit, series=series, along=along))
    return Figure(caption=caption, svg_or_png=str(svg).encode(), legend=tuple(lines))


def _check(section: Section) -> None:
    if section.table is not None:
        for row in section.table.rows:
            if len(row) != len(section.table.header):
                raise ValueError(
                    f"section {section.title!r}: a row has {len(row)} cells, the header {len(section.table.header)}: "
                    f"{row}"
                )
    for figure in section.figures:
        if not figure.svg_or_png.startswith(b"<svg") and sniff(figure.svg_or_png) != "image/png":
            raise ValueError(f"figure {figure.caption!r}: neither an <svg> element nor a PNG file")


def _drawn(figure: Figure) -> Markup:
    """The figure as an element. An SVG is our own, and scripts in one would not run: the page allows none."""
    if figure.svg_or_png.startswith(b"<svg"):
        return Markup(figure.svg_or_png.decode())
    source = f"data:image/png;base64,{base64.b64encode(figure.svg_or_png).decode()}"
    return Markup('<img src="{}" alt="{}">').format(source, figure.caption)
