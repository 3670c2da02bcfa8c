"""Evaluation while the policy trains: on which prompts, and when it has learned enough, or learns no more."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, field_validator

from pipeline.config.section import Section

VALIDATION = "validation/"
"""What the names of validation metrics begin with."""


class Measure(StrEnum):
    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    ANY_OF_K = "any_of_k"
    GREEDY_EXACT_MATCH = "greedy_exact_match"
    GREEDY_CONTAINS = "greedy_contains"

    def metric(self, task: str = "") -> str:
        """`validation/<measure>`, or that of a task, `validation/<task>/<measure>`."""
        return f"{VALIDATION}{task}/{self}" if task else f"{VALIDATION}{self}"


TASK_MEASURES = (Measure.EXACT_MATCH, Measure.CONTAINS, Measure.GREEDY_EXACT_MATCH)
"""What is measured of each task beside the whole."""


def check_metric(field: str, name: str) -> None:
    """Makes sure that evaluations give a metric of this name. Which tasks there are is not known before a run.

    Raises:
        ValueError: they do not.
    """
    task, _, measure = name.removeprefix(VALIDATION).rpartition("/")
    if not name.startswith(VALIDATION) or measure not in tuple(TASK_MEASURES if task else Measure):
        raise ValueError(
            f"{field}={name}: no evaluation gives it; there are {VALIDATION} and one of {', '.join(Measure)}, and for "
            f"a task {VALIDATION}<task>/ and one of {', '.join(TASK_MEASURES)}"
        )


class Validation(Section):
    split: str = "validation"
    """Split whose prompts are completed. A checkpoint or an end may be chosen by them: it is none that is learned from,
    or reported on."""
    num_prompts: int | None = Field(default=96, gt=0)
    """How many of its prompts with an answer, in turn from each task and the same at every evaluation; null is all."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Completions sampled for each prompt at `rlhf.sampling`; a greedy one is scored beside them."""
    stop_metric: str = Measure.GREEDY_EXACT_MATCH.metric()
    """The validation metric that `stop_at` and `patience` look at; more is better in all of them."""
    stop_at: float | None = Field(default=None, gt=0, le=1)
    """The run ends at the first evaluation whose `stop_metric` is this or more."""
    patience: int | None = Field(default=None, ge=1)
    """The run ends after so many evaluations in a row whose `stop_metric` was no better than before."""
    min_delta: float = Field(default=0.0, ge=0, lt=1)
    """By how much `stop_metric` must be better than the best so far, at least, to count as better."""

    @field_validator("stop_metric")
    @classmethod
    def _check_stop_metric(cls, name: str) -> str:
        check_metric("stop_metric", name)
        return name
