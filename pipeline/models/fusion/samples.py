"""What a fusion model decides from: a sample, and the arrays of fixed shapes that it becomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as pillow
from torch import Tensor

from pipeline.config import ConfigError, MediaLimits
from pipeline.config.fusion import FusionSettings, InputSizes, Modality
from pipeline.data.media import decode, resample
from pipeline.data.schema import split_content
from pipeline.records import Audio, DecodedMedium, Image, MediaKind, Medium, Prompt, Video

Inputs = dict[str, Tensor]
"""A batch: an entry a modality of the model, whatever where a row lacks it, and `present`: bool [B, M]."""

PRESENT = "present"
"""Which of the model's modalities, in their order, a row has."""


@dataclass(frozen=True)
class Sample:
    """What one decision sees. None stands for a modality that the row lacks, as does a blank text."""

    id: str
    text: str | None = None
    image: Image | None = None
    audio: Audio | None = None
    video: Video | None = None
    numbers: tuple[float, ...] | None = None

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities that are there."""
        return frozenset(each for each in Modality if _is_there(getattr(self, each.value)))


def _is_there(content: object) -> bool:
    return content is not None and not (isinstance(content, str) and not content.strip())


def sample_of(
    prompt: Prompt,
    *,
    decoder: Callable[[Medium], DecodedMedium] | None = None,
    columns: Mapping[str, Any] | None = None,
    numbers: Sequence[str] = (),
) -> Sample:
    """The sample of a row of the prompt table: the text of its messages without tags, its first medium of each kind.

    decoder: what opens a medium within bounds, such as `pipeline.data.isolated.Decoder(limits).decode`; None decodes
        in this process within the default bounds.
    columns: further columns of the row. numbers: those of them that make its `numbers`; where all are null, or
        nothing is named, the row has none.

    Raises:
        ValueError: a column is missing, no number, or null beside others that are not.
        RowError: a medium cannot be decoded.
    """
    parts = [part for message in prompt.messages for part in split_content(message.content)]
    text = " ".join(part.strip() for part in parts if not isinstance(part, MediaKind)).strip()
    first = {medium.kind: medium for medium in reversed(prompt.media)}
    opened = {kind: decoder(each) if decoder else decode(each, MediaLimits()) for kind, each in first.items()}
    return Sample(
        id=prompt.id,
        text=text or None,
        numbers=_numbers(prompt.id, columns or {}, numbers),
        **{kind.value: medium for kind, medium in opened.items()},  # pyright: ignore[reportArgumentType]
    )


def _numbers(row: str, columns: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...] | None:
    values = {name: columns.get(name) for name in names}
    if all(value is None for value in values.values()):
        return None
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(
                f"row {row!r}: column {name} is {value!r}, no finite number; fill it in, or leave out all of "
                f"{', '.join(names)}"
            )
    return tuple(float(value) for value in values.values() if value is not None)


class Preprocessor:
    """Turns samples into arrays of fixed shapes. It holds no weights, and travels between processes.

    shapes: of each modality of the model, and of `present`, the shape of one row and its type. Text int64 [L] (bytes
        + 1, or ids of the checkpoint's tokenizer), image float32 [3, H, W] in [-1, 1], audio float32 [S] in [-1, 1],
        video float32 [F, 3, H, W] in [-1, 1], numbers float32 [N], present bool [M].
    cut: how many texts and sounds were too long and were cut, by modality.

    Raises:
        ConfigError: a text encoder's checkpoint has no tokenizer.
    """

    def __init__(self, settings: FusionSettings) -> None:
        self.settings = settings
        self.modalities = settings.modalities
        self.cut = Counter[str]()
        self._tokenizer = _tokenizer(settings)
        sizes = settings.sizes
        picture = (3, sizes.image_side, sizes.image_side)
        shapes: dict[Modality, tuple[tuple[int, ...], Any]] = {
            Modality.TEXT: ((sizes.text_length,), np.int64),
            Modality.IMAGE: (picture, np.float32),
            Modality.AUDIO: ((sizes.num_samples,), np.float32),
            Modality.VIDEO: ((sizes.num_frames, *picture), np.float32),
            Modality.NUMBERS: ((sizes.num_numbers,), np.float32),
        }
        self.shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            each.value: (shapes[each][0], np.dtype(shapes[each][1])) for each in self.modalities
        }
        self.shapes[PRESENT] = ((len(self.modalities),), np.dtype(np.bool_))

    def __call__(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """The arrays of one sample, zeros where it lacks a modality.

        Raises:
            ValueError: it has another number of numbers than `sizes.num_numbers`, or one that is not finite.
        """
        there = sample.modalities
        arrays = {
            each.value: self._array(each, sample) if each in there else self._absent(each) for each in self.modalities
        }
        arrays[PRESENT] = np.array([each in there for each in self.modalities], np.bool_)
        return arrays

    def batch(self, samples: Sequence[Sample]) -> Inputs:
        """The samples as a batch."""
        rows = [self(sample) for sample in samples]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in self.shapes}

    def _absent(self, modality: Modality) -> NDArray[Any]:
        shape, dtype = self.shapes[modality.value]
        return np.zeros(shape, dtype)

    def _array(self, modality: Modality, sample: Sample) -> NDArray[Any]:
        sizes = self.settings.sizes
        match modality:
            case Modality.TEXT:
                return self._ids(sample.text or "")
            case Modality.IMAGE:
                assert sample.image is not None
                return _picture(sample.image.pixels, sizes.image_side)
            case Modality.AUDIO:
                assert sample.audio is not None
                return self._sound(sample.audio)
            case Modality.VIDEO:
                assert sample.video is not None
                return _film(sample.video, sizes)
            case Modality.NUMBERS:
                return _checked_numbers(sample, sizes.num_numbers)

    def _ids(self, text: str) -> NDArray[np.int64]:
        length = self.settings.sizes.text_length
        padding = 0
        if self._tokenizer is None:
            ids = [byte + 1 for byte in text.encode()]
        else:
            ids = list(self._tokenizer(text)["input_ids"])
            padding = int(self._tokenizer.pad_token_id)
        if len(ids) > length:
            self.cut[Modality.TEXT.value] += 1
            # With the token that ends a text, which tokenizers put there and encoders know.
            ids = ids[:length] if self._tokenizer is None else [*ids[: length - 1], ids[-1]]
        return np.array(ids + [padding] * (length - len(ids)), np.int64)

    def _sound(self, audio: Audio) -> NDArray[np.float32]:
        sizes = self.settings.sizes
        samples = resample(audio, sizes.sampling_rate).samples
        if len(samples) > sizes.num_samples:
            self.cut[Modality.AUDIO.value] += 1
        kept = samples[: sizes.num_samples]
        return np.pad(kept, (0, sizes.num_samples - len(kept))).astype(np.float32)


def _tokenizer(settings: FusionSettings) -> Any:
    """The tokenizer beside the text encoder's checkpoint; None where the encoder is built: it reads bytes."""
    path = settings.encoder(Modality.TEXT).path
    if Modality.TEXT not in settings.modalities or path is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoders.text.path={path}: no tokenizer there ({error}); save the checkpoint's beside it"
        ) from None
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"encoders.text.path={path}: its tokenizer has no pad token; set one and save it again")
    return tokenizer


def _picture(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    if pixels.shape[:2] != (side, side):
        image = pillow.fromarray(pixels).resize((side, side), pillow.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def _film(video: Video, sizes: InputSizes) -> NDArray[np.float32]:
    places = np.linspace(0, len(video.frames) - 1, sizes.num_frames).round().astype(int)
    return np.stack([_picture(video.frames[place], sizes.image_side) for place in places])


def _checked_numbers(sample: Sample, num: int) -> NDArray[np.float32]:
    numbers = sample.numbers or ()
    if len(numbers) != num:
        raise ValueError(
            f"row {sample.id!r} has {len(numbers)} numbers, and sizes.num_numbers={num}; give every row as many"
        )
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"row {sample.id!r}: numbers {numbers} are not all finite; fill in those that are unknown")
    return np.array(numbers, np.float32)
