"""How completions are sampled."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class Sampling(Section):
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the distribution sampled from; 0 is greedy."""
    max_new_tokens: int = Field(default=16, gt=0)
    """Completions stop here at the latest, with finish reason `length`."""

    @property
    def truncates(self) -> bool:
        """Whether less than the policy's whole distribution is sampled from."""
        return False

    def whole(self) -> Sampling:
        """The same without filters: the policy's whole distribution at that temperature."""
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def greedy(self) -> Sampling:
        """The likeliest completion, of the same length at most."""
        return Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
