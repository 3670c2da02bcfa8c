"""Checkpoints of the loop: when, where, which are kept."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.paths import Location
from pipeline.config.section import Section


class BestMode(StrEnum):
    MAX = "max"
    MIN = "min"


class Exported(StrEnum):
    LAST = "last"
    BEST = "best"


class Checkpoints(Section):
    save_every: int = Field(default=20, gt=0)
    """Steps between checkpoints; the last step always saves one."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    max_failures: int = Field(default=3, ge=0)
    """Checkpoints one after the other that may fail (no room, no connection): the run goes on with the one before; one
    more ends it."""
    path: Location | None = None
    """Where they go: a directory that all nodes share, or a URL that fsspec knows (s3://bucket/run; its package must be
    installed on every node). null means `<run>/checkpoints/rlhf_steps`."""
    best_metric: str | None = None
    """Logged metric, such as reward/mean or validation/exact_match, whose best checkpoint is kept beyond `keep_last`;
    null keeps none."""
    best_mode: BestMode = BestMode.MAX
    """Whether more (`max`) or less (`min`) of `best_metric` is better."""
    export: Exported = Exported.LAST
    """Whose weights the stage hands on when it ends: those it ended with (`last`), or those of the `best` checkpoint by
    `best_metric`."""

    @model_validator(mode="after")
    def _check(self) -> Checkpoints:
        if self.export is Exported.BEST and self.best_metric is None:
            raise ValueError(
                "export=best with best_metric=null: nothing says which checkpoint is the best; name a metric, such as "
                "best_metric=validation/exact_match, or use export=last"
            )
        return self
