"""Encoders: each kind from a configuration, and from a checkpoint that says what its own class says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from pipeline.config import ConfigError
from pipeline.config.fusion import KINDS_OF, EncoderKind, EncoderSettings, FusionSettings, InputSizes, Modality
from pipeline.models.fusion import Preprocessor, Sample
from pipeline.models.fusion.encoders import build_encoder
from pipeline.models.fusion.sounds import LogMelEncoder, mask_of

SIZES = InputSizes(text_length=12, image_side=16, sampling_rate=16_000, audio_s=1.0, num_frames=3, num_numbers=2)
EXAMPLES = {
    Modality.TEXT: torch.randint(1, 257, (2, 12), generator=torch.Generator().manual_seed(0)),
    Modality.IMAGE: torch.rand(2, 3, 16, 16) * 2 - 1,
    Modality.AUDIO: torch.randn(2, 16_000) * 0.1,
    Modality.VIDEO: torch.rand(2, 3, 3, 16, 16) * 2 - 1,
    Modality.NUMBERS: torch.randn(2, 2),
}
SOUNDS = KINDS_OF[Modality.AUDIO]


@pytest.mark.parametrize(("modality", "kind"), [(each, kind) for each, kinds in KINDS_OF.items() for kind in kinds])
def test_every_kind_makes_tokens_that_learn(modality: Modality, kind: EncoderKind) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(modality, EncoderSettings(kind=kind, width=16, num_layers=1), SIZES)

    tokens, mask = encoder(EXAMPLES[modality])
    (tokens * torch.randn_like(tokens)).sum().backward()

    assert tokens.shape == (2, encoder.num_tokens, encoder.width)
    assert mask.shape == tokens.shape[:2]
    assert mask.dtype == torch.bool
    assert mask.any(1).all()
    learned = [parameter.grad is not None for parameter in encoder.parameters()]
    assert sum(learned) >= len(learned) - (kind is EncoderKind.WAV2VEC2)  # which has a mask embedding


@pytest.mark.parametrize("kind", SOUNDS)
def test_the_silence_that_pads_a_sound_is_masked(kind: EncoderKind) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(Modality.AUDIO, EncoderSettings(kind=kind, width=16, num_layers=1), SIZES).eval()
    sound = torch.zeros(1, 16_000)
    sound[0, :8_000] = torch.randn(8_000) * 0.1

    _, mask = encoder(sound)
    _, silent = encoder(torch.zeros(1, 16_000))

    share = mask.float().mean().item()
    assert 0.45 < share < 0.6
    assert not (mask[:, 1:] & ~mask[:, :-1]).any()  # from the beginning on
    assert silent.sum() == 1


def test_a_mask_ends_with_the_last_sample_that_is_not_silent() -> None:
    samples = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0]])

    expected = [[True, False], [True, False], [True, True]]
    assert mask_of(samples, 2).tolist() == expected


def test_a_level_says_nothing_to_bands() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(Modality.AUDIO, EncoderSettings(kind=EncoderKind.MFCC_CNN, width=16), SIZES)
    sound = torch.randn(1, 16_000) * 0.3

    torch.testing.assert_close(encoder(sound)[0], encoder(sound * 0.5)[0], atol=2e-2, rtol=0)


def test_a_text_checkpoint_reads_with_its_own_tokenizer(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "ring": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    model = BertModel(BertConfig(vocab_size=5, max_position_embeddings=12, **sizes)).eval()
    model.save_pretrained(tmp_path)
    settings = FusionSettings(
        modalities=(Modality.TEXT,), encoders={Modality.TEXT: EncoderSettings(path=tmp_path)}, sizes=SIZES
    )

    ids = Preprocessor(settings).batch([Sample(id="x", text="a red ring")])["text"]
    tokens, mask = build_encoder(Modality.TEXT, settings.encoder(Modality.TEXT), SIZES).eval()(ids)

    assert ids.tolist() == [[2, 3, 4, *[0] * 9]]
    assert mask.sum() == 3
    expected = model(input_ids=torch.tensor([[2, 3, 4]])).last_hidden_state
    torch.testing.assert_close(tokens[:, :3], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [EncoderKind.VIT, EncoderKind.RESNET])
def test_an_image_checkpoint_sees_pictures_as_its_processor_gives_them(tmp_path: Path, kind: EncoderKind) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    model = image_model(kind).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=mean, image_std=std)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    encoder = build_encoder(Modality.IMAGE, EncoderSettings(path=tmp_path), SIZES).eval()
    tokens, _ = encoder(torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None])

    expected = model(**processor(images=pixels, return_tensors="pt")).last_hidden_state
    expected = expected if kind is EncoderKind.VIT else expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)


def image_model(kind: EncoderKind) -> ViTModel | ResNetModel:
    if kind is EncoderKind.RESNET:
        return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))


def test_a_wav2vec2_checkpoint_hears_sounds_as_its_extractor_gives_them(tmp_path: Path) -> None:
    model = waveform_model().eval()
    model.save_pretrained(tmp_path)
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1 + 0.02).astype(np.float32)

    encoder = build_encoder(Modality.AUDIO, EncoderSettings(path=tmp_path), SIZES).eval()
    tokens, mask = encoder(torch.from_numpy(sound)[None])

    extracted = Wav2Vec2FeatureExtractor()(sound, sampling_rate=16_000, return_tensors="pt")
    assert mask.all()
    torch.testing.assert_close(tokens, model(extracted["input_values"]).last_hidden_state, atol=1e-4, rtol=1e-4)


def waveform_model() -> Wav2Vec2Model:
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_kernel=(10, 8),
            conv_stride=(5, 64),
            feat_extract_norm="layer",
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )


def test_a_whisper_checkpoint_hears_sounds_as_its_extractor_gives_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 40,
    }
    small: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = WhisperModel(WhisperConfig(d_model=8, max_source_positions=100, **sizes, **small, **ids)).eval()
    model.save_pretrained(tmp_path)
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)

    encoder = build_encoder(Modality.AUDIO, EncoderSettings(path=tmp_path), SIZES).eval()
    assert isinstance(encoder, LogMelEncoder)
    tokens, mask = encoder(torch.from_numpy(sound)[None])

    extractor = WhisperFeatureExtractor(feature_size=40, chunk_length=2)
    mel = extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(encoder.spectrogram(torch.from_numpy(sound)[None]), mel, atol=2e-3, rtol=0)
    torch.testing.assert_close(tokens, model.encoder(mel).last_hidden_state, atol=1e-2, rtol=1e-2)
    assert mask[0].tolist() == [True] * 50 + [False] * 50  # one of two seconds


def test_checkpoints_that_do_not_fit_say_why(tmp_path: Path) -> None:
    image_model(EncoderKind.VIT).save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    large = SIZES.model_copy(update={"image_side": 32})

    with pytest.raises(ConfigError, match=r"image_side=32: .* sees 16; set that"):
        build_encoder(Modality.IMAGE, EncoderSettings(path=tmp_path / "vit"), large)
    with pytest.raises(ConfigError, match=r"kind=resnet: .* holds a vit; leave `kind` out"):
        build_encoder(Modality.IMAGE, EncoderSettings(kind=EncoderKind.RESNET, path=tmp_path / "vit"), SIZES)
    with pytest.raises(ConfigError, match="no checkpoint"):
        build_encoder(Modality.AUDIO, EncoderSettings(path=tmp_path / "nowhere"), SIZES)
    with pytest.raises(ConfigError, match="no tokenizer there"):
        settings = FusionSettings(
            modalities=(Modality.TEXT,), encoders={Modality.TEXT: EncoderSettings(path=tmp_path / "vit")}
        )
        Preprocessor(settings)
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="no image processor there"):
        build_encoder(Modality.IMAGE, EncoderSettings(path=tmp_path / "vit"), SIZES)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    image_model(EncoderKind.RESNET).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(weights) if "convolution.weight" in name)
    save_file(
        {key: each for key, each in weights.items() if key != name}, tmp_path / "model.safetensors", {"format": "pt"}
    )

    with pytest.raises(ConfigError, match="1 weights are missing, first"):
        build_encoder(Modality.IMAGE, EncoderSettings(path=tmp_path), SIZES)
