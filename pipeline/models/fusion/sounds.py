"""Encoders of sounds: Wav2Vec2- and Whisper-class ones, and small networks over mel bands or MFCCs.

All take a waveform float32 [B, S] in [-1, 1]. What a row is padded with is exact silence at its end, which is told
from the sound by being 0; that part is masked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torchaudio.transforms
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, Wav2Vec2Config, WhisperConfig

from pipeline.config import ConfigError
from pipeline.config.fusion import EncoderKind, EncoderSettings, InputSizes
from pipeline.models.fusion.encoders import INITIALIZER_RANGE, Encoder, load

HOP_S, WINDOW_S = 0.01, 0.025
UNDISTURBED: dict[str, Any] = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
"""Of a checkpoint's configuration: what is random in training beside dropout, and draws from NumPy's global state."""


def build(settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> Encoder:
    """The encoder of sounds that the settings ask for; of a checkpoint, the one that it holds."""
    kind = settings.kind
    if settings.path is not None:
        try:
            model_type = AutoConfig.from_pretrained(settings.path, local_files_only=True).model_type
        except (OSError, ValueError) as error:
            raise ConfigError(f"encoders.audio.path={settings.path}: no checkpoint there ({error})") from None
        kind = EncoderKind.WHISPER if model_type == "whisper" else kind or EncoderKind.WAV2VEC2
    if kind is EncoderKind.WAV2VEC2:
        return WaveformEncoder(settings, sizes, load_weights)
    if kind is EncoderKind.WHISPER:
        return LogMelEncoder(settings, sizes, load_weights)
    return BandsEncoder(settings, sizes)


def num_heard(samples: Tensor) -> Tensor:
    """Samples of each row before the exact silence at its end, int64 [B]; at least 1."""
    places = torch.arange(1, samples.shape[1] + 1, device=samples.device)
    return torch.where(samples != 0, places, 0).amax(1).clamp(min=1)


def mask_of(samples: Tensor, num_tokens: int) -> Tensor:
    """Which of the tokens, that share a row evenly, begin before its silent end: bool [B, T]."""
    starts = torch.arange(num_tokens, device=samples.device) * (samples.shape[1] / num_tokens)
    return starts < num_heard(samples)[:, None]


class WaveformEncoder(Encoder):
    """A Wav2Vec2-class encoder; each sound is brought to mean 0 and variance 1, as their feature extractor does."""

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        if settings.path is None:
            config = Wav2Vec2Config(
                hidden_size=settings.width,
                num_hidden_layers=settings.num_layers,
                num_attention_heads=settings.num_heads,
                intermediate_size=4 * settings.width,
                conv_dim=(settings.width,) * 5,
                conv_kernel=(10, 8, 4, 4, 4),
                conv_stride=(5, 4, 2, 4, 4),
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                initializer_range=INITIALIZER_RANGE,
                **UNDISTURBED,
            )
            self.model: Any = AutoModel.from_config(config)
        else:
            self.model = load(settings.path, kind=settings.kind, load_weights=load_weights, **UNDISTURBED)
        self.width = int(self.model.config.hidden_size)

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        heard = torch.arange(tensor.shape[1], device=tensor.device) < num_heard(tensor)[:, None]
        count = heard.sum(1, keepdim=True)
        mean = tensor.sum(1, keepdim=True) / count
        spread = ((tensor - mean).square() * heard).sum(1, keepdim=True) / count
        samples = torch.where(heard, (tensor - mean) / (spread + 1e-7).sqrt(), torch.zeros_like(tensor))
        # Shorter than the receptive field there would be no token at all.
        enough = torch.arange(tensor.shape[1], device=tensor.device) < self._receptive_field()
        hidden = self.model(samples, attention_mask=(heard | enough).long()).last_hidden_state
        return hidden, mask_of(tensor, hidden.shape[1])

    def _receptive_field(self) -> int:
        size = 1
        config = self.model.config
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            size = (size - 1) * stride + kernel
        return size


class LogMelEncoder(Encoder):
    """The encoder of a Whisper-class model, which hears a fixed time: a shorter sound is padded with silence.

    Its log-mel spectrogram is that of Whisper's feature extractor, in torch.
    """

    def __init__(self, settings: EncoderSettings, sizes: InputSizes, load_weights: bool = True) -> None:
        super().__init__()
        rate, hop = sizes.sampling_rate, round(HOP_S * sizes.sampling_rate)
        if settings.path is None:
            num_frames = -(-sizes.num_samples // hop)
            config = WhisperConfig(
                d_model=settings.width,
                num_mel_bins=settings.num_bands,
                encoder_layers=settings.num_layers,
                encoder_attention_heads=settings.num_heads,
                encoder_ffn_dim=4 * settings.width,
                decoder_layers=1,
                decoder_attention_heads=settings.num_heads,
                decoder_ffn_dim=settings.width,
                max_source_positions=-(-num_frames // 2),
                max_target_positions=4,
                vocab_size=8,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                init_std=INITIALIZER_RANGE,
            )
            self.model: Any = AutoModel.from_config(config).encoder
        else:
            self.model = load(settings.path, kind=settings.kind, load_weights=load_weights, **UNDISTURBED).encoder
            if rate != 16_000:
                raise ConfigError(f"sizes.sampling_rate={rate}: {settings.path} hears 16000 samples a second; set that")
        config = self.model.config
        self.width = int(config.d_model)
        self.num_samples = 2 * config.max_source_positions * hop
        if sizes.num_samples > self.num_samples:
            raise ConfigError(f"sizes.audio_s={sizes.audio_s:g}: {settings.path} hears {self.num_samples / rate:g} s")
        self.mel = torchaudio.transforms.MelSpectrogram(
            rate,
            n_fft=round(WINDOW_S * rate),
            hop_length=hop,
            f_max=min(8000.0, rate / 2),
            n_mels=config.num_mel_bins,
            norm="slaney",
            mel_scale="slaney",
        )

    def spectrogram(self, samples: Tensor) -> Tensor:
        """The log-mel spectrogram, float32 [B, bands, frames]."""
        padded = F.pad(samples, (0, self.num_samples - samples.shape[1]))
        levels = self.mel(padded)[..., :-1].clamp(min=1e-10).log10()
        return (torch.maximum(levels, levels.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model(self.spectrogram(tensor)).last_hidden_state
        padded = F.pad(tensor, (0, self.num_samples - tensor.shape[1]))
        return hidden, mask_of(padded, hidden.shape[1])


class BandsEncoder(Encoder):
    """Mel bands (as logarithms) or MFCCs by torchaudio, then three convolutions, or means of four frames and a GRU.

    Bands are standardised within each sound, so that its level says nothing.
    """

    def __init__(self, settings: EncoderSettings, sizes: InputSizes) -> None:
        super().__init__()
        kind, rate, bands = settings.kind, sizes.sampling_rate, settings.num_bands
        spectrum: dict[str, Any] = {
            "n_fft": round(WINDOW_S * rate),
            "hop_length": round(HOP_S * rate),
            "n_mels": bands,
        }
        self.is_mel = kind in (EncoderKind.MEL_CNN, EncoderKind.MEL_RNN)
        self.bands: nn.Module = (
            torchaudio.transforms.MelSpectrogram(rate, **spectrum)
            if self.is_mel
            else torchaudio.transforms.MFCC(rate, n_mfcc=bands // 2, log_mels=True, melkwargs=spectrum)
        )
        num_bands, self.width = bands if self.is_mel else bands // 2, settings.width
        self.convolutions: nn.Module | None = None
        self.recurrent: nn.GRU | None = None
        if kind in (EncoderKind.MEL_CNN, EncoderKind.MFCC_CNN):
            widths = (num_bands, *(settings.width,) * 3)
            layers = [
                nn.Sequential(nn.Conv1d(before, after, 5, stride=2, padding=2), nn.GELU())
                for before, after in pairwise(widths)
            ]
            self.convolutions = nn.Sequential(*layers)
        else:
            self.recurrent = nn.GRU(num_bands, settings.width, num_layers=settings.num_layers, batch_first=True)

    def forward(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.bands(tensor)
        levels = (levels + 1e-6).log() if self.is_mel else levels
        heard = mask_of(tensor, levels.shape[2])[:, None]
        count = heard.sum(2, keepdim=True)
        mean = (levels * heard).sum(2, keepdim=True) / count
        spread = ((levels - mean).square() * heard).sum(2, keepdim=True) / count
        levels = torch.where(heard, (levels - mean) / (spread + 1e-4).sqrt(), torch.zeros_like(levels))
        if self.convolutions is not None:
            tokens = self.convolutions(levels).transpose(1, 2)
        else:
            assert self.recurrent is not None
            tokens = self.recurrent(F.avg_pool1d(levels, 4, ceil_mode=True).transpose(1, 2))[0]
        return tokens, mask_of(tensor, tokens.shape[1])
