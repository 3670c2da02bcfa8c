"""Checkpoints of the loop: when, where, which are kept."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from pipeline.config.section import Section


class BestMode(StrEnum):
    MAX = "max"
    MIN = "min"


class Checkpoints(Section):
    save_every: int = Field(default=20, gt=0)
    """Steps between checkpoints; the last step always saves one."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    path: str | None = None
    """Where they go: a directory that all nodes share, or a URL that fsspec knows (s3://bucket/run; its package must be
    installed on every node). null means `<run>/checkpoints/rlhf_steps`."""
    best_metric: str | None = None
    """Logged metric, such as reward/mean, whose best checkpoint is kept beyond `keep_last`; null keeps none."""
    best_mode: BestMode = BestMode.MAX
    """Whether more (`max`) or less (`min`) of `best_metric` is better."""
