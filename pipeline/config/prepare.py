"""What `jobs.prepare` makes: the built-in data."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class Prepare(Section):
    """The built-in data: digits, speech, scenes and videos made offline."""

    train_rows: int = Field(default=480, gt=0)
    """Rows of each task in the train split."""
    validation_rows: int = Field(default=16, gt=0)
    """Rows of each task in the validation split."""
    test_rows: int = Field(default=64, gt=0)
    """Rows of each task in the test split."""
    tasks: tuple[str, ...] = ("digit", "speech", "sum", "video", "scene", "text")
    """Which of the built-in tasks to make."""
