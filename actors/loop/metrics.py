"""Metrics in the Ray dashboard: the sink that `pipeline.tracking.Tracker` takes from a job as an extra one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from pipeline import config
from pipeline.config import Sink
from pipeline.tracking import MetricSink

TAGGED = {
    "time/": ("_s", "role"),
    "wait/": ("_s", "role"),
    "tokens_per_s/": ("", "role"),
    "busy/": ("", "role"),
    "phase/": ("_s", "role"),
    "recovery/": ("_s", "role"),
    "counts/recoveries:": ("", "role"),
    "counts/recoveries_by_cause:": ("", "cause"),
    "pool/workers:": ("", "role"),
    "queue/tasks:": ("", "role"),
}
"""Metrics of which there is one for each role, phase or cause, and what their names end with: one gauge with a tag."""
COUNTED = ("polyphony_counts_recoveries", "polyphony_counts_recoveries_by_cause", "polyphony_recovery_s")
"""Counters, because what a step logs is what it has lost itself."""


class RayMetrics:
    """One `ray.util.metrics.Gauge` a metric, `polyphony_<name with _>`, with the tags `stage`, `run`, `role`, `cause`.

    Needs a process that is connected to Ray; gauges are made when their metric first comes.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage, "role": "", "cause": ""}
        self._gauges: dict[str, Any] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sets every gauge to its newest value, and `polyphony_step` to the step."""
        for metric, value in {"step": float(step), **metrics}.items():
            name, tags = gauge_of(metric)
            gauge = self._gauge(name)
            if name in COUNTED:
                gauge.inc(value, tags)
            else:
                gauge.set(value, tags)

    def close(self) -> None:
        """Nothing to do: Ray exports on its own and drops the gauges with the process."""

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            metrics = importlib.import_module("ray.util.metrics")
            kind = metrics.Counter if name in COUNTED else metrics.Gauge
            gauge = kind(name, description=name.removeprefix("polyphony_"), tag_keys=tuple(self._tags))
            gauge.set_default_tags(self._tags)
            self._gauges[name] = gauge
        return self._gauges[name]


def gauge_of(metric: str) -> tuple[str, dict[str, str]]:
    """The Prometheus name of a metric and its tags: `kl/reference` becomes `polyphony_kl_reference`, `time/rollout_s`
    becomes `polyphony_time_s` with the role `rollout`."""
    tags: dict[str, str] = {}
    for start, (end, tag) in TAGGED.items():
        if metric.startswith(start) and metric.endswith(end):
            tags[tag] = metric[len(start) : len(metric) - len(end)]
            metric = start.rstrip("/:") + end
            break
    return "polyphony_" + re.sub(r"\W+", "_", metric, flags=re.ASCII), tags


def ray_sinks(run: config.Run, stage: str) -> tuple[MetricSink, ...]:
    """What a job passes as `Tracker(extra_sinks=...)`: the Ray sink where `run.sinks` names it."""
    return (RayMetrics(run.name, stage),) if Sink.RAY in run.sinks else ()
