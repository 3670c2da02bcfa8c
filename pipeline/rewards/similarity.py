"""Similarity: how near a dual encoder sees a completion to the prompt's picture, sound or video.

The encoder is one of ours (`jobs.pretrain`) or a checkpoint of CLIP, SigLIP, ALIGN or CLAP.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.fusion import Modality
from pipeline.grading.records import RewardCompletion, RewardPrompt
from pipeline.records import Audio, Image, Video

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.dual_encoder import JointEncoder
    from pipeline.models.fusion.samples import Sample

MODALITY_OF = {Image: Modality.IMAGE, Audio: Modality.AUDIO, Video: Modality.VIDEO}


def similarity(
    prompts: Sequence[RewardPrompt], completions: Sequence[RewardCompletion], *, checkpoint: str, batch_size: int = 16
) -> list[float | None]:
    """`similarity_reward` as a recipe asks for it, with `media: decoded`. docs/checkers.md has the recipe."""
    media = [[each for each in prompt.media if isinstance(each, Image | Audio | Video)] for prompt in prompts]
    texts = [completion.text for completion in completions]
    return similarity_reward(texts, media, checkpoint=checkpoint, batch_size=batch_size)


def similarity_reward(
    texts: Sequence[str], media: Sequence[Sequence[Image | Audio | Video]], *, checkpoint: str, batch_size: int = 16
) -> list[float | None]:
    """Cosine of each text's embedding and its media's, in [-1, 1]; of several media the mean.

    Media are those that the encoder sees or hears. A video is the mean of its pictures where the encoder has a tower
    for pictures and none for videos. None for a text that has none of these: the reward does not apply. A text without
    words has 0.

    Args:
        texts: N.
        media: N, decoded; the same object is embedded once.
        checkpoint: directory of a dual encoder, with its processor where it is a Hugging Face one; loaded once a
            process.
        batch_size: texts or media in a pass.

    Raises:
        ValueError: the checkpoint is no dual encoder, or has no tower for text.
    """
    encoder = _loaded(checkpoint)
    own = [[each for each in given if encoder.sees(MODALITY_OF[type(each)])] for given in media]
    distinct: dict[int, Image | Audio | Video] = {id(each): each for given in own for each in given}
    rows = [row for row, given in enumerate(own) if given and texts[row].strip()]
    said = encoder.embed([_sample(text=texts[row]) for row in rows], Modality.TEXT, batch_size=batch_size)
    seen = {
        key: embedding
        for modality in MODALITY_OF.values()
        for key, embedding in _embedded(encoder, distinct, modality, batch_size).items()
    }
    rewards: list[float | None] = [0.0 if given else None for given in own]
    for index, row in enumerate(rows):
        cosines = [float(seen[id(each)] @ said[index]) for each in own[row]]
        rewards[row] = sum(cosines) / len(cosines)
    return rewards


def _embedded(
    encoder: JointEncoder, media: dict[int, Image | Audio | Video], modality: Modality, batch_size: int
) -> dict[int, Tensor]:
    """Embeddings of length one, float32 [D], of the media of one kind."""
    keys = [key for key, each in media.items() if MODALITY_OF[type(each)] is modality]
    if not keys:
        return {}
    samples = [_sample(**{modality.value: media[key]}) for key in keys]
    return dict(zip(keys, encoder.embed(samples, modality, batch_size=batch_size), strict=True))


def _sample(**content: Any) -> Sample:
    from pipeline.models.fusion.samples import Sample

    return Sample("", **content)


@functools.lru_cache(maxsize=4)
def _loaded(checkpoint: str) -> JointEncoder:
    # Seconds of imports, for those who have a dual encoder.
    from pipeline.models.dual_encoder import load_joint_encoder

    encoder = load_joint_encoder(checkpoint)
    if Modality.TEXT not in encoder.modalities:
        raise ValueError(
            f"checkpoint={checkpoint}: has towers for {', '.join(encoder.modalities)}, and none for text; completions "
            "are texts"
        )
    return encoder
