"""How completions are sampled."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section


class Sampling(Section):
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the distribution sampled from; 0 is greedy."""
    top_k: int | None = Field(default=None, gt=0)
    """Only this many of the likeliest tokens can be sampled; null is all. Filters come after the temperature, in the
    order top_k, top_p, min_p, and behaviour logprobs are those of the distribution that they leave."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together have this probability can be sampled; 1 is all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Only tokens at least this times as likely as the likeliest can be sampled; 0 is all."""
    max_new_tokens: int = Field(default=16, gt=0)
    """Completions stop here at the latest, with finish reason `length`."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion as soon as it contains one. The tokens that spell it stay in the completion; its text
    ends before it."""

    @property
    def truncates(self) -> bool:
        """Whether filters are in use: behaviour logprobs then are not the policy's own at this temperature."""
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def greedy(self) -> Sampling:
        """The likeliest token at each step, with the same length and stop strings."""
        return Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens, stop=self.stop)

    @property
    def whole(self) -> Sampling:
        """The policy's whole distribution at this temperature, with the same length and stop strings."""
        return self.model_copy(update={"top_k": None, "top_p": 1.0, "min_p": 0.0})

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        for text in stop:
            if not text:
                raise ValueError("stop holds an empty text, which every completion contains: leave it out")
            if "\ufffd" in text:
                raise ValueError(f"stop={text!r} holds U+FFFD, which stands for half a character: leave it out")
        return stop

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.temperature == 0 and self.truncates:
            raise ValueError(
                f"temperature=0 takes the likeliest token, which top_k={self.top_k}, top_p={self.top_p} and "
                f"min_p={self.min_p} never remove: leave these out, or use a temperature above 0"
            )
        return self
