"""A dual encoder that is built here: a stock encoder a modality, and a head that makes one embedding of its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.config.fusion import Modality
from pipeline.config.pretrain import JointEmbedding
from pipeline.models.dual_encoder.joint import JointEncoder, as_json
from pipeline.models.fusion.encoders import build_encoder
from pipeline.models.fusion.model import copy_descriptions
from pipeline.models.fusion.samples import Inputs, Preprocessor, Sample

SETTINGS_FILE, WEIGHTS_FILE, ENCODERS = "dual_encoder.json", "model.safetensors", "encoders"
FORMAT = 1
INITIALIZER_RANGE = 0.02


class Tower(nn.Module):
    """An encoder and its head: tokens + their places -> transformer layers -> mean over tokens -> embedding."""

    def __init__(self, modality: Modality, settings: JointEmbedding, *, load_encoders: bool) -> None:
        super().__init__()
        inputs = settings.inputs(modality)
        self.encoder = build_encoder(modality, inputs.encoder(modality), inputs.sizes, load_weights=load_encoders)
        width = settings.head_width
        self.entry = nn.Linear(self.encoder.width, width)
        self.places = nn.Parameter(torch.randn(self.encoder.num_tokens, width) * INITIALIZER_RANGE)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, settings.num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(settings.head_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, settings.size)

    def forward(self, tensor: Tensor) -> Tensor:
        """float32 [B, D] of what the encoder takes."""
        tokens, mask = self.encoder(tensor)
        # A row that lacks this modality has no token; of nothing there is no mean.
        mask = mask | ~mask.any(1, keepdim=True)
        hidden = self.entry(tokens) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~mask)
        hidden = self.norm(hidden)
        weights = mask[..., None].to(hidden)
        return self.exit((hidden * weights).sum(1) / weights.sum(1))


class DualEncoder(JointEncoder):
    """Towers for any of text, image, audio and video. `preprocessors` say how many texts and sounds they cut."""

    def __init__(self, settings: JointEmbedding, modalities: Sequence[Modality], *, load_encoders: bool = True) -> None:
        """Builds it with torch's seed, or on checkpoints of encoders where `settings.encoders` name some.

        load_encoders: off, these have random weights, to be filled in.

        Raises:
            ConfigError: a modality has no tower, or a checkpoint is not there.
        """
        super().__init__(temperature=settings.temperature)
        if Modality.NUMBERS in modalities:
            raise ConfigError("modalities=numbers: text, image, audio and video are embedded; leave it out")
        self.settings = settings
        self.modalities = tuple(each for each in Modality if each in modalities)
        self.embedding_size = settings.size
        self.towers = nn.ModuleDict(
            {each.value: Tower(each, settings, load_encoders=load_encoders) for each in self.modalities}
        )
        self.preprocessors = {each: Preprocessor(settings.inputs(each)) for each in self.modalities}

    def batch(self, samples: Sequence[Sample], modalities: Sequence[Modality]) -> Inputs:
        return {each.value: self.preprocessors[each].batch(samples)[each.value] for each in modalities}

    def tower(self, modality: Modality, inputs: Inputs) -> Tensor:
        return self.towers[modality.value](inputs[modality.value])

    @property
    def description(self) -> str:
        # Where encoders came from is no part of what they are: their weights are hashed.
        encoders = {each: self.settings.inputs(each).encoder(each) for each in self.modalities}
        named = {each.value: encoder.model_dump(mode="json", exclude={"path"}) for each, encoder in encoders.items()}
        rest = self.settings.model_dump(mode="json", exclude={"encoders", "temperature"})
        return as_json({"modalities": [each.value for each in self.modalities], "encoders": named, **rest})

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        encoders = dict(self.settings.encoders)
        for modality in self.modalities:
            settings = encoders.get(modality)
            if settings is not None and settings.path is not None:
                copy_descriptions(settings.path, directory / ENCODERS / modality.value)
                encoders[modality] = settings.model_copy(update={"path": Path(ENCODERS, modality.value)})
        settings = self.settings.model_copy(update={"encoders": encoders})
        content = {
            "format": FORMAT,
            "modalities": [each.value for each in self.modalities],
            "embedding": settings.model_dump(mode="json"),
        }
        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        save_file(weights, directory / WEIGHTS_FILE)
        (directory / SETTINGS_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> DualEncoder:
        """Reads what `save` wrote.

        Raises:
            ConfigError: it is of another version, or its weights are not those of its settings.
        """
        content = json.loads((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ConfigError(
                f"{directory / SETTINGS_FILE}: format {content['format']}, and this version reads {FORMAT}; train it "
                "again with `python -m jobs.pretrain`"
            )
        for encoder in content["embedding"]["encoders"].values():
            if encoder["path"] is not None:
                encoder["path"] = str(directory / encoder["path"])
        settings = JointEmbedding.model_validate(content["embedding"])
        model = cls(settings, [Modality(each) for each in content["modalities"]], load_encoders=False)
        weights = load_file(directory / WEIGHTS_FILE)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigError(f"{directory / WEIGHTS_FILE}: not the weights of {SETTINGS_FILE} ({error})") from None
        return model
