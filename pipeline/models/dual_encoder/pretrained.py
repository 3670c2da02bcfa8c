"""Dual encoders from Hugging Face checkpoints: CLIP, SigLIP and ALIGN for pictures, CLAP for sounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.algorithms.contrastive import bounded_scale, log_scale_of
from pipeline.config import ConfigError
from pipeline.config.fusion import Modality
from pipeline.data.media import resample
from pipeline.models.dual_encoder.joint import JointEncoder, as_json
from pipeline.models.fusion.samples import Inputs, Sample

SCALES = ("logit_scale", "logit_scale_t", "logit_scale_a", "temperature")
FULL_LENGTH = ("siglip", "siglip2", "align")
"""Have learned from texts padded to their full length alone."""


class PretrainedDualEncoder(JointEncoder):
    """The towers, the projections and the processor of a checkpoint, whatever transformers makes of it."""

    def __init__(self, path: Path | str) -> None:
        """Loads it.

        Raises:
            ConfigError: nothing that transformers loads lies there, or it is no dual encoder.
        """
        # Seconds of imports, for those who have a checkpoint.
        from transformers import AutoModel, AutoProcessor

        try:
            model: Any = AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"checkpoint={path}: no checkpoint that transformers loads ({error})") from None
        media = {Modality.IMAGE: "get_image_features", Modality.AUDIO: "get_audio_features"}
        found = next((each for each, name in media.items() if hasattr(model, name)), None)
        if found is None or not hasattr(model, "get_text_features"):
            raise ConfigError(f"checkpoint={path}: {type(model).__name__} is no dual encoder, such as CLIP or CLAP")
        super().__init__(temperature=min(1.0, 1 / _scale(model)))
        self.modalities = tuple(each for each in Modality if each in (Modality.TEXT, found))
        self.processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
        self.model = model.eval()
        # Scale and bias are ours; the checkpoint's own are written when it is saved. They are buffers, as the engine
        # shares out no parameter without a dimension.
        if hasattr(model, "logit_bias"):
            self.bias.data.fill_(float(model.logit_bias.detach()))
        for name in [each for each in (*SCALES, "logit_bias") if hasattr(model, each)]:
            value = getattr(model, name).detach().clone()
            delattr(model, name)
            model.register_buffer(name, value)
        with torch.no_grad():
            self.embedding_size = int(self(self.batch([Sample("", text="a")], [Modality.TEXT]))["text"].shape[1])

    def batch(self, samples: Sequence[Sample], modalities: Sequence[Modality]) -> Inputs:
        makers = {Modality.TEXT: self._texts, Modality.IMAGE: self._pictures, Modality.AUDIO: self._sounds}
        return {f"{each.value}.{name}": tensor for each in modalities for name, tensor in makers[each](samples).items()}

    def _texts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        padding = "max_length" if self.model.config.model_type in FULL_LENGTH else True
        texts = [sample.text or "" for sample in samples]
        return self.processor.tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")

    def _pictures(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        blank = np.zeros((8, 8, 3), np.uint8)
        pixels = [blank if sample.image is None else sample.image.pixels for sample in samples]
        return self.processor.image_processor(pixels, return_tensors="pt")

    def _sounds(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        extractor = self.processor.feature_extractor
        rate = int(extractor.sampling_rate)
        sounds = [
            np.zeros(rate // 10, np.float32) if sample.audio is None else resample(sample.audio, rate).samples
            for sample in samples
        ]
        return extractor(sounds, sampling_rate=rate, return_tensors="pt")

    def tower(self, modality: Modality, inputs: Inputs) -> Tensor:
        start = f"{modality.value}."
        own = {name.removeprefix(start): tensor for name, tensor in inputs.items() if name.startswith(start)}
        features = getattr(self.model, f"get_{modality.value}_features")(**own)
        # From transformers 5 on these are outputs of a tower, with the projected embedding as the pooled one.
        return features if isinstance(features, Tensor) else features.pooler_output

    @property
    def description(self) -> str:
        return as_json({"modalities": [each.value for each in self.modalities], "type": self.model.config.model_type})

    def save(self, directory: Path) -> None:
        scale = float(bounded_scale(self.log_scale.detach()[0]))
        with torch.no_grad():
            for name, parameter in _scales(self.model):
                parameter.fill_(1 / scale if name == "temperature" else float(np.log(scale)))
            if hasattr(self.model, "logit_bias"):
                self.model.logit_bias.fill_(float(self.bias[0]))
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def _scales(model: Any) -> list[tuple[str, Any]]:
    """What the checkpoint itself has for the scale, one tensor or two."""
    return [(name, getattr(model, name)) for name in SCALES if hasattr(model, name)]


def _scale(model: Any) -> float:
    """What the checkpoint multiplies similarities by, as far as ours can."""
    name, parameter = _scales(model)[0]
    value = float(parameter.detach())
    scale = 1 / value if name == "temperature" else float(np.exp(value))
    return float(bounded_scale(torch.tensor(log_scale_of(max(scale, 1.0)))))
