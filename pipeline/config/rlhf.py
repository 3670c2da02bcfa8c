"""The loop: generate -> score -> update."""

from __future__ import annotations

from enum import StrEnum
from typing import cast

from pydantic import Field, model_validator

from pipeline.config.algorithm import Algorithm
from pipeline.config.checkpoints import Checkpoints
from pipeline.config.sampling import Sampling
from pipeline.config.section import Section
from pipeline.config.validation import VALIDATION, Validation, check_metric
from pipeline.config.workers import Encoder, Learner, Rollout, Sharded


class RewardName(StrEnum):
    LEARNED = "learned"
    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    WER = "wer"
    LENGTH = "length"


class Parity(Section):
    num_rows: int = Field(default=8, ge=0)
    """Rows, of all mixes of modalities, on which rollout and trainer are compared before the first update; 0: none."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest mean difference of a row's logprobs, in nats; null: 1e-4 in float32, 0.1 in bfloat16."""


class Rlhf(Section):
    split: str = "train"
    """Split whose prompts the loop draws. `rl` has those that SFT does not see: a model finds little to improve on rows
    that it knows by heart."""
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
    """Weight of each reward part in the sum. `learned` is the reward model's score, standardised; the others compare
    with the answer of a row, and refuse rows that have none."""
    encoder: Encoder = Encoder()
    """Workers that process prompts and run the frozen towers."""
    rollout: Rollout = Rollout()
    """Workers that sample completions, each on a whole copy of the model."""
    reference: Sharded = Sharded()
    """The world of the reference model."""
    reward: Sharded = Sharded()
    """The world of the reward model."""
    policy: Learner = Learner()
    """The world of the policy."""
    critic: Learner = Learner()
    """The world of the critic."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which the critic learns and the policy waits, so that its advantages come from a critic that knows
    this policy."""
    staleness: int = Field(default=0, ge=0)
    """Steps that generation may run ahead of the update, with older weights. Above 0 the policy scores its samples once
    more before the update; `algorithm.off_policy` corrects for the rest."""
    parity: Parity = Parity()
    """The comparison of rollout and trainer before the first update."""
    checkpoints: Checkpoints = Checkpoints()
    """Checkpoints to go on from after an interruption."""
    evaluate_every: int | None = Field(default=None, ge=0)
    """Steps between evaluations on prompts of the validation split, the first before the first update and one after the
    last; null or 0: none."""
    validation: Validation = Validation()
    """What these evaluations look at, and when they end the run."""
    samples_every: int = Field(default=10, gt=0)
    """Steps between samples written to `samples.jsonl`."""

    @property
    def is_off_policy(self) -> bool:
        """Whether behaviour logprobs may not be those of the policy at the start of the update."""
        return self.staleness > 0 or self.sampling.truncates

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
        if self.algorithm.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer={self.algorithm.overlong_buffer} is longer than a completion can be "
                f"(sampling.max_new_tokens={self.sampling.max_new_tokens}); make it smaller"
            )
        if self.algorithm.advantage.needs_group and self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: {self.algorithm.advantage} compares the completions of a group; "
                "use 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _check_validation(self) -> Rlhf:
        every, best = self.evaluate_every, self.checkpoints.best_metric
        uses = {f"validation.{name}": getattr(self.validation, name) for name in ("stop_at", "patience")}
        if best is not None and best.startswith(VALIDATION):
            check_metric("checkpoints.best_metric", best)
            uses["checkpoints.best_metric"] = best
        if not every:
            for field, value in uses.items():
                if value is not None:
                    raise ValueError(
                        f"{field}={value} with evaluate_every={'null' if every is None else every}: nothing would be "
                        "evaluated; set evaluate_every, such as 10"
                    )
        elif "checkpoints.best_metric" in uses and self.checkpoints.save_every % every:
            raise ValueError(
                f"checkpoints.best_metric={best} with checkpoints.save_every={self.checkpoints.save_every} and "
                f"evaluate_every={every}: a checkpoint of a step that is not evaluated could not be compared; make "
                "save_every a multiple of evaluate_every"
            )
        return self
