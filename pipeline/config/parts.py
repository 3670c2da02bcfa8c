"""Which parts of a model learn, how, and how fast."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.section import Section


class PartName(StrEnum):
    VISION_TOWER = "vision_tower"
    AUDIO_TOWER = "audio_tower"
    PROJECTOR = "projector"
    LANGUAGE_MODEL = "language_model"
    HEAD = "head"


TOWERS = (PartName.VISION_TOWER, PartName.AUDIO_TOWER, PartName.PROJECTOR)
"""The parts that give features of media."""


class PartMode(StrEnum):
    TRAIN = "train"
    FREEZE = "freeze"
    LORA = "lora"


class Part(Section):
    mode: PartMode = PartMode.TRAIN
    """`train`: all its parameters learn; `freeze`: none; `lora`: low-rank adapters on its linear layers (Hu et al.,
    arXiv 2106.09685)."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of this part; null takes that of the role."""
    keep_frozen: tuple[str, ...] = ()
    """Patterns of parameter names in this part that stay frozen, such as `*.blocks.0.*`. Each must match something."""

    @model_validator(mode="after")
    def _check(self) -> Part:
        if self.mode is PartMode.FREEZE and (self.learning_rate is not None or self.keep_frozen):
            raise ValueError(
                "mode=freeze: a frozen part takes no learning_rate and no keep_frozen; set mode or drop them"
            )
        return self


class FrozenPart(Part):
    mode: PartMode = PartMode.FREEZE
    """`train`: all its parameters learn; `freeze`: none; `lora`: low-rank adapters on its linear layers (Hu et al.,
    arXiv 2106.09685)."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_cure(cls, values: object) -> object:
        if isinstance(values, dict) and values.keys() & {"learning_rate", "keep_frozen"} and "mode" not in values:
            raise ValueError("this part is frozen unless mode=train or mode=lora is set beside it")
        return values


class Lora(Section):
    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of names of linear layers that get adapters, in the parts whose mode is `lora`."""


class Parts(Section):
    vision_tower: Part = Part()
    """The encoder of pictures and videos."""
    audio_tower: Part = Part()
    """The encoder of sounds."""
    projector: Part = Part()
    """What maps the features of all towers to the width of the language model."""
    language_model: Part = Part()
    """Embeddings and decoder."""
    head: Part = Part()
    """The vocabulary head, or the scalar head of a critic or a reward model."""
    lora: Lora = Lora()
    """The adapters of all parts whose mode is `lora`."""

    @model_validator(mode="after")
    def _check(self) -> Parts:
        if self.head.mode is PartMode.LORA:
            raise ValueError("head.mode=lora: a head has no adapters; use train or freeze")
        return self

    def of(self, name: PartName) -> Part:
        """The settings of one part."""
        part: Part = getattr(self, name)
        return part

    def learning(self) -> tuple[PartName, ...]:
        """The parts that learn."""
        return tuple(name for name in PartName if self.of(name).mode is not PartMode.FREEZE)

    def check_learns(self) -> None:
        """Makes sure that an optimizer has something to do.

        Raises:
            ValueError: every part is frozen.
        """
        if not self.learning():
            raise ValueError("parts: every part has mode=freeze, so that nothing learns; use train or lora for one")


class LoopParts(Parts):
    """Parts of a role that shares tower features with the others unless it is told to train its towers."""

    vision_tower: FrozenPart = FrozenPart()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The encoder of pictures and videos. If it learns, features of these are no longer shared."""
    audio_tower: FrozenPart = FrozenPart()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The encoder of sounds. If it learns, features of these are no longer shared."""
    projector: FrozenPart = FrozenPart()  # pyright: ignore[reportIncompatibleVariableOverride]
    """What maps the features of all towers to the width of the language model. If it learns, none are shared."""


FROZEN = LoopParts.model_validate({name: {"mode": "freeze"} for name in PartName})
"""Parts of a role that does not learn."""
