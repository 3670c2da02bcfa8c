"""The stages around the loop: SFT, preferences, reward model, evaluation."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from pipeline.config.feedback import Criterion
from pipeline.config.parts import TOWERS, Parts
from pipeline.config.paths import DiskPath
from pipeline.config.section import Section
from pipeline.config.workers import Learner, Trained
from pipeline.records import OVERALL


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


class Distill(Supervised):
    teacher: str = "sft"
    """Checkpoint of the run (sft, preference, rlhf) that samples."""
    student: DiskPath | None = None
    """Hugging Face directory of the checkpoint that learns, such as a smaller one; null: the teacher's own."""
    split: str = "train"
    """Split of the prompts."""
    num_prompts: int = Field(default=512, gt=0)
    """Prompts that are completed, the first ones in the run's order."""
    samples_per_prompt: int = Field(default=8, ge=1)
    """Completions of each, sampled as `rlhf.sampling` says and judged by `rlhf.rewards`."""
    keep: int = Field(default=1, ge=1)
    """Completions of a prompt that are learned: its best ones, each text once."""
    least_reward: float | None = Field(default=None, allow_inf_nan=False)
    """Reward below which none is learned; null keeps the best, however bad."""
    num_steps: int = Field(default=60, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=32, gt=0)
    """Completions in an optimizer step, over all workers."""


class Export(Section):
    checkpoint: str = "rlhf"
    """Checkpoint of the run (sft, preference, distilled, rlhf) that is written with int8 weights, and compared with
    itself on the rows of `evaluate.split`."""


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
    """Rows of the preference table (pairs, rankings, ratings) in an optimizer step, over all workers."""
    criteria: tuple[Criterion, ...] = Field(default=(OVERALL,), min_length=1)
    """What completions are scored by, a head each. Ratings are each of one of these; pairs, rankings and labels are of
    the overall score, which is the weighted mean of all."""
    criterion_weights: dict[str, float] = Field(default={})
    """Weights of the criteria in the overall score, which the loop optimises; a run may have others than the training
    had. Empty: all the same; else a criterion that is not named counts for nothing."""
    ensemble: int = Field(default=1, ge=1, le=64)
    """Heads of each criterion, which learn from bootstrap samples of their own. The score is their mean, and their
    spread says how uncertain it is."""
    margin_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """What the margins of the table are multiplied by before a chosen score has to be larger by so much; 0 ignores
    them."""
    held_out_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the prompts whose rows are never learned, by a hash of their ids: these standardise the learned reward
    and say how good it is."""
    max_held_out: int = Field(default=512, gt=0)
    """Rows that are held out, at most."""

    @model_validator(mode="after")
    def _check(self) -> RewardModel:
        towers = [name for name in self.parts.learning() if name in TOWERS]
        if towers:
            raise ValueError(
                f"parts.{towers[0]}.mode={self.parts.of(towers[0]).mode}: the reward model shares tower features with "
                "the other roles of the loop; use freeze"
            )
        return self

    @model_validator(mode="after")
    def _check_criteria(self) -> RewardModel:
        if len(set(self.criteria)) < len(self.criteria):
            raise ValueError(f"criteria={list(self.criteria)}: name each once")
        if OVERALL in self.criteria and len(self.criteria) > 1:
            raise ValueError(
                f"criteria={list(self.criteria)}: {OVERALL} is the weighted mean of the others; leave it out"
            )
        for name, weight in self.criterion_weights.items():
            if name not in self.criteria:
                raise ValueError(f"criterion_weights.{name}={weight:g}: reward_model.criteria are {self.criteria}")
            if not 0 <= weight < math.inf:
                raise ValueError(f"criterion_weights.{name}={weight:g}: must be finite and at least 0")
        if self.criterion_weights and not any(self.criterion_weights.values()):
            raise ValueError(f"criterion_weights={self.criterion_weights}: at least one must be above 0")
        return self


class Evaluate(Section):
    split: str = "test"
    """Split to evaluate on."""
    checkpoint: str = "rlhf"
    """Checkpoint of the run that is compared with the SFT model. That of another stage, such as `preference`, stands in
    the report in the place of RLHF's."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Completions sampled for each prompt at `rlhf.sampling`; greedy ones are scored beside them."""
    blind: bool = True
    """Whether to measure what models lose when prompts come with their media blanked, or with another row's."""
    browser_rows: int = Field(default=48, ge=0)
    """Rows in the report's sample browser."""
