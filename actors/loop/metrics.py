"""Metrics in the Ray dashboard: the sink that `pipeline.tracking.Tracker` takes from a job as an extra one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from pipeline import config
from pipeline.config import Sink
from pipeline.tracking import MetricSink


class RayMetrics:
    """One `ray.util.metrics.Gauge` a metric, named `polyphony_<name with _>`, with the tags `stage` and `run`.

    Needs a process that is connected to Ray; gauges are made when their metric first comes.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Any] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sets every gauge to its newest value, and `polyphony_step` to the step."""
        for name, value in {"step": float(step), **metrics}.items():
            self._gauge(name).set(value)

    def close(self) -> None:
        """Nothing to do: Ray exports on its own and drops the gauges with the process."""

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            metrics = importlib.import_module("ray.util.metrics")
            gauge = metrics.Gauge(gauge_name(name), description=name, tag_keys=tuple(self._tags))
            gauge.set_default_tags(self._tags)
            self._gauges[name] = gauge
        return self._gauges[name]


def gauge_name(metric: str) -> str:
    """The Prometheus name of a metric: `kl/reference` becomes `polyphony_kl_reference`."""
    return "polyphony_" + re.sub(r"\W+", "_", metric, flags=re.ASCII)


def ray_sinks(run: config.Run, stage: str) -> tuple[MetricSink, ...]:
    """What a job passes as `Tracker(extra_sinks=...)`: the Ray sink where `run.sinks` names it."""
    return (RayMetrics(run.name, stage),) if Sink.RAY in run.sinks else ()
