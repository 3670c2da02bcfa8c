"""What turns one modality into tokens: stock Hugging Face encoders, small ones built here or those of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BertConfig, ResNetConfig, ViTConfig

from pipeline.config import ConfigError
from pipeline.config.fusion import EncoderKind, EncoderSettings, InputSizes, Modality

INITIALIZER_RANGE = 0.04
"""Of small transformers that are built: they learn in half the steps that the usual 0.02 takes."""
NUM_BYTES = 257
"""Tokens of a text encoder that is built: bytes + 1, and 0 that pads."""


class Encoder(nn.Module):
    """Turns the tensor of one modality into tokens.

    width: of a token. num_tokens: of a row, always as many.
    """

    width: int
    num_tokens: int

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens float32 [B, T, width], and which of them are no padding, bool [B, T]: at least one a row."""
        raise NotImplementedError


def build_encoder(
    modality: Modality, settings: EncoderSettings, sizes: InputSizes, *, load_weights: bool = True
) -> Encoder:
    """The encoder of a modality: loaded where there is a path, else built with torch's seed.

    load_weights: off, an encoder of a checkpoint has its form alone, and random weights.

    Raises:
        ConfigError: there is no such checkpoint, it is of another kind, lacks weights or takes other sizes.
    """
    from pipeline.models.fusion import sounds  # It stands on this module.

    makers: dict[Modality, Callable[[EncoderSettings, InputSizes, bool], Encoder]] = {
        Modality.TEXT: TextEncoder,
        Modality.IMAGE: ImageEncoder,
        Modality.AUDIO: sounds.build,
        Modality.VIDEO: VideoEncoder,
        Modality.NUMBERS: NumbersEncoder,
    }
    encoder = makers[modality](settings, sizes, load_weights)
    encoder.num_tokens = _count_tokens(encoder, modality, sizes)
    return encoder.requires_grad_(not settings.freeze)


def _count_tokens(encoder: Encoder, modality: Modality, sizes: InputSizes) -> int:
    picture = (1, 3, sizes.image_side, sizes.image_side)
    example = {
        Modality.TEXT: torch.ones(1, sizes.text_length, dtype=torch.int64),
        Modality.IMAGE: torch.zeros(picture),
        Modality.AUDIO: torch.zeros(1, sizes.num_samples),
        Modality.VIDEO: torch.zeros(1, sizes.num_frames, *picture[1:]),
        Modality.NUMBERS: torch.zeros(1, sizes.num_numbers),
    }[modality]
    was_training = encoder.training
    with torch.no_grad():
        num_tokens = encoder.eval()(example)[0].shape[1]
    encoder.train(was_training)
    return num_tokens


def load(path: Path, *, kind: EncoderKind | None, load_weights: bool, **overrides: Any) -> Any:
    """The model of a checkpoint, its configuration changed by those of `overrides` that it has.

    Raises:
        ConfigError: no checkpoint, one of another kind, or one that lacks weights (poolers, which nobody asks, may be
            missing).
    """
    try:
        config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
        if kind is not None and kind is not EncoderKind.BERT and config.model_type != kind:
            raise ConfigError(f"encoders kind={kind}: {path} holds a {config.model_type}; leave `kind` out")
        for name, value in overrides.items():
            if hasattr(config, name):
                setattr(config, name, value)
        if not load_weights:
            return AutoModel.from_config(config, dtype=torch.float32)
        model, report = AutoModel.from_pretrained(
            path, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"encoders path={path}: no checkpoint that transformers loads ({error})") from None
    missing = [name for name in sorted(report["missing_keys"]) if "pooler" not in name]
    if missing:
        raise ConfigError(
            f"encoders path={path}: {len(missing)} weights are missing, first {missing[0]}; save the whole model"
        )
    return model


class TextEncoder(Encoder):
    """A BERT-class encoder: all its hidden states. Takes ids int64 [B, L]."""

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        if settings.path is None:
            config = BertConfig(
                vocab_size=NUM_BYTES,
                hidden_size=settings.width,
                num_hidden_layers=settings.num_layers,
                num_attention_heads=settings.num_heads,
                intermediate_size=4 * settings.width,
                max_position_embeddings=sizes.text_length,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                initializer_range=INITIALIZER_RANGE,
            )
            self.model: Any = AutoModel.from_config(config, add_pooling_layer=False)
        else:
            self.model = load(settings.path, kind=settings.kind, load_weights=load_weights)
            most = getattr(self.model.config, "max_position_embeddings", sizes.text_length)
            if sizes.text_length > most:
                raise ConfigError(f"sizes.text_length={sizes.text_length}: {settings.path} reads at most {most} tokens")
        self.width = int(self.model.config.hidden_size)
        self._padding = int(self.model.config.pad_token_id or 0)

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        mask = tensor != self._padding
        hidden = self.model(input_ids=tensor, attention_mask=mask.long()).last_hidden_state
        return hidden, mask


class ImageEncoder(Encoder):
    """A ViT- or ResNet-class encoder: patches, or the cells of its last map. Takes float32 [B, 3, H, W] in [-1, 1].

    A checkpoint gets its pictures normalised as its own processor says.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        mean, std = [0.5] * 3, [0.5] * 3
        if settings.path is None:
            config = _image_config(settings, sizes)
            options = {"add_pooling_layer": False} if settings.kind is EncoderKind.VIT else {}
            self.model: Any = AutoModel.from_config(config, **options)
        else:
            self.model = load(settings.path, kind=settings.kind, load_weights=load_weights)
            side = getattr(self.model.config, "image_size", sizes.image_side)
            if side != sizes.image_side:
                raise ConfigError(f"sizes.image_side={sizes.image_side}: {settings.path} sees {side}; set that")
            mean, std = _normalisation(settings.path)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=True)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=True)
        sizes_of_stages = getattr(self.model.config, "hidden_sizes", None)
        self.width = int(sizes_of_stages[-1] if sizes_of_stages else self.model.config.hidden_size)

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((tensor + 1) / 2 - self.mean) / self.std
        hidden = self.model(pixel_values=pixels).last_hidden_state
        tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        return tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)


def _image_config(settings: EncoderSettings, sizes: InputSizes) -> Any:
    if settings.kind is EncoderKind.VIT:
        return ViTConfig(
            image_size=sizes.image_side,
            patch_size=settings.patch_side,
            hidden_size=settings.width,
            num_hidden_layers=settings.num_layers,
            num_attention_heads=settings.num_heads,
            intermediate_size=4 * settings.width,
            initializer_range=INITIALIZER_RANGE,
        )
    # The stem divides the side by four, and all stages but the first by two.
    return ResNetConfig(
        embedding_size=max(8, settings.width // 2),
        hidden_sizes=[max(8, settings.width // 2), settings.width],
        depths=[1, max(1, settings.num_layers - 1)],
        layer_type="basic",
    )


def _normalisation(path: Path) -> tuple[list[float], list[float]]:
    try:
        processor: Any = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError):
        raise ConfigError(
            f"encoders path={path}: no image processor there, which says how pictures are normalised; save it beside"
        ) from None
    return list(processor.image_mean), list(processor.image_std)


class VideoEncoder(Encoder):
    """The image encoder frame by frame, its tokens averaged, plus a learned embedding of the frame's place in time.

    Takes float32 [B, F, 3, H, W] in [-1, 1]; a token is a frame.
    """

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        self.frames = ImageEncoder(settings, sizes, load_weights)
        self.width = self.frames.width
        self.times = nn.Parameter(torch.randn(sizes.num_frames, self.width) * INITIALIZER_RANGE)

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        tokens, _ = self.frames(tensor.flatten(0, 1))
        frames = tokens.mean(1).unflatten(0, tensor.shape[:2]) + self.times
        return frames, frames.new_ones(frames.shape[:2], dtype=torch.bool)


class NumbersEncoder(Encoder):
    """A perceptron of two layers over standardised numbers float32 [B, N]; one token."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(sizes.num_numbers), persistent=True)
        self.register_buffer("std", torch.ones(sizes.num_numbers), persistent=True)
        self.width = settings.width
        self.layers = nn.Sequential(
            nn.Linear(sizes.num_numbers, settings.width), nn.GELU(), nn.Linear(settings.width, settings.width)
        )

    def standardise(self, numbers: Tensor) -> None:
        """Takes mean and spread of each number from rows of the train split, float32 [B, N]."""
        spread = numbers.std(0, correction=0)
        self.mean.copy_(numbers.mean(0))
        self.std.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.layers((tensor - self.mean) / self.std)[:, None]
        return tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
