"""Similarity: how near a dual encoder sees a completion to the prompt's picture or sound (CLIP, SigLIP, CLAP)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.grading.records import RewardCompletion, RewardPrompt
from pipeline.records import Audio, Image


def similarity(
    prompts: Sequence[RewardPrompt], completions: Sequence[RewardCompletion], *, checkpoint: str, batch_size: int = 16
) -> list[float | None]:
    """`similarity_reward` as a recipe asks for it, with `media: decoded`. docs/checkers.md has the recipe."""
    media = [[each for each in prompt.media if isinstance(each, Image | Audio)] for prompt in prompts]
    texts = [completion.text for completion in completions]
    return similarity_reward(texts, media, checkpoint=checkpoint, batch_size=batch_size)


def similarity_reward(
    texts: Sequence[str], media: Sequence[Sequence[Image | Audio]], *, checkpoint: str, batch_size: int = 16
) -> list[float | None]:
    """Cosine of each text's embedding and its media's, in [-1, 1]; of several media the mean.

    Media are those that the checkpoint sees or hears: pictures where it has `get_image_features`, sounds where it has
    `get_audio_features`. None for a text that has none of these: the reward does not apply. A text without words
    has 0.

    Args:
        texts: N.
        media: N, decoded; the same object is embedded once.
        checkpoint: directory (or name) of a dual encoder with its processor; loaded once a process.
        batch_size: texts or media in a pass.

    Raises:
        ValueError: the checkpoint is no dual encoder.
    """
    processor, model = _loaded(checkpoint)
    kind = Image if hasattr(model, "get_image_features") else Audio
    own = [[each for each in given if type(each) is kind] for given in media]
    distinct: dict[int, Image | Audio] = {id(each): each for given in own for each in given}
    rows = [row for row, given in enumerate(own) if given and texts[row].strip()]
    seen = _embedded(processor, model, list(distinct.values()), batch_size)
    said = _embedded(processor, model, [texts[row] for row in rows], batch_size)
    place = {key: index for index, key in enumerate(distinct)}
    rewards: list[float | None] = [0.0 if given else None for given in own]
    for index, row in enumerate(rows):
        rewards[row] = float((seen[[place[id(each)] for each in own[row]]] @ said[index]).mean())
    return rewards


def _embedded(processor: Any, model: Any, items: Sequence[str | Image | Audio], batch_size: int) -> Tensor:
    """Embeddings of unit length, float32 [N, D]."""
    found = [torch.zeros(0, 0)]
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        with torch.inference_mode():
            features = _features(processor, model, batch)
        # From transformers 5 on these are outputs of a tower, with the projected embedding as the pooled one.
        tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
        found.append(torch.nn.functional.normalize(tensor.float(), dim=-1))
    return torch.cat(found[1:] or found)


def _features(processor: Any, model: Any, batch: Sequence[str | Image | Audio]) -> Any:
    match batch[0]:
        case str():
            # SigLIP has learned from texts padded to their full length alone.
            padding = "max_length" if "siglip" in str(model.config.model_type) else True
            inputs = processor.tokenizer(list(batch), padding=padding, truncation=True, return_tensors="pt")
            return model.get_text_features(**inputs.to(model.device))
        case Image():
            pixels = [each.pixels for each in batch if isinstance(each, Image)]
            return model.get_image_features(**processor.image_processor(pixels, return_tensors="pt").to(model.device))
        case Audio():
            extractor = processor.feature_extractor
            sounds = [each for each in batch if isinstance(each, Audio)]
            samples = [_resampled(each, int(extractor.sampling_rate)) for each in sounds]
            inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            return model.get_audio_features(**inputs.to(model.device))


def _resampled(sound: Audio, rate: int) -> Any:
    if sound.sampling_rate == rate:
        return sound.samples
    import soxr

    return soxr.resample(sound.samples, sound.sampling_rate, rate)


@functools.lru_cache(maxsize=4)
def _loaded(checkpoint: str) -> tuple[Any, Any]:
    # Seconds of imports, for those who have a dual encoder.
    from transformers import AutoModel, AutoProcessor

    model: Any = AutoModel.from_pretrained(checkpoint)
    if not hasattr(model, "get_text_features") or not (
        hasattr(model, "get_image_features") or hasattr(model, "get_audio_features")
    ):
        raise ValueError(f"checkpoint={checkpoint}: {type(model).__name__} is no dual encoder, such as CLIP or CLAP")
    return AutoProcessor.from_pretrained(checkpoint), model.eval()
