"""Prompts that nobody looks into: references to nothing."""

from __future__ import annotations

from typing import Any, cast

from actors.roles.encoder import PromptRef
from pipeline.data.datasets import RowKey
from pipeline.records import PromptInfo


def prompt_ref(
    name: str, *, row: int = 0, num_tokens: int = 3, task: str = "task", answer: str | None = "yes"
) -> PromptRef:
    """A prompt whose answer is `yes`."""
    info = PromptInfo(name, task=task, answer=answer, demonstration=answer, modalities=())
    return PromptRef(info, RowKey(0, row), num_tokens, stored=cast(Any, None))
