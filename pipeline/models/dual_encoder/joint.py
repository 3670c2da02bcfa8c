"""What dual encoders have in common: how samples become embeddings, and the scale of their similarities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.algorithms.contrastive import bounded_scale, log_scale_of
from pipeline.config.fusion import Modality
from pipeline.models.fusion.samples import Inputs, Sample
from pipeline.records import Image

SCALE, BIAS = "scale", "bias"
"""What a forward pass gives beside the embeddings of each modality."""
FIRST_BIAS = -10.0
"""Of the sigmoid loss, as in SigLIP: at first hardly any two belong together."""
MOST_FRAMES = 8
"""Of a video that is embedded picture by picture."""


class JointEncoder(nn.Module):
    """A tower a modality, all into one space.

    modalities: of its towers. embedding_size: D.
    """

    modalities: tuple[Modality, ...]
    embedding_size: int

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        # Of one number each: the engine shares out no parameter without a dimension.
        self.log_scale = nn.Parameter(torch.tensor([log_scale_of(1 / temperature)]))
        self.bias = nn.Parameter(torch.tensor([FIRST_BIAS]))

    def batch(self, samples: Sequence[Sample], modalities: Sequence[Modality]) -> Inputs:
        """The tensors of these modalities that `forward` takes; where a sample lacks one, a blank."""
        raise NotImplementedError

    def tower(self, modality: Modality, inputs: Inputs) -> Tensor:
        """What the tower of a modality makes of a batch: float32 [B, D], of any length."""
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Writes what `load_joint_encoder` reads."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """What it is made of, beside its weights."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Embeddings by modality, float32 [B, D] of length one, of each that `inputs` has; and `scale` and `bias`, [].

        Inputs are named after their modality, alone or before a dot.
        """
        given = {name.partition(".")[0] for name in inputs}
        found = {
            each.value: functional.normalize(self.tower(each, inputs).float(), dim=-1)
            for each in self.modalities
            if each.value in given
        }
        return {**found, SCALE: bounded_scale(self.log_scale[0].float()), BIAS: self.bias[0].float()}

    @property
    def key(self) -> str:
        """Hash of what it is made of and of all its weights: embeddings of two keys cannot be compared."""
        digest = hashlib.sha256(self.description.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def sees(self, modality: Modality) -> bool:
        """Whether it embeds a modality. One that has pictures and no videos embeds these picture by picture."""
        return modality in self.modalities or (modality is Modality.VIDEO and Modality.IMAGE in self.modalities)

    @torch.inference_mode()
    def embed(self, samples: Sequence[Sample], modality: Modality, *, batch_size: int = 64) -> Tensor:
        """Embeddings float32 [N, D] of length one, on the CPU, of one modality of samples that all have it.

        Raises:
            ValueError: there is no tower for it, or a sample lacks it.
        """
        if not self.sees(modality):
            raise ValueError(f"{modality} has no tower in this encoder; it has {', '.join(self.modalities)}")
        for sample in samples:
            if modality not in sample.modalities:
                raise ValueError(f"row {sample.id!r} has no {modality}; leave it out")
        if modality not in self.modalities:
            return self._by_frames(samples, batch_size)
        was_training = self.training
        self.eval()
        device = self.log_scale.device
        found = [torch.zeros(0, self.embedding_size)]
        for start in range(0, len(samples), batch_size):
            inputs = self.batch(samples[start : start + batch_size], [modality])
            outputs = self({name: tensor.to(device) for name, tensor in inputs.items()})
            found.append(outputs[modality.value].cpu())
        self.train(was_training)
        return torch.cat(found)

    def _by_frames(self, samples: Sequence[Sample], batch_size: int) -> Tensor:
        """Videos as the mean of some of their pictures, evenly taken."""
        pictures: list[Sample] = []
        counts: list[int] = []
        for sample in samples:
            assert sample.video is not None
            frames = sample.video.frames
            places = np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))
            pictures += [replace(sample, image=Image(frames[place])) for place in places]
            counts.append(len(places))
        parts = self.embed(pictures, Modality.IMAGE, batch_size=batch_size).split(counts)
        means = torch.stack([part.mean(0) for part in parts]) if parts else torch.zeros(0, self.embedding_size)
        return functional.normalize(means, dim=-1)


def as_json(value: Any) -> str:
    """JSON that is the same for the same content."""
    return json.dumps(value, sort_keys=True)
