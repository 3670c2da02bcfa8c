"""Joint embedding: which towers there are, what they learn from each other, and how they warm up."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.fusion import EncoderSettings, FusionSettings, InputSizes, Modality
from pipeline.config.paths import DiskPath
from pipeline.config.section import Section
from pipeline.config.workers import Trained


class ContrastiveLoss(StrEnum):
    INFO_NCE = "info_nce"
    SIGMOID = "sigmoid"


class TextOf(StrEnum):
    ANSWER = "answer"
    PROMPT = "prompt"


class WarmUpKind(StrEnum):
    NONE = "none"
    MASKED = "masked"
    VIEWS = "views"


class JointEmbedding(Section):
    size: int = Field(default=128, ge=2)
    """Numbers of an embedding."""
    head_width: int = Field(default=128, ge=8)
    """Size of the hidden states of each tower's head, which turns an encoder's tokens into one embedding."""
    head_layers: int = Field(default=1, ge=0)
    """Transformer layers of a head, above the tokens with their places; 0 averages the tokens."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads of these; they divide `head_width`."""
    temperature: float = Field(default=0.07, gt=0.01, le=1)
    """Where the learned temperature begins; it stays above 0.01."""
    encoders: dict[Modality, EncoderSettings] = Field(default={})
    """Encoders by modality; one that is not named is the default of its modality."""
    sizes: InputSizes = InputSizes()
    """Fixed sizes of what encoders take."""

    @model_validator(mode="after")
    def _check(self) -> JointEmbedding:
        if self.head_width % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide head_width={self.head_width}; choose one that does"
            )
        return self

    def inputs(self, modality: Modality) -> FusionSettings:
        """The same of one modality, as its preprocessor and its encoder are asked for."""
        named = {each: encoder for each, encoder in self.encoders.items() if each is modality}
        return FusionSettings(modalities=(modality,), encoders=named, sizes=self.sizes)


class WarmUp(Section):
    kind: WarmUpKind = WarmUpKind.NONE
    """What towers learn of media alone, before they learn from pairs. `masked`: parts of a picture or a sound are
    hidden, and are told from the rest (masked image and audio modelling); `views`: two altered views of a medium find
    each other among those of others (SimCLR); `none`: nothing."""
    modalities: tuple[Modality, ...] = (Modality.IMAGE, Modality.AUDIO)
    """Towers that warm up, as far as the encoder has them."""
    num_steps: int = Field(default=200, gt=0)
    """Optimizer steps of the warm-up, with the batches and the learning rate of the stage."""
    masked_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of a medium that is hidden."""
    num_spans: int = Field(default=20, ge=2)
    """Spans of equal length that a sound is cut into, to be hidden or not."""
    patch_side: int = Field(default=4, ge=1)
    """Side in pixels of the squares of a picture that are hidden or not; it divides the sides of pictures."""
    temperature: float = Field(default=0.2, gt=0.01, le=1)
    """Temperature of `views`."""

    @model_validator(mode="after")
    def _check(self) -> WarmUp:
        for modality in self.modalities:
            if modality not in (Modality.IMAGE, Modality.AUDIO):
                raise ValueError(f"modalities={modality}: image and audio warm up, others do not; leave it out")
        return self


class Pretrain(Trained):
    checkpoint: DiskPath | None = None
    """Directory of a dual encoder to start from: one that this stage wrote, or a Hugging Face checkpoint with its
    processor, such as of CLIP, SigLIP, ALIGN or CLAP. Null builds one as `embedding` says."""
    embedding: JointEmbedding = JointEmbedding()
    """Towers that are built where there is no checkpoint."""
    pairs: tuple[tuple[Modality, Modality], ...] = Field(default=((Modality.TEXT, Modality.IMAGE),), min_length=1)
    """What is aligned with what. A row that lacks one of a pair is left out of that pair's loss."""
    text: TextOf = TextOf.ANSWER
    """A row's text: its answer, or its messages without tags."""
    loss: ContrastiveLoss = ContrastiveLoss.INFO_NCE
    """`info_nce`: each finds its partner among all of the batch, both ways, as in CLIP; `sigmoid`: of any two it is
    asked whether they belong together, as in SigLIP."""
    split: str = "train"
    """Split of the rows."""
    num_steps: int = Field(default=600, gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=64, ge=2)
    """Rows in an optimizer step, over all workers: each is told from all others."""
    augment: bool = True
    """Whether pictures and sounds are altered a little each time: shifted, noisier, louder, darker. Those of a Hugging
    Face checkpoint of a whole dual encoder come as they are."""
    warm_up: WarmUp = WarmUp()
    """What towers learn of media alone, before."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Pretrain:
        seen: set[frozenset[Modality]] = set()
        for one, other in self.pairs:
            if one is other:
                raise ValueError(f"pairs=[{one}, {other}]: of one modality; two views of it are warm_up.kind=views")
            if Modality.NUMBERS in (one, other):
                raise ValueError(f"pairs=[{one}, {other}]: text, image, audio and video are embedded; numbers are not")
            if frozenset((one, other)) in seen:
                raise ValueError(f"pairs=[{one}, {other}]: stands there twice; name each pair once")
            seen.add(frozenset((one, other)))
        side, patch = self.embedding.sizes.image_side, self.warm_up.patch_side
        if self.warm_up.kind is WarmUpKind.MASKED and side % patch:
            raise ValueError(f"warm_up.patch_side={patch} does not divide embedding.sizes.image_side={side}")
        return self

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """All that is in some pair, in the order of `Modality`."""
        return tuple(each for each in Modality if any(each in pair for pair in self.pairs))

    @property
    def num_warm_steps(self) -> int:
        """Optimizer steps of the warm-up, before those of the pairs."""
        return 0 if self.warm_up.kind is WarmUpKind.NONE else self.warm_up.num_steps
