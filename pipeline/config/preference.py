"""Learning from preferences without a loop: which loss, and what of it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.parts import PartMode
from pipeline.config.workers import Learner


class PreferenceLoss(StrEnum):
    DPO = "dpo"
    ROBUST = "robust"
    HINGE = "hinge"
    IPO = "ipo"
    SIMPO = "simpo"
    ORPO = "orpo"
    KTO = "kto"
    APO_ZERO = "apo_zero"

    @property
    def is_unpaired(self) -> bool:
        """Whether it learns of single completions that are good or bad; others learn of pairs."""
        return self in (PreferenceLoss.KTO, PreferenceLoss.APO_ZERO)

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with what it was before its first step."""
        return self not in (PreferenceLoss.SIMPO, PreferenceLoss.ORPO)

    @property
    def needs_baseline(self) -> bool:
        """Whether it compares with the KL to the reference, measured on completions of other prompts."""
        return self is PreferenceLoss.KTO

    @property
    def has_margin(self) -> bool:
        """Whether the chosen reward can be asked to be larger by so much."""
        return self in (PreferenceLoss.DPO, PreferenceLoss.ROBUST, PreferenceLoss.HINGE, PreferenceLoss.SIMPO)

    @property
    def has_smoothing(self) -> bool:
        """Whether it can take a share of the labels for wrong ones."""
        return self in (PreferenceLoss.DPO, PreferenceLoss.ROBUST, PreferenceLoss.SIMPO)


class PreferenceLearning(Learner):
    start: str = "sft"
    """Checkpoint of the run that it starts from. Before its first step the policy is the reference too: there is no
    second copy, with adapters or without."""
    num_steps: int = Field(default=60, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=32, gt=0)
    """Rows of the preference table in an optimizer step, over all workers."""
    loss: PreferenceLoss = PreferenceLoss.DPO
    """Of pairs: `dpo`, `robust`, `hinge` and `ipo` against a reference, `simpo` and `orpo` without one. Of completions
    that are good or bad: `kto` and `apo_zero`; pairs are two such each."""
    beta: float = Field(default=0.1, gt=0)
    """Scale of the rewards, in units a nat: the larger, the nearer the policy stays to the reference. SimPO's is about
    2, since its rewards are means over tokens; ORPO's is the weight of the odds ratio."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round (`dpo`, `robust`, `simpo`)."""
    gamma: float = Field(default=1.0, ge=0)
    """SimPO's margin: by how much the chosen reward is to be larger than the rejected one."""
    margin_weight: float = Field(default=0.0, ge=0)
    """What the margins of the table are multiplied by before a chosen reward has to be larger by so much; 0 ignores
    them."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """What good completions count in `kto` and `apo_zero`."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """What bad completions count there. Weight times number is best about the same for both."""
    sft_weight: float | None = Field(default=None, ge=0)
    """Weight of the chosen (or good) completions' negative log likelihood, token by token, beside the loss. Null is 1
    with `orpo`, whose loss it belongs to, and 0 else."""
    held_out_fraction: float = Field(default=0.1, gt=0, le=0.5)
    """Share of the prompts whose rows are never learned, by a hash of their ids: they say how good the rewards are."""
    max_held_out: int = Field(default=512, gt=0)
    """Rows that are held out, at most."""

    @property
    def likelihood_weight(self) -> float:
        """Of the negative log likelihood, in numbers."""
        default = 1.0 if self.loss is PreferenceLoss.ORPO else 0.0
        return default if self.sft_weight is None else self.sft_weight

    @property
    def learns_adapters_alone(self) -> bool:
        """Whether the reference is there at every moment: the policy without its adapters."""
        return all(self.parts.of(name).mode is PartMode.LORA for name in self.parts.learning())

    @model_validator(mode="after")
    def _check(self) -> PreferenceLearning:
        if self.margin_weight and not self.loss.has_margin:
            raise ValueError(
                f"margin_weight={self.margin_weight:g} with loss={self.loss}: it has no margins; use 0, or dpo"
            )
        if self.label_smoothing and not self.loss.has_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} with loss={self.loss}: it has none; use 0, or dpo"
            )
        if self.loss.is_unpaired and not (self.desirable_weight or self.undesirable_weight):
            raise ValueError("desirable_weight=0 and undesirable_weight=0: nothing is learned; raise one of them")
        return self
