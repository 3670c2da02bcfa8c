"""Advantages, losses, KL, off-policy correction and dynamic sampling; docs/algorithms.md explains each."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.section import Section


class AdvantageEstimator(StrEnum):
    GAE = "gae"
    A2C = "a2c"
    GRPO = "grpo"
    DR_GRPO = "dr_grpo"
    RLOO = "rloo"
    REINFORCE_PLUS_PLUS = "reinforce_plus_plus"
    REINFORCE_PLUS_PLUS_BASELINE = "reinforce_plus_plus_baseline"
    REMAX = "remax"
    REINFORCE = "reinforce"
    BEST_WORST = "best_worst"

    @property
    def needs_critic(self) -> bool:
        """Whether it takes values from a critic."""
        return self in (AdvantageEstimator.GAE, AdvantageEstimator.A2C)

    @property
    def needs_greedy(self) -> bool:
        """Whether it takes the reward of each prompt's greedy completion."""
        return self is AdvantageEstimator.REMAX

    @property
    def needs_group(self) -> bool:
        """Whether it compares the completions of a prompt with each other, so that a group of one teaches nothing."""
        return self in (
            AdvantageEstimator.GRPO,
            AdvantageEstimator.DR_GRPO,
            AdvantageEstimator.RLOO,
            AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE,
            AdvantageEstimator.BEST_WORST,
        )

    @property
    def discounts(self) -> bool:
        """Whether `gamma` means anything to it."""
        return not self.needs_group and not self.needs_greedy

    @property
    def is_white(self) -> bool:
        """Whether its advantages are whitened over the step by definition."""
        return self in (AdvantageEstimator.REINFORCE_PLUS_PLUS, AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE)


class PolicyLossName(StrEnum):
    PPO = "ppo"
    GSPO = "gspo"
    CISPO = "cispo"
    POLICY_GRADIENT = "policy_gradient"
    DPO = "dpo"


class Aggregation(StrEnum):
    TOKEN_MEAN = "token_mean"
    SEQUENCE_MEAN = "sequence_mean"
    FIXED_LENGTH = "fixed_length"


class ImportanceCorrection(StrEnum):
    NONE = "none"
    TOKEN = "token"
    SEQUENCE = "sequence"
    ICEPOP = "icepop"


class PartNormalisation(StrEnum):
    NONE = "none"
    GROUP = "group"


class KlPlace(StrEnum):
    REWARD = "reward"
    LOSS = "loss"


class KlEstimator(StrEnum):
    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KlControl(StrEnum):
    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class Kl(Section):
    weight: float = Field(default=0.05, ge=0)
    """Weight of the KL penalty to the reference; 0 leaves the reference out altogether."""
    place: KlPlace = KlPlace.REWARD
    """`reward`: subtracted from each token's reward (InstructGPT); `loss`: added to the policy loss (GRPO)."""
    estimator: KlEstimator = KlEstimator.K1
    """Estimator of the per-token KL (Schulman 2020)."""
    control: KlControl = KlControl.FIXED
    """`adaptive`: the weight follows `target` (Ziegler et al. 2019)."""
    target: float = Field(default=0.1, gt=0)
    """Target of the adaptive controller: mean KL a token, in nats."""
    horizon: int = Field(default=1000, gt=0)
    """Time constant of the adaptive controller, in completions."""

    @model_validator(mode="after")
    def _check(self) -> Kl:
        if self.place is KlPlace.LOSS and self.estimator is KlEstimator.K1:
            raise ValueError(
                "place=loss with estimator=k1: its gradient is zero on average, so that it would hold nothing; "
                "use k2 or k3, or place=reward"
            )
        if self.control is KlControl.ADAPTIVE and self.weight == 0:
            raise ValueError(
                "control=adaptive with weight=0: the controller multiplies the weight, which would stay 0; "
                "start from a weight above 0, such as 0.05, or use control=fixed"
            )
        return self


class OffPolicy(Section):
    correction: ImportanceCorrection = ImportanceCorrection.NONE
    """Weights of the policy loss where the copy that sampled is not the policy at the start of the update: `token` and
    `sequence` truncate the importance ratio at `cap`; `icepop` leaves out tokens outside [`low`, `high`]."""
    cap: float = Field(default=2.0, ge=1)
    """Largest weight of `token` and `sequence`."""
    low: float = Field(default=0.5, ge=0, le=1)
    """Smallest ratio that `icepop` keeps."""
    high: float = Field(default=5.0, ge=1)
    """Largest ratio that `icepop` keeps."""


class DynamicSampling(Section):
    max_rounds: int = Field(default=0, ge=0)
    """Extra rounds of prompts that a step may draw to replace groups whose rewards are all the same (DAPO); 0: none."""


class Algorithm(Section):
    advantage: AdvantageEstimator = AdvantageEstimator.GAE
    """`gae` (PPO) and `a2c` have a critic; `grpo`, `dr_grpo`, `rloo` and `reinforce_plus_plus_baseline` compare the
    completions of a group; `remax` compares with the greedy one; `reinforce` and `reinforce_plus_plus` do neither;
    `best_worst` keeps the best and the worst of a group, for `policy_loss=dpo`."""
    policy_loss: PolicyLossName = PolicyLossName.PPO
    """`ppo`: clipped token ratio; `gspo`: clipped ratio of the whole completion; `cispo`: clipped weight, no token left
    out; `policy_gradient`: no ratio (REINFORCE, A2C); `dpo`: the best completion of a group against its worst (online
    DPO), with the reference's weight `dpo_beta`."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """Scale of the rewards in `dpo`, in units a nat: the larger, the nearer the policy stays to the reference."""
    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    """How policy loss, entropy and KL of tokens become one loss. `token_mean`: all tokens of the step count the same
    (DAPO); `sequence_mean`: all completions do (GRPO); `fixed_length`: sum over `sampling.max_new_tokens` (Dr.GRPO)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token, of `gae`, `a2c`, `reinforce` and `reinforce_plus_plus`."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    clip_low: float = Field(default=0.2, gt=0)
    """The policy ratio is clipped below 1 - `clip_low`; 1 or more is no bound."""
    clip_high: float | None = Field(default=None, gt=0)
    """The policy ratio is clipped above 1 + `clip_high`; null: the same as `clip_low`. DAPO's clip-higher is 0.28."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the ratio where the advantage is negative (dual-clip PPO), such as 3; null for none."""
    value_clip: float = Field(default=0.2, gt=0)
    """Clip range of the value update."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    whiten_advantages: bool | None = None
    """Whether advantages are shifted and scaled to mean 0 and variance 1 over the step's tokens; null: for `gae` only.
    `reinforce_plus_plus` and its baseline do so by definition, once."""
    part_normalisation: PartNormalisation = PartNormalisation.NONE
    """`group`: each part of the reward is normalised in its group before they are weighted and summed, and the sum over
    the step (GDPO), so that no part drowns the others by its scale; with `dr_grpo` or `rloo`."""
    multiplier_rate: float = Field(default=0.1, gt=0)
    """Step size of the multipliers of parts that have a `floor`."""
    scale_rewards: bool = False
    """Whether rewards are divided by a running standard deviation."""
    clip_reward: float | None = Field(default=10.0, gt=0)
    """Absolute bound of a completion's reward; null for none."""
    process_rewards: bool = False
    """Whether the learned reward is given token by token, as what each adds to the reward model's score of what has
    been said so far; its sum stays what it was. For `gae`, `a2c`, `reinforce` and `reinforce_plus_plus`."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `sampling.max_new_tokens` over which a penalty on length grows (DAPO); 0: none."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """Reward that a completion loses which is as long as it can be."""
    mask_truncated: bool = False
    """Whether completions cut off at `sampling.max_new_tokens` are left out of the losses of policy and critic (DAPO's
    overlong filtering). Their rewards count in their group all the same."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over a step's experience."""
    num_minibatches: int = Field(default=2, ge=1)
    """Optimizer steps in a pass."""
    kl: Kl = Kl()
    """The KL penalty."""
    off_policy: OffPolicy = OffPolicy()
    """Correction of samples that are not the policy's own."""
    dynamic_sampling: DynamicSampling = DynamicSampling()
    """New prompts for groups without a signal."""

    @property
    def needs_reference(self) -> bool:
        """Whether anything compares with a reference model."""
        return self.kl.weight > 0 or self.policy_loss is PolicyLossName.DPO

    @property
    def clip_above(self) -> float:
        """`clip_high`, or `clip_low` where that is null."""
        return self.clip_low if self.clip_high is None else self.clip_high

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened after the estimator; never twice."""
        if self.advantage.is_white:
            return False
        return self.advantage is AdvantageEstimator.GAE if self.whiten_advantages is None else self.whiten_advantages

    @model_validator(mode="after")
    def _check(self) -> Algorithm:
        advantage = self.advantage
        if self.gamma != 1 and not advantage.discounts:
            raise ValueError(
                f"gamma={self.gamma} with advantage={advantage}: it judges whole completions, without discount; "
                "use gamma=1, or gae, a2c, reinforce or reinforce_plus_plus"
            )
        if advantage.is_white and self.whiten_advantages is False:
            raise ValueError(
                f"whiten_advantages=false with advantage={advantage}: it whitens by definition; use null, "
                f"or {'dr_grpo' if advantage.needs_group else 'reinforce'}"
            )
        if self.process_rewards and not advantage.discounts:
            raise ValueError(
                f"process_rewards=true with advantage={advantage}: it judges whole completions; use false, or gae, "
                "a2c, reinforce or reinforce_plus_plus"
            )
        if self.process_rewards and self.part_normalisation is not PartNormalisation.NONE:
            raise ValueError(
                f"process_rewards=true with part_normalisation={self.part_normalisation}: what a token adds is in "
                "units of the part itself; use part_normalisation=none"
            )
        if (advantage is AdvantageEstimator.BEST_WORST) != (self.policy_loss is PolicyLossName.DPO):
            raise ValueError(
                f"advantage={advantage} with policy_loss={self.policy_loss}: best_worst gives the pairs of dpo; "
                "use both, or neither"
            )
        if self.policy_loss is PolicyLossName.DPO:
            correction = self.off_policy.correction
            if correction is not ImportanceCorrection.NONE:
                raise ValueError(f"off_policy.correction={correction} with policy_loss=dpo: it has no ratio; use none")
            if self.whiten_advantages:
                raise ValueError("whiten_advantages=true with policy_loss=dpo: pairs have none; use null")
        if self.dual_clip is not None and self.policy_loss is not PolicyLossName.PPO:
            raise ValueError(
                f"dual_clip={self.dual_clip} with policy_loss={self.policy_loss}: only ppo has it; use null, or ppo"
            )
        if self.policy_loss is PolicyLossName.POLICY_GRADIENT and self.num_epochs > 1:
            raise ValueError(
                f"num_epochs={self.num_epochs} with policy_loss=policy_gradient: without a ratio, a second pass would "
                "take samples of an older policy for its own; use num_epochs=1, or ppo"
            )
        if self.part_normalisation is PartNormalisation.GROUP:
            if advantage not in (AdvantageEstimator.DR_GRPO, AdvantageEstimator.RLOO):
                raise ValueError(
                    f"part_normalisation=group with advantage={advantage}: it takes an estimator that compares the "
                    "completions of a group and does not normalise them once more; use dr_grpo (GDPO) or rloo"
                )
            if self.scale_rewards:
                raise ValueError(
                    "part_normalisation=group with scale_rewards=true: parts are normalised already; use one of them"
                )
        if self.dynamic_sampling.max_rounds and not advantage.needs_group:
            raise ValueError(
                f"dynamic_sampling.max_rounds={self.dynamic_sampling.max_rounds} with advantage={advantage}: "
                "groups whose rewards are all the same teach it something, too; use max_rounds=0, "
                "or grpo, dr_grpo, rloo or reinforce_plus_plus_baseline"
            )
        return self
