"""Charts: which panel a metric goes to, where ticks fall, what is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.evaluation.charts import (
    MAX_POINTS,
    Panel,
    Series,
    line_chart,
    panels,
    running_mean,
    thin,
    tick_label,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.12, 0.93, [0, 0.25, 0.5, 0.75, 1]),
        (-3.0, 7.0, [-5, -2.5, 0, 2.5, 5, 7.5]),
        (2.0, 2.0, [1, 1.5, 2, 2.5, 3]),
        (0.0, 0.0, [-0.5, -0.25, 0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_step_ticks_are_whole_and_stay_inside() -> None:
    assert ticks(0, 39, whole=True) == [0, 10, 20, 30]
    assert ticks(0, 2, whole=True) == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "label"),
    [(0.25, "0.25"), (-1.0, "\N{MINUS SIGN}1"), (12000, "12k"), (3e-5, "3e\N{MINUS SIGN}05"), (0, "0")],
)
def test_tick_labels_are_short(value: float, label: str) -> None:
    assert tick_label(value) == label


def test_every_metric_has_one_panel_and_unknown_ones_come_last() -> None:
    names = ["reward/mean", "kl/reference", "loss/value", "loss/policy", "policy/clip_fraction", "odd/x", "odd/y", "lr"]
    known, rest = panels({"rlhf": [{"step": 0, "time": 1.0, **dict.fromkeys(names, 0.5)}]})["RLHF"]
    assert [panel.title for panel in known] == ["Reward parts", "KL divergence", "Clipped share", "Value loss", "Loss"]
    assert [(panel.title, len(panel.series)) for panel in rest] == [("odd", 2), ("lr", 1)]


def test_stages_come_in_the_order_of_a_run_with_their_own_units() -> None:
    row = {"step": 0, "loss": 1.0}
    found = panels({"zeta": [row], "rlhf": [row], "reward_model": [row], "sft": [row], "empty": []})
    assert list(found) == ["Supervised fine-tuning", "Reward model", "RLHF", "zeta"]
    assert [known[0].unit for known, _ in found.values()] == ["nats a token", "nats a pair", "loss", "nats a token"]


def test_every_stage_that_learns_from_opinions_has_its_title_and_what_it_logs_its_own_panels() -> None:
    row = dict.fromkeys(
        ["loss", "sft_loss", "rewards/chosen", "rewards/margin", "rewards/accuracy", "logps/chosen"], 0.5
    )
    rows = [{"step": 0, **row}]
    found = panels({"rlhf": rows, "distill": rows, "preference": rows, "distill_samples": rows, "reward_model": rows})
    assert list(found) == [
        "Reward model",
        "Learning from preferences",
        "Distillation: what was sampled",
        "Distillation: what was learned",
        "RLHF",
    ]
    known, rest = found["Learning from preferences"]
    assert [(panel.title, panel.unit, [each.name for each in panel.series]) for panel in known] == [
        ("Loss", "loss", ["loss", "sft_loss"]),
        ("Accuracy", "share of pairs or completions", ["rewards/accuracy"]),
        ("Implicit rewards", "nats, times beta", ["rewards/chosen", "rewards/margin"]),
        ("Logprobs of completions", "nats", ["logps/chosen"]),
    ]
    assert not rest and found["Distillation: what was learned"][0][0].unit == "nats a token"


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    curves = {"sft": [{"step": n, "loss": value} for n, value in enumerate([1.0, 2.0, None, 3.0, 4.0])]}
    (panel,), _ = panels(curves)["Supervised fine-tuning"]
    svg = ElementTree.fromstring(line_chart(panel))
    (line,) = [path.attrib["d"] for path in svg.iter("path") if "line" in path.attrib["class"]]
    assert line.count("M") == 2 and line.count("L") == 2


def test_a_curve_that_few_steps_logged_has_its_points_marked_and_joined() -> None:
    rows = [{"step": step, "reward/mean": 0.5} for step in range(20)]
    for step, value in ((0, 0.25), (9, None), (19, 0.75)):
        rows[step]["validation/length"] = value  # pyright: ignore[reportArgumentType]
    (validation, rewards), _ = panels({"rlhf": rows})["RLHF"]
    assert (validation.title, validation.unit) == ("On validation while training", "mean over prompts")
    assert validation.series == (Series("validation/length", ((0, 0.25), (9, None), (19, 0.75)), is_sparse=True),)
    assert not rewards.series[0].is_sparse
    svg = ElementTree.fromstring(line_chart(validation))
    (line,) = [path.attrib["d"] for path in svg.iter("path") if "line" in path.attrib["class"]]
    assert (line.count("M"), line.count("L")) == (1, 1)
    assert [float(dot.attrib["cx"]) for dot in svg.iter("circle")] == [50.0, 392.0]
    assert not list(ElementTree.fromstring(line_chart(rewards)).iter("circle"))


@pytest.mark.parametrize("points", [(), ((0.0, None),), ((3.0, 1.0),)])
def test_a_curve_of_nothing_or_of_one_point_is_drawn_without_fuss(
    points: tuple[tuple[float, float | None], ...],
) -> None:
    svg = ElementTree.fromstring(line_chart(Panel("sft", "Loss", "nats", (Series("loss", points),))))
    assert len(list(svg.iter("circle"))) == (points == ((3.0, 1.0),))


def test_names_are_escaped() -> None:
    panel = Panel('s"><script>', "<b>", "<i>", (Series('"><script>', ((0, 1.0), (1, 2.0))),))
    assert "<script" not in line_chart(panel) and "<b>" not in line_chart(panel)
    ElementTree.fromstring(line_chart(panel))


def test_long_curves_are_thinned_by_means_and_smoothed_without_lag() -> None:
    line = [(float(step), float(step)) for step in range(10 * MAX_POINTS)]
    thinned = thin(line)
    assert len(thinned) == MAX_POINTS
    assert thinned[0] == (9.0, 4.5)
    assert running_mean(line) == line
