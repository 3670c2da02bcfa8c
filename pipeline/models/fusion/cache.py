"""What frozen encoders made of rows, kept on disk under the key of those encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.models.fusion.samples import Inputs

_KEY, _IDS = "encoder_key", "ids"


class WrongEncoder(ValueError):
    """Features of other encoders than those of the model."""


@dataclass(frozen=True)
class FeatureCache:
    """Features of rows, as `FusionModel.features` gave them.

    encoder_key: of the model that made them. ids: of the rows, in the order of `features`.
    """

    encoder_key: str
    ids: tuple[str, ...]
    features: Inputs

    def __post_init__(self) -> None:
        for name, tensor in self.features.items():
            if len(tensor) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids and {len(tensor)} rows of {name}; give one of each a row")

    def of(self, ids: Sequence[str], *, encoder_key: str) -> Inputs:
        """The features of these rows, for the model of this key.

        Raises:
            WrongEncoder: they are of another model's encoders.
            KeyError: a row is not here.
        """
        if encoder_key != self.encoder_key:
            raise WrongEncoder(
                f"these features were made by encoders of key {self.encoder_key[:12]}, and the model's have "
                f"{encoder_key[:12]}: they mean something else; make them again with this model"
            )
        places = {id: place for place, id in enumerate(self.ids)}
        unknown = [id for id in ids if id not in places]
        if unknown:
            raise KeyError(f"{len(unknown)} of {len(ids)} rows have no features here, first {unknown[0]!r}")
        rows = [places[id] for id in ids]
        return {name: tensor[rows] for name, tensor in self.features.items()}

    def save(self, path: Path) -> None:
        """Writes one safetensors file, which takes its name when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.features.items()}
        save_file(tensors, partial, metadata={_KEY: self.encoder_key, _IDS: json.dumps(self.ids)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> FeatureCache:
        """Reads what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            described = file.metadata()
        return cls(described[_KEY], tuple(json.loads(described[_IDS])), load_file(path))
