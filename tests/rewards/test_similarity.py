"""A tiny CLIP, built here: cosines by hand from its own embeddings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from pipeline.config.fusion import EncoderSettings, InputSizes, Modality
from pipeline.config.pretrain import JointEmbedding
from pipeline.models.dual_encoder import DualEncoder
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio, Image, Video
from pipeline.rewards.similarity import similarity_reward

WORDS = ["[PAD]", "[UNK]", "red", "green", "square", "[EOS]"]


def _picture(colour: int) -> Image:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., colour] = 255
    return Image(pixels)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "max_position_embeddings": 8, "eos_token_id": 5, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=4)
    CLIPModel(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=8
    )
    pictures: Any = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, fast).save_pretrained(directory)
    return str(directory)


def test_the_reward_is_the_cosine_of_text_and_picture(checkpoint: str) -> None:
    red, green = _picture(0), _picture(1)
    texts = ["red square", "green", "red square"]
    found = similarity_reward(texts, [[red], [green], [red]], checkpoint=checkpoint, batch_size=2)
    model: Any = CLIPModel.from_pretrained(checkpoint).eval()
    processor: Any = CLIPProcessor.from_pretrained(checkpoint)
    expected: list[float] = []
    for text, picture in zip(texts, (red, green, red), strict=True):
        with torch.inference_mode():
            outputs = model(**processor(text=[text], images=[picture.pixels], return_tensors="pt"))
        expected.append(float(outputs.text_embeds[0] @ outputs.image_embeds[0]))
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_of_several_pictures_the_mean_counts_and_without_one_there_is_no_reward(checkpoint: str) -> None:
    red, green, sound = _picture(0), _picture(1), Audio(np.zeros(16, np.float32), 16000)
    one, other = similarity_reward(["red", "red"], [[red], [green]], checkpoint=checkpoint)
    assert one is not None and other is not None
    both, none, deaf, silent = similarity_reward(
        ["red", "red", "red", " "], [[red, sound, green], [], [sound], [red]], checkpoint=checkpoint
    )
    assert both == pytest.approx((one + other) / 2, abs=1e-6)
    assert (none, deaf, silent) == (None, None, 0.0)


def test_a_checkpoint_that_is_no_dual_encoder_is_an_error(tmp_path: Path) -> None:
    BertModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel is no dual encoder"):
        similarity_reward(["red"], [[_picture(0)]], checkpoint=str(tmp_path))


def test_a_video_is_the_mean_of_its_pictures(checkpoint: str) -> None:
    red, green = _picture(0), _picture(1)
    frames = np.stack([red.pixels, green.pixels])
    (found,) = similarity_reward(["red"], [[Video(frames, 2.0)]], checkpoint=checkpoint)
    model: Any = CLIPModel.from_pretrained(checkpoint).eval()
    processor: Any = CLIPProcessor.from_pretrained(checkpoint)
    with torch.inference_mode():
        outputs = model(**processor(text=["red"], images=[red.pixels, green.pixels], return_tensors="pt"))
    mean = torch.nn.functional.normalize(outputs.image_embeds.mean(0), dim=0)
    assert found == pytest.approx(float(outputs.text_embeds[0] @ mean), abs=1e-5)


def _own(directory: Path, *modalities: Modality) -> DualEncoder:
    torch.manual_seed(0)
    small = EncoderSettings(width=16, num_layers=1, num_heads=2)
    settings = JointEmbedding(
        size=8,
        head_width=16,
        num_heads=2,
        encoders={each: small for each in modalities},
        sizes=InputSizes(text_length=12, image_side=16, sampling_rate=8000, audio_s=0.5),
    )
    encoder = DualEncoder(settings, modalities).eval()
    encoder.save(directory)
    return encoder


def test_a_dual_encoder_of_our_own_sees_and_hears(tmp_path: Path) -> None:
    encoder = _own(tmp_path, Modality.TEXT, Modality.IMAGE, Modality.AUDIO)
    red, sound = _picture(0), Audio(np.sin(np.arange(3000) / 9).astype(np.float32), 8000)
    both, seen, none = similarity_reward(["red", "red", "red"], [[red, sound], [red], []], checkpoint=str(tmp_path))
    text = encoder.embed([Sample("", text="red")], Modality.TEXT)[0]
    of_red = float(encoder.embed([Sample("", image=red)], Modality.IMAGE)[0] @ text)
    of_sound = float(encoder.embed([Sample("", audio=sound)], Modality.AUDIO)[0] @ text)
    assert seen == pytest.approx(of_red, abs=1e-5)
    assert both == pytest.approx((of_red + of_sound) / 2, abs=1e-5)
    assert none is None


def test_an_encoder_without_a_tower_for_text_is_an_error(tmp_path: Path) -> None:
    _own(tmp_path, Modality.IMAGE, Modality.AUDIO)
    with pytest.raises(ValueError, match="has towers for image, audio, and none for text"):
        similarity_reward(["red"], [[_picture(0)]], checkpoint=str(tmp_path))
