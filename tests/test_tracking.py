"""The tracker: what reaches each sink, and what a resumed run leaves of the run before it."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.loop.metrics import RayMetrics, gauge_of, ray_sinks
from pipeline.config import ConfigError, Run, Sink
from pipeline.tracking import Tracker, read_lines, read_metrics


class Memory:
    """A sink that remembers."""

    def __init__(self, fails: bool = False) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self.fails = fails

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True
        if self.fails:
            raise OSError("disk full")


def a_run(directory: Path, *sinks: Sink) -> Run:
    return Run(name="trial", directory=directory, seed=0, sinks=sinks)


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_jsonl_holds_one_strict_object_a_step_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    with Tracker(a_run(tmp_path, Sink.JSONL), "sft") as tracker:
        tracker.log(0, {"loss": float(np.float32(1.5)), "kl/reference": math.nan})
        tracker.log(1, {"loss": math.inf, "accuracy": 1})
    rows = [strict(line) for line in (tmp_path / "metrics" / "sft.jsonl").read_text().splitlines()]
    assert [row.pop("time") > 1e9 for row in rows] == [True, True]
    assert rows == [{"step": 0, "loss": 1.5, "kl/reference": None}, {"step": 1, "loss": None, "accuracy": 1.0}]


def test_a_resumed_run_leaves_no_step_twice_in_metrics_and_samples(tmp_path: Path) -> None:
    run = a_run(tmp_path, Sink.JSONL)
    with Tracker(run, "sft") as tracker:
        tracker.samples(0, [{"text": "other stage"}])
    with Tracker(run, "rlhf") as tracker:
        for step in range(5):
            tracker.log(step, {"reward/mean": float(step)})
            tracker.samples(step, [{"text": f"first {step}"}])
    with (tmp_path / "metrics" / "rlhf.jsonl").open("a") as file:
        file.write('{"step": 5, "reward/me')  # the process died while it wrote
    with Tracker(run, "rlhf", resume_from_step=3) as tracker:
        for step in range(3, 6):
            tracker.log(step, {"reward/mean": 10.0 + step})
            tracker.samples(step, [{"text": f"again {step}"}])
    rows = read_metrics(tmp_path / "metrics")["rlhf"]
    assert [(row["step"], row["reward/mean"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 13), (4, 14), (5, 15)]
    assert len((tmp_path / "metrics" / "rlhf.jsonl").read_text().splitlines()) == 6
    texts = [row["text"] for row in read_lines(tmp_path / "samples.jsonl")]
    assert texts == ["other stage", "first 0", "first 1", "first 2", "again 3", "again 4", "again 5"]


def test_a_stage_that_starts_anew_forgets_its_last_run(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Tracker(a_run(tmp_path, Sink.JSONL), "sft") as tracker:
            tracker.log(0, {"loss": value})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics")["sft"]] == [2.0]


def test_of_a_step_logged_twice_by_one_process_the_last_is_read(tmp_path: Path) -> None:
    with Tracker(a_run(tmp_path, Sink.JSONL), "rlhf") as tracker:
        for step, value in ((0, 0.0), (1, 1.0), (0, 5.0)):
            tracker.log(step, {"loss": value})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics")["rlhf"]] == [(0, 5.0), (1, 1.0)]


def test_a_broken_line_inside_a_metrics_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 0}\n{oops\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not JSON"):
        list(read_lines(path))


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    run = a_run(tmp_path, Sink.TENSORBOARD)
    for start, stop in ((0, 5), (3, 6)):
        with Tracker(run, "rlhf", resume_from_step=start) as tracker:
            for step in range(start, stop):
                tracker.log(step, {"reward/mean": 100.0 * start + step, "kl/reference": math.nan})
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(tmp_path / "tensorboard" / "rlhf"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert found == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 303.0), (4, 304.0), (5, 305.0)]


def test_the_console_line_says_progress_headlines_and_what_was_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(a_run(tmp_path, Sink.CONSOLE), "rlhf", num_steps=40) as tracker:
        tracker.log(3, {"time/step_s": 4.25, "entropy": 1.5, "counts/reward_failed": 2, "counts/truncated": 0})
        tracker.log(12, {"time/step_s": 14.5, "entropy": math.nan, "reward/mean": 0.5, "time/rollout_s": 1.0})
    first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == "rlhf step 3/40 entropy 1.5 time/step_s 4.25 counts/reward_failed 2"
    assert " ".join(second.split()) == "rlhf step 12/40 reward/mean 0.5 entropy nan time/step_s 14.5"
    assert first.index("/40") == second.index("/40")


@pytest.mark.parametrize("sink", [Sink.WANDB, Sink.MLFLOW])
def test_a_sink_whose_package_is_missing_names_the_extra_and_closes_the_others(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, sink.value, None)
    memory = Memory()
    with pytest.raises(ConfigError, match=rf"run\.sinks.*polyphony\[{sink.value}\]"):
        Tracker(a_run(tmp_path, sink), "sft", extra_sinks=[memory])
    assert memory.closed


def test_extra_sinks_get_plain_floats_and_are_closed_even_where_one_fails(tmp_path: Path) -> None:
    first, second = Memory(), Memory(fails=True)
    with pytest.raises(OSError, match="disk full"), Tracker(a_run(tmp_path), "sft", extra_sinks=[first, second]) as it:
        it.log(7, {"loss": np.float64(2)})
    assert first.logged == second.logged == [(7, {"loss": 2.0})]
    assert first.closed


def test_ray_gauges_have_prometheus_names_and_come_only_where_the_recipe_asks(tmp_path: Path) -> None:
    assert gauge_of("time/rollout_s") == ("polyphony_time_s", {"role": "rollout"})
    assert gauge_of("counts/recoveries:critic") == ("polyphony_counts_recoveries", {"role": "critic"})
    assert gauge_of("counts/recoveries_by_cause:hung") == ("polyphony_counts_recoveries_by_cause", {"cause": "hung"})
    assert gauge_of("recovery/policy_s") == ("polyphony_recovery_s", {"role": "policy"})
    assert gauge_of("kl/reference@k3 é") == ("polyphony_kl_reference_k3_", {})
    assert ray_sinks(a_run(tmp_path, Sink.JSONL), "rlhf") == ()
    (sink,) = ray_sinks(a_run(tmp_path, Sink.RAY), "rlhf")
    assert isinstance(sink, RayMetrics)
    sink.log(3, {"kl/reference": 0.25, "loss": math.nan})  # a gauge takes values before Ray is there
    sink.log(4, {"kl/reference": 0.5})
    sink.close()
