"""The stages around the loop: SFT, preferences, reward model, evaluation."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.parts import TOWERS, Parts
from pipeline.config.section import Section
from pipeline.config.workers import Learner, Trained


class Supervised(Trained):
    num_steps: int = Field(default=300, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=64, gt=0)
    """Rows in an optimizer step, over all workers."""
    rows: int | None = Field(default=None, gt=0)
    """Rows of the train split that have demonstrations (the first ones of the file); null takes all."""
    parts: Parts = Parts()
    """Which parts of the model learn, how, and how fast. Towers learn too: the roles of the loop share frozen ones."""

    @model_validator(mode="after")
    def _check_parts(self) -> Supervised:
        self.parts.check_learns()
        return self


class Preferences(Section):
    split: str = "train"
    """Split of the compared prompts, whether they are sampled from or come with comparisons."""
    num_prompts: int = Field(default=512, gt=0)
    """Prompts of that split for which the SFT model's samples are compared."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Completions sampled for each prompt, to compare with each other."""
    pairs_per_prompt: int = Field(default=1, gt=0)
    """Pairs of a prompt that are compared, at most: the best with the worst, then others, in turn such as differ in
    what they say and such as differ in manner alone."""
    ties: bool = False
    """Whether the scripted rater says of two equally good completions that they are; otherwise it says nothing."""
    temperature: float = Field(default=1.8, gt=0)
    """Temperature of those samples: hot ones differ more, so that pairs hold clear mistakes beside subtle ones."""
    error_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """How often the scripted rater prefers the worse completion."""


class RewardModel(Learner):
    num_steps: int = Field(default=60, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=32, gt=0)
    """Preference pairs in an optimizer step, over all workers."""
    margin_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """What the margins of the table are multiplied by before a chosen score has to be larger by so much; 0 ignores
    them."""
    held_out_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the prompts whose pairs are never learned, by a hash of their ids: such pairs standardise the learned
    reward and say how good it is."""
    max_held_out: int = Field(default=512, gt=0)
    """Pairs that are held out, at most."""

    @model_validator(mode="after")
    def _check(self) -> RewardModel:
        towers = [name for name in self.parts.learning() if name in TOWERS]
        if towers:
            raise ValueError(
                f"parts.{towers[0]}.mode={self.parts.of(towers[0]).mode}: the reward model shares tower features with "
                "the other roles of the loop; use freeze"
            )
        return self


class Evaluate(Section):
    split: str = "test"
    """Split to evaluate on."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Completions sampled for each prompt at `rlhf.sampling`; greedy ones are scored beside them."""
    blind: bool = True
    """Whether to measure what models lose when prompts come with their media blanked, or with another row's."""
    browser_rows: int = Field(default=48, ge=0)
    """Rows in the report's sample browser."""
