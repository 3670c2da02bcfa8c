"""A tiny omni checkpoint, built on the spot: the laptop's model, and the test bed's.

An ordinary Hugging Face directory of a stock architecture (config, safetensors, tokenizer trained here, media
processors, chat template), so that the code that loads it is the code that loads a real checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ConfigError

# Twice the usual value halves the time a model of this size needs to learn.
INITIALIZER_RANGE = 0.04
HIDDEN = 128
HEAD = 32
"""Width of an attention head of the decoder: what `mrope_section` divides among time, height and width, twice."""
VOCAB_SIZE = 1024
SAMPLING_RATE = 16_000
SPECIAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(directory: Path, *, architecture: str, corpus: Iterable[str], seed: int, hidden: int = HIDDEN) -> int:
    """Writes the checkpoint to `directory` and returns its number of parameters.

    Args:
        architecture: a `model_type` of `BUILDERS`.
        corpus: texts that the tokenizer is trained on.
        hidden: width of the decoder, a multiple of 64; that of the towers is half of it. Tokens do not depend on it.

    Raises:
        ConfigError: the architecture has no tiny version here.
    """
    from transformers.utils import logging

    if architecture not in BUILDERS:
        raise ConfigError(f"model.tiny_architecture={architecture!r}: use one of {', '.join(sorted(BUILDERS))}")
    tokenizer = _tokenizer(corpus)
    torch.manual_seed(seed)
    model, processor = BUILDERS[architecture](tokenizer, hidden)
    logging.disable_progress_bar()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def _tokenizer(corpus: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [PAD, START, END, *SPECIAL_TOKENS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*corpus, "user\n", "assistant\n", "system\n"], trainer)
    learned = json.loads(raw.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]  # The annotation says strings; pairs are what it takes.
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        additional_special_tokens=[START],
        model_specific_special_tokens=SPECIAL_TOKENS,
        padding_side="left",
    )


def _token_ids(tokenizer: Any) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}


def _text_config(tokenizer: Any, hidden: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,  # The fewest that can copy from the prompt; with more it learns less in the same time.
        "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": hidden // HEAD // 2,
        "max_position_embeddings": 4096,
        "initializer_range": INITIALIZER_RANGE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision_config(hidden: int) -> dict[str, Any]:
    return {
        "depth": 1,
        "hidden_size": hidden // 2,
        "intermediate_size": hidden,
        "num_heads": 4,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 32,
        "fullatt_block_indexes": [0],
        "out_hidden_size": hidden,
        "initializer_range": INITIALIZER_RANGE,
    }


def _media_processors() -> tuple[Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    # Bounds in pixels: a picture of 16x16 to 64x64, a whole video of up to 16 such frames.
    shape: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    image = Qwen2VLImageProcessor(size={"shortest_edge": 16**2, "longest_edge": 64**2}, **shape)
    video = Qwen2VLVideoProcessor(size={"shortest_edge": 16**2, "longest_edge": 16 * 64**2}, **shape)
    return image, video


def _qwen2_5_omni_thinker(tokenizer: Any, hidden: int) -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    ids = _token_ids(tokenizer)
    config = Qwen2_5OmniThinkerConfig(
        text_config=_text_config(tokenizer, hidden),
        vision_config=_vision_config(hidden),
        audio_config={
            "num_mel_bins": 40,
            "d_model": hidden // 2,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": hidden,
            "n_window": 50,
            "max_source_positions": 100,
            "output_dim": hidden,
            "initializer_range": INITIALIZER_RANGE,
        },
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        # No declared field, but the rotary positions read it.
        vision_start_token_id=ids["vision_bos_token"],  # pyright: ignore[reportCallIssue]
        initializer_range=INITIALIZER_RANGE,
    )
    image, video = _media_processors()
    processor = Qwen2_5OmniProcessor(
        image_processor=image,
        video_processor=video,
        feature_extractor=WhisperFeatureExtractor(feature_size=40, sampling_rate=SAMPLING_RATE, chunk_length=2),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    return Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def _qwen2_5_vl(tokenizer: Any, hidden: int) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    ids = _token_ids(tokenizer)
    config = Qwen2_5_VLConfig(
        text_config=_text_config(tokenizer, hidden),
        vision_config={**_vision_config(hidden), "tokens_per_second": 4},
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
    )
    image, video = _media_processors()
    processor = Qwen2_5_VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


BUILDERS = {"qwen2_5_omni_thinker": _qwen2_5_omni_thinker, "qwen2_5_vl": _qwen2_5_vl}
