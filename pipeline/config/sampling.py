"""How completions are sampled."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class Sampling(Section):
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the distribution sampled from; 0 is greedy."""
    max_new_tokens: int = Field(default=16, gt=0)
    """Completions stop here at the latest, with finish reason `length`."""
