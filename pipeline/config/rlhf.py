"""The loop: generate -> score -> update."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, cast

import numpy as np
from pydantic import Field, field_validator, model_serializer, model_validator

from pipeline.config.algorithm import Algorithm, ImportanceCorrection, PolicyLossName
from pipeline.config.checkpoints import Checkpoints
from pipeline.config.rewards import FunctionReward, Grader, JudgeReward, ServerReward
from pipeline.config.sampling import Sampling
from pipeline.config.section import Section
from pipeline.config.validation import VALIDATION, Validation, check_metric
from pipeline.config.workers import Encoder, Learner, Reference, Rollout, Sharded

NOTHING: Mapping[str, float] = MappingProxyType({})


class RewardName(StrEnum):
    LEARNED = "learned"
    HUMAN = "human"
    EXACT_MATCH = "exact_match"
    CONTAINS = "contains"
    WER = "wer"
    LENGTH = "length"
    DISTANCE = "distance"
    CER = "cer"
    MATHEMATICS = "mathematics"
    CHOICE = "choice"
    JSON_SCHEMA = "json_schema"
    JSON_MATCH = "json_match"
    IOU = "iou"
    HIT = "hit"
    NOISE = "noise"


class RewardWeight(Section):
    """What a part of the reward weighs; in a recipe a number, or a number for some tasks only."""

    weight: float = Field(allow_inf_nan=False)
    """What the part is multiplied by in the sum; or what at which step, such as `{0: 1.0, 20: 0.2}`."""
    schedule: dict[Annotated[int, Field(ge=0)], float] = Field(default={})
    """Where `weight` is given by step: straight lines between the steps. Empty: it stays."""
    tasks: tuple[str, ...] | dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        default=None, min_length=1
    )
    """Tasks to whose rows it applies, null is all; or what `weight` is multiplied by on the rows of each, such as
    `{speech: 0.5, count: 2.0}`."""
    floor: float | None = None
    """Mean that it is to keep: its weight is then a Lagrange multiplier that starts at `weight`, rises while the part
    is below and falls while it is above, by `algorithm.multiplier_rate` (Safe RLHF)."""
    function: FunctionReward | None = None
    """A function of one's own that gives it; its place alone, or a section."""
    server: ServerReward | None = None
    """A server that gives it; its address alone, or a section."""
    judge: JudgeReward | None = None
    """A chat model that gives it."""

    @property
    def outside(self) -> FunctionReward | ServerReward | JudgeReward | None:
        """Who is asked for it, where it is none of `RewardName`."""
        return self.function or self.server or self.judge

    def weight_at(self, step: int) -> float:
        """Its weight at a step; with a floor, where the multiplier starts."""
        steps = sorted(self.schedule)
        return float(np.interp(step, steps, [self.schedule[each] for each in steps])) if steps else self.weight

    def applies(self, task: str) -> bool:
        """Whether rows of this task have this part."""
        return self.tasks is None or task in self.tasks

    @property
    def factors(self) -> Mapping[str, float]:
        """What the weight is multiplied by on rows of these tasks; 1 on those of others."""
        return self.tasks if isinstance(self.tasks, dict) else NOTHING

    @model_validator(mode="before")
    @classmethod
    def _of_number(cls, value: object) -> object:
        if not isinstance(value, Mapping | RewardWeight):
            return {"weight": value}
        if isinstance(value, Mapping) and isinstance(points := value.get("weight"), Mapping) and points:
            return {**value, "weight": next(iter(points.values())), "schedule": points}
        return value

    @model_serializer
    def _as_written(self) -> float | dict[str, object]:
        tasks = list(self.tasks) if isinstance(self.tasks, tuple) else self.tasks
        beside = {
            "tasks": tasks,
            "floor": self.floor,
            "function": self.function,
            "server": self.server,
            "judge": self.judge,
        }
        given = {name: value for name, value in beside.items() if value is not None}
        weight = self.schedule or self.weight
        return {"weight": weight, **given} if given or self.schedule else self.weight

    @model_validator(mode="after")
    def _check_weight(self) -> RewardWeight:
        if self.floor is not None and (self.schedule or self.weight <= 0):
            raise ValueError(
                f"weight={self.schedule or self.weight} with floor={self.floor:g}: the multiplier starts there and is "
                "multiplied; give one number above 0, such as 1"
            )
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> RewardWeight:
        if without := [task for task, factor in self.factors.items() if not factor]:
            raise ValueError(f"tasks.{without[0]}=0: it would not count there; leave the task out, or give it a factor")
        return self

    @model_validator(mode="after")
    def _check_outside(self) -> RewardWeight:
        given = [name for name in ("function", "server", "judge") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a part is given by one of them; make two parts of it")
        return self


_ONE = RewardWeight(weight=1.0)


class Parity(Section):
    num_rows: int = Field(default=8, ge=0)
    """Rows, of all mixes of modalities, on which rollout and trainer are compared before the first update; 0: none."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest mean difference of a row's logprobs, in nats; null: 1e-4 in float32, 0.02 in bfloat16. There rows of the
    tiny model are at most 0.0044 apart (`python -m benchmarks.precision`, on a CPU); of deeper ones a little more."""


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
    rewards: dict[str, RewardWeight] = Field(default={RewardName.LEARNED: _ONE, RewardName.EXACT_MATCH: _ONE})
    """Weight of each reward part in the sum, not all 0; or `{weight: 0.5, tasks: [speech]}` where it applies to some
    tasks only. `learned` is the reward model's score, standardised; the others compare with the answer of a row, and
    refuse rows that have none. A key such as `rewards/brevity.py:brevity` is a function of your own, and makes a part
    called `brevity`; a name of your own takes a `function`, a `server` or a `judge` (docs/rewards.md)."""
    grader: Grader = Grader()
    """Workers that ask functions, servers and judges for rewards; there are none where no part comes from outside."""
    encoder: Encoder = Encoder()
    """Workers that process prompts and run the frozen towers."""
    rollout: Rollout = Rollout()
    """Workers that sample completions, each on a whole copy of the model."""
    reference: Reference = Reference()
    """The world of the reference model, and which that is."""
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
    more before the update, as it does wherever behaviour logprobs may differ from its own (filters, a correction,
    bfloat16); `algorithm.off_policy` corrects for the rest."""
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

    def policy_learns(self, step: int) -> bool:
        """Whether the policy is updated in this step; in the first ones it may wait for its critic."""
        return not self.algorithm.advantage.needs_critic or step >= self.critic_warmup_steps

    @property
    def reward_weights(self) -> dict[str, float]:
        """The weight of each reward part at the beginning, on the rows to which it applies."""
        return self.weights_at(0)

    def weights_at(self, step: int, multipliers: Mapping[str, float] = NOTHING) -> dict[str, float]:
        """The weight of each reward part in a step, on the rows to which it applies: of those with a floor the
        multiplier, where there is one yet.
        """
        return {
            name: each.weight_at(step) if each.floor is None else multipliers.get(name, each.weight_at(step))
            for name, each in self.rewards.items()
        }

    @property
    def is_off_policy(self) -> bool:
        """Whether behaviour logprobs are taken for others than those of the policy at the start of the update.

        Older weights and filters make them so; a correction is asked for where somebody expects them to be.
        """
        is_corrected = self.algorithm.off_policy.correction is not ImportanceCorrection.NONE
        return self.staleness > 0 or self.sampling.truncates or is_corrected

    @property
    def outside_rewards(self) -> dict[str, FunctionReward | ServerReward | JudgeReward]:
        """Who is asked for each part that is none of `RewardName`."""
        return {name: each.outside for name, each in self.rewards.items() if each.outside is not None}

    @property
    def own_rewards(self) -> dict[RewardName, RewardWeight]:
        """The parts that are of `RewardName`."""
        return {RewardName(name): each for name, each in self.rewards.items() if each.outside is None}

    @field_validator("rewards", mode="before")
    @classmethod
    def _name_functions(cls, rewards: object) -> object:
        """A key that is the place of a function becomes the name of a part with that function."""
        if not isinstance(rewards, Mapping):
            return rewards
        named: dict[object, object] = {}
        for key, value in cast(Mapping[object, object], rewards).items():
            name, entry = key, value
            if isinstance(key, str) and ":" in key:
                given = cast(dict[str, object], dict(value)) if isinstance(value, Mapping) else {"weight": value}
                settings = given.get("function", {})
                if not isinstance(settings, Mapping):
                    raise ValueError(f"{key}: this is the function already; give it no other (function: {settings!r})")
                name = key.rpartition(":")[2]
                entry = {**given, "function": {"path": key, **cast(dict[str, object], settings)}}
            if name in named:
                raise ValueError(
                    f"two parts are called {name}; give one a name of its own: {{mine: {{weight: 1, function: {key}}}}}"
                )
            named[name] = entry
        return named

    @field_validator("rewards")
    @classmethod
    def _check_names(cls, rewards: dict[str, RewardWeight]) -> dict[str, RewardWeight]:
        for name, each in rewards.items():
            is_ours = name in set(RewardName)
            if not is_ours and each.outside is None:
                known = ", ".join(repr(str(each)) for each in RewardName)
                raise ValueError(
                    f"rlhf.rewards.{name}: no reward has this name (got {name!r}); there are {known}, or give it a "
                    "function, a server or a judge"
                )
            if is_ours and each.outside is not None:
                raise ValueError(f"rlhf.rewards.{name}: this is a built-in reward; call yours otherwise")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ValueError(f"rlhf.rewards: {name!r} in names of metrics; use letters, digits, _ and -")
        return rewards

    @model_validator(mode="after")
    def _check_rewards(self) -> Rlhf:
        has_teacher = self.reference.checkpoint is not None and self.algorithm.kl.weight > 0
        if not (has_teacher and not self.rewards) and not any(
            each.weight or any(each.schedule.values()) for each in self.rewards.values()
        ):
            shown = {str(name): each.weight for name, each in self.rewards.items()}
            raise ValueError(
                f"rewards={shown}: without a part whose weight is not 0 every completion is worth the same and nothing "
                "is learned; name one, such as {exact_match: 1.0}, or a teacher: reference.checkpoint, with "
                "algorithm.kl.weight above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_process(self) -> Rlhf:
        if self.algorithm.process_rewards and RewardName.LEARNED not in self.rewards:
            raise ValueError(
                "algorithm.process_rewards=true: it is the reward model that says what each token adds; name it in "
                "rewards (learned: 1.0), or use false"
            )
        return self

    @model_validator(mode="after")
    def _check_samples(self) -> Rlhf:
        """Samples must be such that the estimator and the loss can learn from them."""
        algorithm, advantage = self.algorithm, self.algorithm.advantage
        if self.sampling.temperature == 0:
            if advantage.needs_group:
                reason = "all completions of a group would be the same one, and no advantage other than 0"
            elif advantage.needs_greedy:
                reason = "the completion would be the greedy one that it is compared with, and every advantage 0"
            else:
                reason = "the likeliest completion alone is no sample of the policy, and explores nothing"
            raise ValueError(
                f"sampling.temperature=0 with algorithm.advantage={advantage}: {reason}; use a temperature above 0, "
                "such as 1 (evaluation has its greedy completions in any case)"
            )
        has_ratio = algorithm.policy_loss is not PolicyLossName.POLICY_GRADIENT
        if self.is_off_policy and not has_ratio and algorithm.off_policy.correction is ImportanceCorrection.NONE:
            sampling = self.sampling
            cause = f"staleness={self.staleness}"
            if self.staleness == 0:
                cause = f"sampling.top_k={sampling.top_k}, top_p={sampling.top_p:g}, min_p={sampling.min_p:g}"
            raise ValueError(
                f"{cause} with algorithm.policy_loss=policy_gradient and off_policy.correction=none: the samples are "
                "not the policy's own, and nothing would make up for it; use correction=token, sequence or icepop, "
                "policy_loss=ppo, or samples of the policy itself (staleness=0 and no filters)"
            )
        return self

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
