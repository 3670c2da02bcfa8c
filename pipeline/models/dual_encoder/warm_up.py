"""Warm-up of towers on media alone: what is hidden is told from the rest, or two views find each other.

Masked image modelling as in SimMIM (Xie et al. 2022): squares of a picture are hidden, and their pixels regressed.
Masked audio modelling in the same way: spans of a sound are hidden, and their mel bands regressed. As encoders differ
in what a token is, a small decoder asks for each hidden place by attention over all tokens.
"""

from __future__ import annotations

from typing import cast

import torch
import torchaudio.transforms
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.fusion import Modality
from pipeline.config.pretrain import WarmUp
from pipeline.models.dual_encoder.towers import DualEncoder, Tower

HOP_S, WINDOW_S, NUM_BANDS = 0.01, 0.025, 40
QUIET = 1e-6
"""Added to the energies of bands before their logarithm."""


class MaskedModelling(nn.Module):
    """A tower's encoder, and what tells from its tokens what was hidden. `num_places`: P, squares or spans."""

    def __init__(self, encoder: DualEncoder, modality: Modality, settings: WarmUp) -> None:
        super().__init__()
        sizes = encoder.settings.sizes
        self.encoder = cast(Tower, encoder.towers[modality.value]).encoder
        self.modality = modality
        self.bands: nn.Module | None = None
        if modality is Modality.IMAGE:
            self.patch_side = settings.patch_side
            self.num_places = (sizes.image_side // settings.patch_side) ** 2
            target_size = 3 * settings.patch_side**2
        else:
            self.num_places, target_size = settings.num_spans, NUM_BANDS
            self.bands = torchaudio.transforms.MelSpectrogram(
                sizes.sampling_rate,
                n_fft=round(WINDOW_S * sizes.sampling_rate),
                hop_length=round(HOP_S * sizes.sampling_rate),
                n_mels=NUM_BANDS,
            )
        width = self.encoder.width
        self.questions = nn.Parameter(torch.randn(self.num_places, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.told = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, target_size)
        )

    def forward(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """Sum of the squared errors of what is hidden, averaged over a place's numbers, float32 [B].

        rows: what the encoder takes. hidden: bool [B, P].
        """
        tokens, mask = self.encoder(self.without(rows, hidden))
        mask = mask | ~mask.any(1, keepdim=True)
        questions = self.questions.expand(len(rows), -1, -1)
        answers = self.attention(questions, tokens, tokens, key_padding_mask=~mask, need_weights=False)[0]
        errors = functional.mse_loss(self.told(questions + answers), self.targets(rows), reduction="none").mean(2)
        return (errors * hidden).sum(1)

    def without(self, rows: Tensor, hidden: Tensor) -> Tensor:
        """The rows with what is hidden blank: grey, or silent."""
        if self.modality is Modality.IMAGE:
            side = rows.shape[-1] // self.patch_side
            squares = hidden.view(-1, 1, side, side)
            grid = squares.repeat_interleave(self.patch_side, 2).repeat_interleave(self.patch_side, 3)
            return rows.masked_fill(grid, 0.0)
        spans = torch.arange(rows.shape[1], device=rows.device) * self.num_places // rows.shape[1]
        return rows.masked_fill(hidden[:, spans], 0.0)

    def targets(self, rows: Tensor) -> Tensor:
        """What each place holds: pixels, or the mean level of each mel band, standardised. float32 [B, P, _]."""
        if self.modality is Modality.IMAGE:
            return functional.unfold(rows, self.patch_side, stride=self.patch_side).transpose(1, 2)
        assert self.bands is not None
        levels = (self.bands(rows) + QUIET).log()
        spans = functional.adaptive_avg_pool1d(levels, self.num_places).transpose(1, 2)
        spread, mean = torch.std_mean(spans, dim=(1, 2), keepdim=True)
        return (spans - mean) / (spread + 1e-3)


def hidden_places(num_rows: int, num_places: int, share: float, *, seed: int) -> Tensor:
    """Which places of each row are hidden: bool [B, P], the same number in each, at least one and not all."""
    num_hidden = min(max(1, round(share * num_places)), num_places - 1)
    order = torch.rand(num_rows, num_places, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order < num_hidden
