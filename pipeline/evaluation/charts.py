"""Training curves as inline SVG: which metrics share a panel, and how a panel is drawn.

Colours, fonts and the pointer's readout come from the report's style sheet and script; an SVG carries its data in
`data-chart`, so that the script needs nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 392, 26, 200
MAX_POINTS = 400
SMOOTH_FROM = 120
"""Curves with at least this many points show their running mean, with the points faint behind it."""
NUM_COLOURS = 8

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""Stage -> one mapping a step, as `pipeline.tracking.read_metrics` gives them."""


@dataclass(frozen=True)
class Series:
    """A metric over steps; a value is None where it was not finite. `is_sparse`: most steps did not log it."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    is_sparse: bool = False


@dataclass(frozen=True)
class Panel:
    """Metrics of one stage that share axes. `unit` labels the vertical axis, `along` the other one."""

    stage: str
    title: str
    unit: str
    series: tuple[Series, ...]
    along: str = "step"


PANELS = (
    ("On validation while training", "mean over prompts", ("validation/*",)),
    ("Reward parts", "reward", ("reward/*",)),
    ("Shares of the signal", "share", ("reward_share/*",)),
    ("Weights of reward parts", "weight", ("reward_weight/*",)),
    ("KL divergence", "nats", ("kl", "kl/*", "*/kl", "kl_*", "*/kl_*")),
    ("Entropy", "nats a token", ("entropy", "entropy/*", "*/entropy")),
    ("Clipped share", "share of tokens", ("*clip_fraction*", "*clipfrac*", "clip/*")),
    ("Value loss", "loss", ("loss/value", "loss/critic", "value/loss", "critic/loss", "value_loss*", "*/value_loss")),
    ("Loss", "nats a token", ("loss", "loss/*", "*/loss", "*_loss")),
    ("Accuracy", "share of pairs", ("accuracy", "accuracy/*", "*/accuracy")),
    ("Implicit rewards", "nats, times beta", ("rewards/*",)),
    ("Logprobs of completions", "nats", ("logps/*",)),
    ("Completion length", "tokens", ("length", "length/*", "*/length", "*_length*", "lengths/*")),
    ("Time by role", "seconds a step", ("time/*", "seconds/*")),
    ("Throughput", "tokens a second", ("tokens_per_s", "tokens_per_s/*")),
    ("Counts", "a step", ("counts/*",)),
)
"""Title, unit and name patterns of the panels, in order; a metric goes to the first that matches."""
UNITS = {
    ("reward_model", "Loss"): "nats a pair",
    ("preference", "Loss"): "loss",
    ("preference", "Accuracy"): "share of pairs or completions",
    ("rlhf", "Loss"): "loss",
}
STAGES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward_model": "Reward model",
    "preference": "Learning from preferences",
    "distill_samples": "Distillation: what was sampled",
    "distill": "Distillation: what was learned",
    "rlhf": "RLHF",
}
"""Stages in the order of a run, with the titles they have in the report; others follow by name."""


def panels(curves: Curves) -> dict[str, tuple[list[Panel], list[Panel]]]:
    """Each stage's panels, by stage title: those of `PANELS`, then one for every group of other metrics."""
    order = [*(stage for stage in STAGES if stage in curves), *sorted(set(curves) - set(STAGES))]
    return {title(stage): _stage_panels(stage, curves[stage]) for stage in order if curves[stage]}


def title(stage: str) -> str:
    """What the report calls a stage."""
    return STAGES.get(stage, stage)


def _stage_panels(stage: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], list[Panel]]:
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "time"))
    taken: dict[str, list[str]] = {}
    rest: dict[str, list[str]] = {}
    for name in names:
        title = next((title for title, _, patterns in PANELS if _matches(name, patterns)), None)
        group = taken.setdefault(title, []) if title else rest.setdefault(name.partition("/")[0], [])
        group.append(name)
    units = {title: UNITS.get((stage, title), unit) for title, unit, _ in PANELS}
    known = [_panel(stage, title, units[title], taken[title], rows) for title in units if title in taken]
    return known, [_panel(stage, title, "value", group, rows) for title, group in rest.items()]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _panel(stage: str, title: str, unit: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Panel:
    def value(row: Mapping[str, Any], name: str) -> float | None:
        number = row[name]
        return float(number) if isinstance(number, (int, float)) and math.isfinite(number) else None

    logged = {name: tuple((row["step"], value(row, name)) for row in rows if name in row) for name in names}
    series = (Series(name, points, is_sparse=2 * len(points) <= len(rows)) for name, points in logged.items())
    return Panel(stage, title, unit, tuple(series))


def line_chart(panel: Panel) -> Markup:
    """Draws a panel: ticks at round numbers, a gap where a value is not finite, at most `MAX_POINTS` points a curve.

    A sparse curve has its points marked and joined, whatever lies between them.
    """
    series = [Series(item.name, thin(item.points), item.is_sparse) for item in panel.series]
    steps = [step for item in series for step, _ in item.points] or [0.0]
    values = [value for item in series for _, value in item.points if value is not None] or [0.0]
    x_ticks, y_ticks = ticks(min(steps), max(steps), whole=True), ticks(min(values), max(values))
    x_range = _widened(min(steps), max(steps))
    y_range = _widened(min(*y_ticks, *values), max(*y_ticks, *values))

    def place(step: float, value: float) -> tuple[float, float]:
        return (
            LEFT + (RIGHT - LEFT) * (step - x_range[0]) / (x_range[1] - x_range[0]),
            BOTTOM - (BOTTOM - TOP) * (value - y_range[0]) / (y_range[1] - y_range[0]),
        )

    marks = [f'<text class="axis" x="4" y="11">{escape(panel.unit)}</text>']
    for tick in y_ticks:
        y = place(x_range[0], tick)[1]
        marks.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        marks.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in x_ticks:
        x = place(tick, y_range[0])[0]
        marks.append(f'<text class="tick" x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick_label(tick)}</text>')
    middle = (LEFT + RIGHT) / 2
    along = escape(panel.along)
    marks.append(f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{along}</text>')
    for number, item in enumerate(series):
        marks += _curve(item, number, place)
    label = f"{panel.title} ({panel.unit}) over the {panel.along}s of {panel.stage}"
    data = {
        "box": [LEFT, RIGHT, TOP, BOTTOM],
        "x": x_range,
        "series": [{"name": item.name, "points": item.points} for item in series],
    }
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, json.dumps(data), Markup("".join(marks))
    )


def _curve(item: Series, number: int, place: Any) -> list[str]:
    colour = f"c{number % NUM_COLOURS}" + (" dashed" if number >= NUM_COLOURS else "")
    title = f"<title>{escape(item.name)}</title>"
    known = [(step, value) for step, value in item.points if value is not None]
    marks: list[str] = []
    if len(known) == 1 or item.is_sparse:
        dots = [place(*point) for point in known]
        marks = [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">{title}</circle>' for x, y in dots]
    if len(known) == 1:
        return marks
    if item.is_sparse:
        return [f'<path class="line {colour}" d="{_path(known, place)}">{title}</path>', *marks]
    smooth = len(known) >= SMOOTH_FROM
    lines = [f'<path class="line {colour}{" faint" if smooth else ""}" d="{_path(item.points, place)}">{title}</path>']
    if smooth:
        lines.append(f'<path class="line {colour}" d="{_path(running_mean(item.points), place)}">{title}</path>')
    return lines


def _path(points: Iterable[tuple[float, float | None]], place: Any) -> str:
    parts: list[str] = []
    pen = "M"
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        x, y = cast(tuple[float, float], place(step, value))
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def thin(points: Sequence[tuple[float, float | None]]) -> tuple[tuple[float, float | None], ...]:
    """At most `MAX_POINTS` points: means over runs of neighbours, five significant digits; steps are the run's last."""
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    runs = (points[start : start + size] for start in range(0, len(points), size))
    return tuple((run[-1][0], _rounded([value for _, value in run if value is not None])) for run in runs)


def _rounded(values: Sequence[float]) -> float | None:
    return float(f"{math.fsum(values) / len(values):.5g}") if values else None


def running_mean(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Mean over a centred window, a twentieth of the curve and less towards its ends: smooth without lag."""
    reach = len(points) // 40
    smooth: list[tuple[float, float | None]] = []
    for at, (step, value) in enumerate(points):
        half = min(reach, at, len(points) - 1 - at)
        near = [each for _, each in points[at - half : at + half + 1] if each is not None]
        smooth.append((step, None if value is None else math.fsum(near) / len(near)))
    return smooth


def ticks(low: float, high: float, *, num: int = 4, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover the range; with `whole`, integers inside of it."""
    low, high = _widened(low, high)
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = (math.ceil(low / step), math.floor(high / step)) if whole else _covering(low, high, step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _covering(low: float, high: float, step: float) -> tuple[int, int]:
    slack = 1e-9
    return math.floor(low / step + slack), math.ceil(high / step - slack)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, opened where it holds one number only, so that a flat curve lies in the middle."""
    if high > low:
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, high + half


def tick_label(value: float) -> str:
    """A tick in at most six characters: 0.25, 12k, 3e-05; the minus sign is a true one."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        text = f"{value:.1e}".replace(".0e", "e")
    elif size >= 10_000:
        text = f"{value / 1000:g}k"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")
