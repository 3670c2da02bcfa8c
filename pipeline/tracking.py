"""Metrics of a run: one `Tracker` a stage, which hands every step's numbers to the sinks of the recipe.

Names have slashes (`reward/mean`, `kl/reference`, `time/rollout_s`, `tokens_per_s/policy`, `counts/reward_failed`), and
say their unit where they have one. The JSONL file is the record that the report reads; other sinks are for watching.
Ray's own metrics need Ray, which this room does without: a job passes `actors.loop.metrics.ray_sinks(...)`.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from pipeline import config
from pipeline.config import ConfigError, Sink

HEADLINES = (
    "loss",
    "accuracy",
    "rewards/accuracy",
    "reward/mean",
    "reward/exact_match",
    "validation/greedy_exact_match",
    "kl/reference",
    "entropy",
    "completion/length",
    "time/step_s",
)
"""What the console shows first, where it is logged."""
NUM_CONSOLE_KEYS = 6


class MetricSink(Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one step's metrics; a value may be NaN or infinite."""
        ...

    def close(self) -> None:
        """Writes what is still held back."""
        ...


class Tracker:
    """Hands a stage's metrics to all sinks; use it as a context manager.

    run: the recipe's `run` section, which names the sinks and the directory.
    stage: `sft`, `rlhf`, ...: the name of the metrics file, of the TensorBoard run, and a tag elsewhere.
    num_steps: steps of the stage, for the progress shown on the console.
    resume_from_step: first step that this process logs. What an earlier process logged from there on is dropped, so
        that no step stands twice; 0 starts the stage's metrics anew. W&B and MLflow cannot take back what they
        have: there a resumed stage goes on in its run, and a step's newer value stands beside its older one.
    extra_sinks: sinks from rooms above, closed together with the rest.

    Raises:
        ConfigError: a sink's package is not installed.
    """

    def __init__(
        self,
        run: config.Run,
        stage: str,
        *,
        num_steps: int | None = None,
        resume_from_step: int = 0,
        extra_sinks: Sequence[MetricSink] = (),
    ) -> None:
        directory = run.directory
        makers: dict[Sink, Callable[[], MetricSink]] = {
            Sink.CONSOLE: lambda: ConsoleSink(stage, num_steps),
            Sink.JSONL: lambda: JsonlSink(directory / "metrics" / f"{stage}.jsonl", resume_from_step),
            Sink.TENSORBOARD: lambda: TensorBoardSink(directory / "tensorboard" / stage, resume_from_step),
            Sink.WANDB: lambda: WandbSink(run, stage, resume_from_step),
            Sink.MLFLOW: lambda: MlflowSink(run, stage, resume_from_step),
        }
        self._stage = stage
        self._samples = directory / "samples.jsonl"
        self._sinks: list[MetricSink] = list(extra_sinks)
        try:
            self._sinks += [makers[sink]() for sink in dict.fromkeys(run.sinks) if sink in makers]
        except BaseException:
            self.close()
            raise
        keep_lines(self._samples, lambda row: row.get("stage") != stage or row["step"] < resume_from_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one step's metrics; values may be NumPy or torch scalars, NaN or infinite."""
        numbers = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.log(step, numbers)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows (a completion with its prompt, rewards and lineage) to `<run.directory>/samples.jsonl`.

        Raises:
            TypeError: a row holds something that JSON does not.
        """
        append_lines(self._samples, ({"step": step, "stage": self._stage, **row} for row in rows))

    def close(self) -> None:
        """Closes every sink, also where one of them fails; the first failure is raised."""
        errors: list[Exception] = []
        while self._sinks:
            try:
                self._sinks.pop().close()
            except Exception as error:  # one sink's trouble must not cost the others their last lines
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ConsoleSink:
    """One aligned line a step: progress, the handful of keys that matter, and every count above zero."""

    def __init__(self, stage: str, num_steps: int | None = None, stream: TextIO | None = None) -> None:
        self._stage = stage
        self._num_steps = num_steps
        self._stream = stream

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        digits = len(str(self._num_steps or 10**5))
        total = f"/{self._num_steps}" if self._num_steps else ""
        parts = [f"{self._stage:<12} step {step:>{digits}}{total}"]
        parts += [f"{name} {metrics[name]:<9.4g}" for name in _console_keys(metrics)]
        parts += [f"{name} {value:g}" for name, value in metrics.items() if name.startswith("counts/") and value > 0]
        print("  ".join(parts).rstrip(), file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        pass


def _console_keys(metrics: Mapping[str, float]) -> list[str]:
    """Headlines first; where a stage logs few of them, its other metrics fill the line."""
    quiet = ("counts/", "time/", "tokens_per_s/")
    known = [name for name in HEADLINES if name in metrics]
    others = [name for name in metrics if name not in known and not name.startswith(quiet)]
    chosen = {*known, *others[: max(0, NUM_CONSOLE_KEYS - len(known))]}
    order = {name: rank for rank, name in enumerate(HEADLINES[:-1])}
    return sorted(chosen, key=lambda name: (name.startswith("time/"), order.get(name, len(order))))


class JsonlSink:
    """One JSON object a step, `{"step", "time", metric: value}`: seconds since 1970, null for what is not finite."""

    def __init__(self, path: Path, resume_from_step: int = 0) -> None:
        self._path = path
        keep_lines(path, lambda row: row["step"] < resume_from_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        append_lines(self._path, [{"step": step, "time": round(time.time(), 3), **metrics}])

    def close(self) -> None:
        pass


class TensorBoardSink:
    """Scalars in a TensorBoard event file; a resumed run hides what lies from its first step on."""

    def __init__(self, directory: Path, resume_from_step: int = 0) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer: Any = module.SummaryWriter(str(directory), purge_step=resume_from_step, flush_secs=10)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases: one run a stage, grouped under the run's name; a resumed stage goes on in the same run."""

    def __init__(self, run: config.Run, stage: str, resume_from_step: int = 0) -> None:
        wandb = _optional(Sink.WANDB, "wandb")
        memo = run.directory / "metrics" / f"{stage}.wandb"
        run_id = _remembered(memo, resume_from_step)
        self._run: Any = wandb.init(
            project="polyphony",
            group=run.name,
            job_type=stage,
            name=f"{run.name}/{stage}",
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(memo.parent),
        )
        memo.write_text(str(self._run.id), encoding="utf-8")
        # W&B's own step only rises; with a metric as the axis, steps that are logged again after a resume are kept.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """MLflow: an experiment a run, an MLflow run a stage; the server is the one that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: config.Run, stage: str, resume_from_step: int = 0) -> None:
        mlflow = _optional(Sink.MLFLOW, "mlflow")
        self._entities: Any = _optional(Sink.MLFLOW, "mlflow.entities")
        self._client: Any = mlflow.MlflowClient()
        memo = run.directory / "metrics" / f"{stage}.mlflow"
        run_id = _remembered(memo, resume_from_step)
        if run_id is None:
            experiment = self._client.get_experiment_by_name(run.name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(run.name)
            run_id = str(self._client.create_run(experiment_id, run_name=stage).info.run_id)
        memo.write_text(run_id, encoding="utf-8")
        self._run_id = run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        values = [self._entities.Metric(name, value, now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _optional(sink: Sink, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"run.sinks: {sink.value!r} needs a package that is not installed ({error}); "
            f"run `pip install 'polyphony[{sink.value}]'` or take {sink.value!r} out of run.sinks"
        ) from error


def _remembered(memo: Path, resume_from_step: int) -> str | None:
    """The tracker's id of this stage from an earlier process, or None where the stage starts anew."""
    memo.parent.mkdir(parents=True, exist_ok=True)
    return memo.read_text(encoding="utf-8").strip() if resume_from_step > 0 and memo.is_file() else None


def read_metrics(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Each stage's lines of `<directory>/<stage>.jsonl`, by rising step; of a step that stands twice, the last."""
    return {
        path.stem: [row for _, row in sorted({row["step"]: row for row in read_lines(path)}.items())]
        for path in sorted(directory.glob("*.jsonl"))
    }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that is still being written: a last line that a killed process tore is left out.

    Raises:
        ValueError: another line is no JSON.
    """
    lines = path.read_bytes().splitlines(
        keepends=True
    )  # of bytes: text has more line ends, which JSON leaves as they are
    for number, line in enumerate(lines, start=1):
        try:
            yield cast(dict[str, Any], json.loads(line))
        except ValueError as error:  # no JSON, or torn inside a character
            if number == len(lines) and not line.endswith(b"\n"):
                return
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends each row as one line of strict JSON; NaN and infinite numbers become null."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(text)


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites a JSONL file with only the rows to keep, in one atomic step; a missing file stays missing."""
    if not path.is_file():
        return
    rows = [row for row in read_lines(path) if keep(row)]
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    append_lines(draft, rows)
    draft.replace(path)


def finite(value: object) -> Any:
    """`value` with every NaN and infinity inside turned to None, since strict JSON knows neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in cast(Sequence[object], value)]
    return value
