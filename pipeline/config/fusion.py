"""Models that fuse what several encoders see, hear and read: which encoders, how large, and how they are fused."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from pipeline.config.paths import DiskPath
from pipeline.config.section import Section


class Modality(StrEnum):
    """What a decision is made from; `numbers` are the measurements of a row, such as findings."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    NUMBERS = "numbers"


class EncoderKind(StrEnum):
    BERT = "bert"
    VIT = "vit"
    RESNET = "resnet"
    WAV2VEC2 = "wav2vec2"
    WHISPER = "whisper"
    MFCC_CNN = "mfcc_cnn"
    MFCC_RNN = "mfcc_rnn"
    MEL_CNN = "mel_cnn"
    MEL_RNN = "mel_rnn"
    MLP = "mlp"

    @property
    def has_checkpoints(self) -> bool:
        """Whether there are Hugging Face checkpoints of this kind."""
        return self not in _BUILT


_SOUND = (EncoderKind.MFCC_CNN, EncoderKind.MFCC_RNN, EncoderKind.MEL_CNN, EncoderKind.MEL_RNN)
_BUILT = (*_SOUND, EncoderKind.MLP)
KINDS_OF: dict[Modality, tuple[EncoderKind, ...]] = {
    Modality.TEXT: (EncoderKind.BERT,),
    Modality.IMAGE: (EncoderKind.RESNET, EncoderKind.VIT),
    Modality.AUDIO: (*_SOUND, EncoderKind.WAV2VEC2, EncoderKind.WHISPER),
    Modality.VIDEO: (EncoderKind.RESNET, EncoderKind.VIT),
    Modality.NUMBERS: (EncoderKind.MLP,),
}
"""What encodes each modality; the first is taken where none is named."""


class FusionKind(StrEnum):
    CONCAT = "concat"
    AVERAGE = "average"
    WEIGHTED = "weighted"
    GATED = "gated"
    CROSS_ATTENTION = "cross_attention"
    SHARED = "shared"
    GRAPH = "graph"


class EncoderSettings(Section):
    kind: EncoderKind | None = None
    """What encodes the modality: text bert; image and video resnet or vit (a video frame by frame, with a learned time
    embedding); audio mfcc_cnn, mfcc_rnn, mel_cnn, mel_rnn, wav2vec2 or whisper; numbers mlp. Null takes the first of
    these, or what the checkpoint is."""
    path: DiskPath | None = None
    """Hugging Face directory of a checkpoint to start from, with its tokenizer or image processor; null builds a small
    encoder of the sizes below, which has learned nothing."""
    freeze: bool = False
    """Whether the encoder keeps its weights: what it makes of a row can then be kept, too."""
    width: int = Field(default=64, ge=4)
    """Size of the hidden states, of an encoder that is built."""
    num_layers: int = Field(default=2, ge=1)
    """Transformer layers, of an encoder that is built."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads, of an encoder that is built; they divide `width`."""
    patch_side: int = Field(default=4, ge=1)
    """Side of a patch in pixels, of a vit that is built; it divides `sizes.image_side`."""
    num_bands: int = Field(default=40, ge=8, le=128)
    """Mel bands of a sound; MFCCs are the first half as many coefficients."""

    @model_validator(mode="after")
    def _check(self) -> EncoderSettings:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide width={self.width}; choose one that does")
        if self.path is not None and self.kind is not None and not self.kind.has_checkpoints:
            raise ValueError(f"path={self.path}: {self.kind} has no checkpoints; leave `kind` out, or the path")
        return self


class InputSizes(Section):
    text_length: int = Field(default=64, ge=4)
    """Tokens of a text (bytes, where the encoder is built); longer ones are cut, which is counted."""
    image_side: int = Field(default=24, ge=8)
    """Side in pixels of the square to which pictures and frames are resized."""
    sampling_rate: int = Field(default=16_000, ge=4_000)
    """Samples of sound a second."""
    audio_s: float = Field(default=2.0, gt=0)
    """Seconds of a sound: shorter ones are padded with silence, longer ones cut, which is counted."""
    num_frames: int = Field(default=8, ge=1)
    """Frames that are taken of a video, evenly."""
    num_numbers: int = Field(default=1, ge=1)
    """Numbers of a row."""

    @property
    def num_samples(self) -> int:
        """Samples of a sound."""
        return round(self.audio_s * self.sampling_rate)


class FusionSettings(Section):
    kind: FusionKind = FusionKind.CONCAT
    """How modalities become one embedding. `concat`: side by side through a layer; `average`: their mean; `weighted`:
    mean with learned weights, the same for all rows; `gated`: with weights that each row's content sets;
    `cross_attention`: each modality attends to the tokens of the others; `shared`: the tokens of all run through one
    transformer (early fusion); `graph`: modalities and their segments are nodes that pass messages."""
    modalities: tuple[Modality, ...] = Field(default=(Modality.IMAGE, Modality.AUDIO), min_length=1)
    """What the model takes. In any row any of them may be missing, but not all."""
    hidden_size: int = Field(default=64, ge=8)
    """Size of the embedding."""
    num_layers: int = Field(default=1, ge=1)
    """Layers of `cross_attention` and `shared`, rounds of messages of `graph`."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads of `cross_attention` and `shared`; they divide `hidden_size`."""
    num_segments: int = Field(default=4, ge=1)
    """Nodes of `graph` that each modality's tokens are averaged into, in their order."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the embedding that is dropped in training."""
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    """How often a modality is taken from a row in training, though never its last one."""
    encoders: dict[Modality, EncoderSettings] = Field(default={})
    """Encoders by modality; one that is not named is the default of its modality."""
    sizes: InputSizes = InputSizes()
    """Fixed sizes of what encoders take."""

    @model_validator(mode="after")
    def _check(self) -> FusionSettings:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities={[*map(str, self.modalities)]}: name each once")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; choose one that does"
            )
        for modality, encoder in self.encoders.items():
            if encoder.kind is not None and encoder.kind not in KINDS_OF[modality]:
                raise ValueError(
                    f"encoders.{modality}.kind={encoder.kind}: {modality} is encoded by {', '.join(KINDS_OF[modality])}"
                )
        for modality in (Modality.IMAGE, Modality.VIDEO):
            encoder = self.encoder(modality)
            built = encoder.kind is EncoderKind.VIT and encoder.path is None
            if built and modality in self.modalities and self.sizes.image_side % encoder.patch_side:
                raise ValueError(
                    f"encoders.{modality}.patch_side={encoder.patch_side} does not divide sizes.image_side="
                    f"{self.sizes.image_side}; choose one that does"
                )
        return self

    def encoder(self, modality: Modality) -> EncoderSettings:
        """The encoder of a modality, its kind filled in where there is no checkpoint that tells."""
        settings = self.encoders.get(modality, EncoderSettings())
        if settings.kind is None and settings.path is None:
            return settings.model_copy(update={"kind": KINDS_OF[modality][0]})
        return settings
