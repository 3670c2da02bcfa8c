"""What differs between model families, and nowhere else.

An `Architecture` answers five questions: how a checkpoint loads, which modalities it takes, how its processor's
output splits into single media, which rotary positions a prompt has, and which parameters are towers.
A new family is a new subclass in `ARCHITECTURES`; no code outside this package knows a family by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import ConfigError, PartName
from pipeline.records import MediaKind

Arrays = Mapping[str, NDArray[Any]]


class UnsupportedArchitecture(ConfigError):
    """The checkpoint's `model_type` is none that Polyphony can teach."""


class Architecture(ABC):
    """One family of models. Instances hold no state: everything comes from the model or the processor."""

    modalities: ClassVar[tuple[MediaKind, ...]]
    towers: ClassVar[Mapping[MediaKind, PartName]]
    """The tower that encodes each kind."""
    tower_prefixes: ClassVar[Mapping[str, PartName]]
    """How parameter names of towers (their projectors included) start, and which tower that is."""
    projector_prefixes: ClassVar[tuple[str, ...]]
    """How those parameter names start that map a tower's features to the width of the language model."""

    @abstractmethod
    def model_class(self) -> Any:
        """The transformers class whose `from_pretrained` gives a trainable model with a vocabulary head."""

    @abstractmethod
    def placeholder_ids(self, config: Any) -> dict[MediaKind, int]:
        """Token id of each modality's placeholder."""

    @abstractmethod
    def processor_kwargs(self, processor: Any, frame_rates: Sequence[float]) -> dict[str, Any]:
        """Arguments that make the processor keep the checkpoint's own settings at each call.

        Args:
            frame_rates: frames per second of each video.
        """

    def run(self, processor: Any, arguments: Mapping[str, Any], frame_rates: Sequence[float]) -> dict[str, Any]:
        """What the processor makes of text and media; each video at its own one of `frame_rates`."""
        return dict(processor(**arguments, **self.processor_kwargs(processor, frame_rates)))

    @abstractmethod
    def split(self, processor: Any, outputs: Arrays, kinds: Sequence[MediaKind]) -> list[tuple[dict[str, Any], int]]:
        """The processor's tensors and the number of placeholder tokens of each medium, in the order of `kinds`."""

    @abstractmethod
    def position_ids(self, model: Any, input_ids: Tensor, media: Sequence[tuple[MediaKind, Arrays]]) -> Tensor:
        """Positions int64 [R, L] of one prompt `input_ids` [L] with `media` in order."""

    @abstractmethod
    def encode(self, model: Any, kind: MediaKind, media: Sequence[Arrays]) -> list[Tensor]:
        """Tower features [num_tokens, hidden] of each of several media of one kind, in one call of the tower."""

    def opening_ids(self, config: Any) -> frozenset[int]:
        """Tokens behind which the model's own forward expects a medium, as far as its config names them."""
        named = (getattr(config, f"{each}_start_token_id", None) for each in ("vision", "audio"))
        return frozenset(token for token in named if token is not None)

    def language_model(self, model: Any) -> Any:
        """The decoder that takes embeddings, positions and a cache and gives hidden states."""
        return model.model.language_model

    def is_tower(self, parameter: str) -> bool:
        """Whether a parameter (by its full name) belongs to a tower."""
        return parameter.startswith(tuple(self.tower_prefixes))

    def part_of(self, parameter: str) -> PartName:
        """The part of the model that a parameter (by its full name) belongs to."""
        if parameter.startswith(self.projector_prefixes):
            return PartName.PROJECTOR
        for prefix, part in self.tower_prefixes.items():
            if parameter.startswith(prefix):
                return part
        return PartName.HEAD if parameter.startswith("lm_head.") else PartName.LANGUAGE_MODEL


class QwenVision(Architecture):
    """The Qwen2.5 family: grids of merged patches, three-dimensional rotary positions."""

    modalities = (MediaKind.IMAGE, MediaKind.VIDEO)
    towers: ClassVar[Mapping[MediaKind, PartName]] = {
        MediaKind.IMAGE: PartName.VISION_TOWER,
        MediaKind.VIDEO: PartName.VISION_TOWER,
    }
    tower_prefixes: ClassVar[Mapping[str, PartName]] = {"model.visual.": PartName.VISION_TOWER}
    projector_prefixes = ("model.visual.merger.",)
    seconds_per_grid: ClassVar[str]
    """The processor's name for the seconds that one temporal patch of a video spans."""

    def processor_kwargs(self, processor: Any, frame_rates: Sequence[float]) -> dict[str, Any]:
        # The class's own default size wins over the saved one unless it is passed at each call.
        # Without a stated order, a picture of height 1 or 3 would be taken for [channels, height, width].
        order = {"input_data_format": "channels_last"}
        videos: dict[str, Any] = {"size": dict(processor.video_processor.size), "do_sample_frames": False, **order}
        if frame_rates:
            videos["fps"] = frame_rates[0]
        return {"images_kwargs": order, "videos_kwargs": videos}

    def split(self, processor: Any, outputs: Arrays, kinds: Sequence[MediaKind]) -> list[tuple[dict[str, Any], int]]:
        starts = {"pixel_values": 0, "pixel_values_videos": 0}
        counts = dict.fromkeys(MediaKind, 0)
        parts: list[tuple[dict[str, Any], int]] = []
        for kind in kinds:
            index = counts[kind]
            counts[kind] += 1
            if kind is MediaKind.AUDIO:
                parts.append(self.split_audio(outputs, index))
                continue
            pixels, grids = _vision_names(kind)
            grid = outputs[grids][index]
            start, length = starts[pixels], int(np.prod(grid))
            starts[pixels] = start + length
            tensors: dict[str, Any] = {pixels: outputs[pixels][start : start + length], grids: grid}
            if kind is MediaKind.VIDEO:
                tensors[self.seconds_per_grid] = np.asarray(outputs[self.seconds_per_grid][index], np.float32)
            merge = processor.image_processor.merge_size
            parts.append((tensors, length // merge**2))
        return parts

    def split_audio(self, outputs: Arrays, index: int) -> tuple[dict[str, Any], int]:
        """The tensors and token count of the `index`-th sound."""
        raise NotImplementedError(f"{type(self).__name__} takes no audio")

    def encode(self, model: Any, kind: MediaKind, media: Sequence[Arrays]) -> list[Tensor]:
        pixels, grids = _vision_names(kind)
        device = model.device
        values = torch.cat([torch.as_tensor(medium[pixels]) for medium in media]).to(device)
        grid = torch.stack([torch.as_tensor(medium[grids]) for medium in media]).to(device)
        method = model.model.get_image_features if kind is MediaKind.IMAGE else model.model.get_video_features
        return list(method(values, grid, return_dict=True).pooler_output)

    def grids(self, media: Sequence[tuple[MediaKind, Arrays]], kind: MediaKind, name: str) -> Tensor | None:
        """One entry a medium of `kind`, stacked; None where there is none."""
        found = [torch.as_tensor(tensors[name]) for medium_kind, tensors in media if medium_kind is kind]
        return torch.stack(found) if found else None


class Qwen25VL(QwenVision):
    """Qwen2.5-VL: text, image, video."""

    seconds_per_grid = "second_per_grid_ts"

    def model_class(self) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def processor_kwargs(self, processor: Any, frame_rates: Sequence[float]) -> dict[str, Any]:
        kwargs = super().processor_kwargs(processor, ())
        if frame_rates:
            # The seconds a grid spans are read from the metadata, one entry a video.
            metadata = [{"fps": rate, "total_num_frames": None} for rate in frame_rates]
            kwargs["videos_kwargs"]["video_metadata"] = metadata
        return kwargs

    def placeholder_ids(self, config: Any) -> dict[MediaKind, int]:
        return {MediaKind.IMAGE: config.image_token_id, MediaKind.VIDEO: config.video_token_id}

    def position_ids(self, model: Any, input_ids: Tensor, media: Sequence[tuple[MediaKind, Arrays]]) -> Tensor:
        ids = self.placeholder_ids(model.config)
        types = (input_ids == ids[MediaKind.IMAGE]).int() + 2 * (input_ids == ids[MediaKind.VIDEO]).int()
        positions, _ = model.model.get_rope_index(
            input_ids[None],
            types[None],
            image_grid_thw=self.grids(media, MediaKind.IMAGE, "image_grid_thw"),
            video_grid_thw=self.grids(media, MediaKind.VIDEO, "video_grid_thw"),
            second_per_grid_ts=self.grids(media, MediaKind.VIDEO, self.seconds_per_grid),
            attention_mask=torch.ones_like(input_ids)[None],
        )
        return positions[:, 0]


class Qwen25OmniThinker(QwenVision):
    """The thinker of Qwen2.5-Omni: text, image, audio, video."""

    modalities = (MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO)
    towers: ClassVar[Mapping[MediaKind, PartName]] = {
        **QwenVision.towers,
        MediaKind.AUDIO: PartName.AUDIO_TOWER,
    }
    tower_prefixes: ClassVar[Mapping[str, PartName]] = {
        **QwenVision.tower_prefixes,
        "model.audio_tower.": PartName.AUDIO_TOWER,
    }
    projector_prefixes = ("model.visual.merger.", "model.audio_tower.proj.")
    seconds_per_grid = "video_second_per_grid"

    def model_class(self) -> Any:
        # Also for a directory that holds thinker and talker: the automatic class gives one that cannot be trained.
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration

        return Qwen2_5OmniThinkerForConditionalGeneration

    def placeholder_ids(self, config: Any) -> dict[MediaKind, int]:
        return {
            MediaKind.IMAGE: config.image_token_id,
            MediaKind.AUDIO: config.audio_token_id,
            MediaKind.VIDEO: config.video_token_id,
        }

    def run(self, processor: Any, arguments: Mapping[str, Any], frame_rates: Sequence[float]) -> dict[str, Any]:
        outputs = super().run(processor, arguments, frame_rates)
        if frame_rates:  # The model takes seconds for each video; its processor writes those of one rate for all.
            patch = processor.video_processor.temporal_patch_size
            outputs[self.seconds_per_grid] = np.array([patch / rate for rate in frame_rates])
        return outputs

    def split_audio(self, outputs: Arrays, index: int) -> tuple[dict[str, Any], int]:
        mask = outputs["feature_attention_mask"][index].astype(bool)
        features = outputs["input_features"][index][:, mask]
        after_convolution = (int(mask.sum()) - 1) // 2 + 1
        return {"input_features": features}, (after_convolution - 2) // 2 + 1

    def position_ids(self, model: Any, input_ids: Tensor, media: Sequence[tuple[MediaKind, Arrays]]) -> Tensor:
        frames = [tensors["input_features"].shape[-1] for kind, tensors in media if kind is MediaKind.AUDIO]
        positions, _ = model.model.get_rope_index(
            input_ids[None],
            self.grids(media, MediaKind.IMAGE, "image_grid_thw"),
            self.grids(media, MediaKind.VIDEO, "video_grid_thw"),
            torch.ones_like(input_ids)[None],
            False,
            torch.tensor(frames) if frames else None,
            self.grids(media, MediaKind.VIDEO, self.seconds_per_grid),
        )
        return positions[:, 0].long()

    def encode(self, model: Any, kind: MediaKind, media: Sequence[Arrays]) -> list[Tensor]:
        if kind is not MediaKind.AUDIO:
            return super().encode(model, kind, media)
        sounds = [torch.as_tensor(medium["input_features"]) for medium in media]
        lengths = torch.tensor([sound.shape[-1] for sound in sounds])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        padded = torch.zeros(len(sounds), sounds[0].shape[0], mask.shape[1], dtype=model.dtype)
        for row, sound in zip(padded, sounds, strict=True):
            row[:, : sound.shape[-1]] = sound
        features = model.model.get_audio_features(
            padded.to(model.device), feature_attention_mask=mask.to(model.device), return_dict=True
        ).last_hidden_state
        tokens = ((lengths - 1) // 2 + 1 - 2) // 2 + 1
        return list(features.split(tokens.tolist()))


def _vision_names(kind: MediaKind) -> tuple[str, str]:
    return ("pixel_values", "image_grid_thw") if kind is MediaKind.IMAGE else ("pixel_values_videos", "video_grid_thw")


ARCHITECTURES: dict[str, Architecture] = {
    "qwen2_5_omni": Qwen25OmniThinker(),
    "qwen2_5_omni_thinker": Qwen25OmniThinker(),
    "qwen2_5_vl": Qwen25VL(),
}


def architecture_of(path: Path, *, trust_remote_code: bool = False) -> Architecture:
    """The architecture of the checkpoint in `path`, by the `model_type` in its config.

    Raises:
        FileNotFoundError: there is no checkpoint.
        UnsupportedArchitecture: its `model_type` is not known here.
    """
    from transformers import PreTrainedConfig

    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {path}: config.json is missing; name a Hugging Face directory")
    model_type = str(PreTrainedConfig.get_config_dict(path, trust_remote_code=trust_remote_code)[0].get("model_type"))
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedArchitecture(f"{path}: model_type={model_type!r} is not supported; known: {known}") from None
