"""The stages around the loop: SFT, preferences, reward model, evaluation."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section
from pipeline.config.workers import Trained


class Supervised(Trained):
    num_steps: int = Field(default=300, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=64, gt=0)
    """Rows in an optimizer step, over all workers."""
    rows: int | None = Field(default=None, gt=0)
    """Rows of the train split that have demonstrations (the first ones of the file); null takes all."""
    train_towers: bool = True
    """Whether vision and audio towers train too. The roles of the RLHF loop share frozen towers."""


class Preferences(Section):
    num_prompts: int = Field(default=512, gt=0)
    """Prompts of the train split for which the SFT model's samples are compared."""
    samples_per_prompt: int = Field(default=4, ge=2)
    """Completions sampled for each prompt; one pair of different ones is taken."""
    temperature: float = Field(default=1.8, gt=0)
    """Temperature of those samples: hot ones differ more, so that pairs hold clear mistakes beside subtle ones."""
    error_rate: float = Field(default=0.05, ge=0, lt=0.5)
    """How often the scripted rater prefers the worse completion."""


class RewardModel(Trained):
    num_steps: int = Field(default=60, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=32, gt=0)
    """Preference pairs in an optimizer step, over all workers."""


class Evaluate(Section):
    split: str = "test"
    """Split to evaluate on."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Completions sampled for each prompt at `rlhf.sampling`; greedy ones are scored beside them."""
    blind: bool = True
    """Whether to measure the blind gap: the same prompts with pictures, sounds and videos blanked."""
    browser_rows: int = Field(default=48, ge=0)
    """Rows in the report's sample browser."""
