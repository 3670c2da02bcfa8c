"""The fusion model: encoders, one of the fusions, a linear head; and its directory on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.config.fusion import FusionSettings, Modality
from pipeline.models.fusion.encoders import Encoder, NumbersEncoder, build_encoder
from pipeline.models.fusion.fusions import FUSIONS, Tokens
from pipeline.models.fusion.outputs import FusionOutput
from pipeline.models.fusion.samples import PRESENT, Inputs

WEIGHTS_FILE, SETTINGS_FILE, ENCODERS = "fusion.safetensors", "fusion.json", "encoders"
FEATURES, MASK = "_features", "_mask"
_DESCRIPTIONS = ("*.json", "*.txt", "*.model")
"""Files beside a checkpoint's weights that its configuration, tokenizer and processors are read from."""


class FusionModel(nn.Module):
    """Encoders, a fusion and a head of `num_classes` logits. torch's seed sets its weights.

    Raises:
        ConfigError: an encoder cannot be built or loaded.
        ValueError: fewer than one class.
    """

    def __init__(self, settings: FusionSettings, num_classes: int, *, load_encoders: bool = True) -> None:
        """Builds the model; without `load_encoders` those of checkpoints have random weights, to be filled in."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: a model chooses among at least one")
        self.settings = settings
        self.num_classes = num_classes
        self.modalities: tuple[Modality, ...] = settings.modalities
        self.embedding_size = settings.hidden_size
        encoders = {
            each.value: build_encoder(each, settings.encoder(each), settings.sizes, load_weights=load_encoders)
            for each in self.modalities
        }
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(each.width, self.embedding_size), nn.LayerNorm(self.embedding_size))
                for name, each in encoders.items()
            }
        )
        self.fusion = FUSIONS[settings.kind](settings)
        self.normal = nn.LayerNorm(self.embedding_size)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(self.embedding_size, num_classes)

    def encoder(self, modality: Modality) -> Encoder:
        """The encoder of a modality."""
        return cast(Encoder, self.encoders[modality.value])

    @property
    def frozen(self) -> bool:
        """Whether no encoder learns, so that features stay what they are."""
        return all(self.settings.encoder(each).freeze for each in self.modalities)

    def train(self, mode: bool = True) -> FusionModel:
        """Sets training mode; frozen encoders stay as they are in evaluation."""
        super().train(mode)
        for each in self.modalities:
            if self.settings.encoder(each).freeze:
                self.encoder(each).eval()
        return self

    def standardise(self, inputs: Inputs) -> None:
        """Takes mean and spread of the numbers from a batch of the train split, of the rows that have some."""
        if Modality.NUMBERS in self.modalities:
            encoder = cast(NumbersEncoder, self.encoder(Modality.NUMBERS))
            encoder.standardise(inputs[Modality.NUMBERS][self._present(inputs)[:, self._place(Modality.NUMBERS)]])

    def features(self, inputs: Inputs) -> Inputs:
        """What the encoders make of a batch: what a cache holds for frozen ones, and `forward` takes as well.

        `<modality>_features` float32 [B, T, E] and `<modality>_mask` bool [B, T], zero where a row lacks the modality,
        and `present`. Entries that hold features already stay.
        """
        present = self._present(inputs)
        found: Inputs = {PRESENT: inputs[PRESENT]}
        for place, each in enumerate(self.modalities):
            found[each + FEATURES], found[each + MASK] = self._encoded(each, inputs, present[:, place])
        return found

    def forward(self, inputs: Inputs) -> FusionOutput:
        """Logits, embedding and weights of a batch, raw or as `features` gave it.

        Raises:
            ValueError: a row has no modality at all, or one that has no tensor.
        """
        present = self._present(inputs)
        if self.training and self.settings.modality_dropout:
            present = dropped(present, self.settings.modality_dropout)
        tokens: dict[Modality, Tensor] = {}
        masks: dict[Modality, Tensor] = {}
        for place, each in enumerate(self.modalities):
            features, mask = self._encoded(each, inputs, present[:, place])
            tokens[each] = self.projections[each.value](features)
            masks[each] = mask
        fused, weights = self.fusion(Tokens(tokens, masks, present))
        embedding = self.dropout(self.normal(fused))
        return FusionOutput(logits=self.head(embedding), embedding=embedding, weights=weights)

    def _place(self, modality: Modality) -> int:
        return self.modalities.index(modality)

    def _present(self, inputs: Inputs) -> Tensor:
        present = inputs[PRESENT].bool()
        if present.ndim != 2 or present.shape[1] != len(self.modalities):
            raise ValueError(
                f"{PRESENT} is {list(present.shape)}, and the model takes {', '.join(self.modalities)}: give [rows, "
                f"{len(self.modalities)}]"
            )
        empty = (~present.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(
                f"row {empty[0]} of {len(present)} has no modality at all ({len(empty)} such rows): the model takes "
                f"{', '.join(self.modalities)}; give it at least one of them, or leave the row out"
            )
        return present

    def _encoded(self, modality: Modality, inputs: Inputs, there: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, E] and mask [B, T] of a modality, zero in the rows where it is not `there`."""
        if modality + FEATURES in inputs:
            # Zero, whatever lies there: a NaN would spread through a product with 0.
            features = inputs[modality + FEATURES].masked_fill(~there[:, None, None], 0.0)
            return features, inputs[modality + MASK].bool() & there[:, None]
        encoder = self.encoder(modality)
        parameter = self.head.weight
        features = parameter.new_zeros(len(there), encoder.num_tokens, encoder.width)
        mask = there.new_zeros(features.shape[:2])
        rows = there.nonzero()[:, 0]
        if not len(rows):
            return features, mask
        if modality.value not in inputs:
            raise ValueError(f"{PRESENT} says that row {int(rows[0])} has {modality}, but there is no tensor of it")
        # Rows that lack it are not encoded: they cost nothing, and no batch statistics know of them.
        frozen = self.settings.encoder(modality).freeze
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens, heard = encoder(inputs[modality.value][rows])
        return features.index_copy(0, rows, tokens), mask.index_copy(0, rows, heard)

    @property
    def encoder_key(self) -> str:
        """sha256 (hex) of the encoders' settings, sizes and weights: features of other encoders have another key."""
        digest = hashlib.sha256()
        for each in self.modalities:
            settings = self.settings.encoder(each).model_dump(mode="json", exclude={"path", "freeze"})
            digest.update(json.dumps([each.value, settings]).encode())
        digest.update(self.settings.sizes.model_dump_json().encode())
        for name, tensor in sorted(self.encoders.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Writes weights, settings, and what describes encoders that came from checkpoints: all that `load` needs."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = self.settings.model_dump(mode="json")
        for each in self.modalities:
            path = self.settings.encoder(each).path
            if path is not None:
                copy_descriptions(path, directory / ENCODERS / each)
                settings["encoders"][each.value]["path"] = str(Path(ENCODERS) / each)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, directory / WEIGHTS_FILE)
        content = {"num_classes": self.num_classes, "encoder_key": self.encoder_key, "settings": settings}
        (directory / SETTINGS_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, *, num_classes: int | None = None) -> FusionModel:
        """The model that `save` wrote.

        num_classes: what the caller chooses among; None takes what there is.

        Raises:
            ConfigError: there is none, it has another number of classes, or its weights do not fit its settings.
        """
        file = directory / SETTINGS_FILE
        if not file.is_file():
            raise ConfigError(f"{directory}: no fusion model there (no {SETTINGS_FILE}); name one that was saved")
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if num_classes is not None and content["num_classes"] != num_classes:
            raise ConfigError(
                f"{directory}: its head chooses among {content['num_classes']} classes, and {num_classes} are asked "
                "for; load it without a number, or train a model on these classes"
            )
        for settings in content["settings"]["encoders"].values():
            if settings["path"] is not None:
                settings["path"] = str(directory / settings["path"])
        model = cls(FusionSettings.model_validate(content["settings"]), content["num_classes"], load_encoders=False)
        try:
            model.load_state_dict(load_file(directory / WEIGHTS_FILE))
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{directory}: {WEIGHTS_FILE} does not fit {SETTINGS_FILE} ({error}); save both again"
            ) from None
        if model.encoder_key != content["encoder_key"]:
            raise ConfigError(f"{directory}: the encoders are not those that were saved; save the model again")
        return model


def dropped(present: Tensor, share: float) -> Tensor:
    """`present` [B, M] with each modality taken away with probability `share`, but for rows that would have none."""
    kept = present & (torch.rand(present.shape, device=present.device) >= share)
    return torch.where(kept.any(1, keepdim=True), kept, present)


def check_labels(labels: Tensor, num_classes: int) -> Tensor:
    """The labels int64 [B], if each is one of `num_classes`.

    Raises:
        ValueError: one is not; the message names its row.
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"row {wrong[0]} has label {int(labels[wrong[0]])}, and the model has {num_classes} classes, 0 to "
            f"{num_classes - 1}; build it with as many as the data have"
        )
    return labels


def copy_descriptions(source: Path, target: Path) -> None:
    """Copies what lies beside a checkpoint's weights and describes it."""
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _DESCRIPTIONS:
        for file in source.glob(pattern):
            if ".index." not in file.name:
                shutil.copyfile(file, target / file.name)


def to_inputs(arrays: Mapping[str, Any]) -> Inputs:
    """NumPy arrays of a batch, as tensors."""
    return {name: torch.as_tensor(value) for name, value in arrays.items()}
