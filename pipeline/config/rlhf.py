"""The loop: generate -> score -> update."""

from __future__ import annotations

from enum import StrEnum
from typing import cast

from pydantic import Field, model_validator

from pipeline.config.algorithm import AdvantageEstimator, Algorithm
from pipeline.config.checkpoints import Checkpoints
from pipeline.config.sampling import Sampling
from pipeline.config.section import Section
from pipeline.config.workers import Rollout, Sharded, Trained, Workers


class RewardName(StrEnum):
    LEARNED = "learned"
    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    WER = "wer"
    LENGTH = "length"


class Rlhf(Section):
    num_steps: int = Field(default=40, gt=0)
    """Steps of generate -> score -> update."""
    prompts_per_step: int = Field(default=32, gt=0)
    """Prompts drawn in a step."""
    group_size: int = Field(default=4, ge=1)
    """Completions sampled for each prompt."""
    sampling: Sampling = Sampling()
    """How completions are sampled."""
    algorithm: Algorithm = Algorithm()
    """Advantages, losses and KL."""
    rewards: dict[RewardName, float] = Field(default={RewardName.LEARNED: 1.0, RewardName.EXACT_MATCH: 1.0})
    """Weight of each reward part in the sum. `learned` is the reward model's score, standardised."""
    encoder: Workers = Workers()
    """Workers that process prompts and run the frozen towers."""
    rollout: Rollout = Rollout()
    """Workers that sample completions, each on a whole copy of the model."""
    reference: Sharded = Sharded()
    """The world of the reference model."""
    reward: Sharded = Sharded()
    """The world of the reward model."""
    policy: Trained = Trained()
    """The world of the policy."""
    critic: Trained = Trained()
    """The world of the critic."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which the critic learns and the policy waits, so that its advantages come from a critic that knows
    this policy."""
    checkpoints: Checkpoints = Checkpoints()
    """Checkpoints to go on from after an interruption."""
    samples_every: int = Field(default=10, gt=0)
    """Steps between samples written to `samples.jsonl`."""

    @model_validator(mode="after")
    def _check(self) -> Rlhf:
        if self.prompts_per_step < self.algorithm.num_minibatches:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} cannot be split into "
                f"num_minibatches={self.algorithm.num_minibatches}: a minibatch holds at least one prompt"
            )
        for name in ("reference", "reward"):
            if cast(Sharded, getattr(self, name)).zero_stage in (1, 2):
                raise ValueError(
                    f"{name}.zero_stage={getattr(self, name).zero_stage}: no optimizer to shard; use 0 or 3"
                )
        if self.algorithm.advantage is AdvantageEstimator.GRPO and self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: grpo compares the completions of a group; use 2 or more")
        return self
