"""Dual encoders: embeddings, what their key tells apart, their directory, and checkpoints of every known kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AlignProcessor,
    BertConfig,
    BertModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    EfficientNetImageProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from pipeline.config import ConfigError
from pipeline.config.fusion import EncoderSettings, InputSizes, Modality
from pipeline.config.pretrain import JointEmbedding, WarmUp, WarmUpKind
from pipeline.config.retrieve import IndexBackend
from pipeline.models.dual_encoder import DualEncoder, Index, IndexInfo, PretrainedDualEncoder, load_joint_encoder
from pipeline.models.dual_encoder.views import altered
from pipeline.models.dual_encoder.warm_up import MaskedModelling, hidden_places
from pipeline.models.fusion.samples import Sample
from pipeline.records import Audio, Image, Video

SIZES = InputSizes(text_length=12, image_side=16, sampling_rate=8000, audio_s=0.5, num_frames=2)
SMALL = JointEmbedding(
    size=8,
    head_width=16,
    num_heads=2,
    sizes=SIZES,
    encoders={
        Modality.TEXT: EncoderSettings(width=16, num_layers=1, num_heads=2),
        Modality.IMAGE: EncoderSettings(width=16, num_layers=1, num_heads=2),
        Modality.AUDIO: EncoderSettings(width=16),
        Modality.VIDEO: EncoderSettings(width=16, num_layers=1, num_heads=2),
    },
)
ALL = (Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.VIDEO)
WORDS = ["[PAD]", "[UNK]", "red", "green", "square", "[EOS]"]


def _sample(seed: int) -> Sample:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    sound = Audio((0.1 * random.standard_normal(2000 + 100 * seed)).astype(np.float32), 8000)
    return Sample(f"row-{seed}", ("red", "green", "red square")[seed % 3], Image(frames[0]), sound, Video(frames, 4.0))


SAMPLES = [_sample(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(SMALL, ALL).eval()


@pytest.mark.parametrize("modality", ALL)
def test_embeddings_have_length_one_and_do_not_depend_on_the_batch(encoder: DualEncoder, modality: Modality) -> None:
    found = encoder.embed(SAMPLES, modality, batch_size=2)
    assert found.shape == (5, 8)
    assert found.norm(dim=1) == pytest.approx(torch.ones(5), abs=1e-5)
    assert found[3:4].numpy() == pytest.approx(encoder.embed(SAMPLES[3:4], modality).numpy(), abs=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_row_that_lacks_a_modality_is_embedded_without_harm_and_refused_where_it_is_asked_for(
    encoder: DualEncoder,
) -> None:
    bare = Sample("bare", text="red")
    outputs = encoder(encoder.batch([bare, SAMPLES[0]], ALL))
    assert all(tensor.isfinite().all() for tensor in outputs.values())
    with pytest.raises(ValueError, match="row 'bare' has no image"):
        encoder.embed([bare], Modality.IMAGE)
    with pytest.raises(ValueError, match="audio has no tower in this encoder; it has text, image"):
        DualEncoder(SMALL, [Modality.TEXT, Modality.IMAGE]).embed(SAMPLES, Modality.AUDIO)


def test_a_video_without_a_tower_is_the_mean_of_its_pictures() -> None:
    torch.manual_seed(0)
    encoder = DualEncoder(SMALL, [Modality.TEXT, Modality.IMAGE])
    found = encoder.embed(SAMPLES[:2], Modality.VIDEO)
    assert SAMPLES[0].video is not None
    pictures = [replace(SAMPLES[0], image=Image(frame)) for frame in SAMPLES[0].video.frames]
    mean = encoder.embed(pictures, Modality.IMAGE).mean(0)
    assert found[0].numpy() == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_the_key_tells_other_weights_and_other_sizes_apart(encoder: DualEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    assert load_joint_encoder(tmp_path).key == encoder.key
    torch.manual_seed(0)
    same = DualEncoder(SMALL, ALL)
    assert same.key == encoder.key
    with torch.no_grad():
        same.towers["text"].exit.bias[0] += 1e-3  # pyright: ignore
    assert same.key != encoder.key
    torch.manual_seed(0)
    longer = SMALL.model_copy(update={"sizes": SIZES.model_copy(update={"audio_s": 0.6})})
    assert DualEncoder(longer, ALL[:2]).key != DualEncoder(SMALL, ALL[:2]).key


def test_what_is_saved_is_loaded_and_another_version_or_other_weights_are_refused(
    encoder: DualEncoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path)
    loaded = load_joint_encoder(tmp_path)
    for modality in ALL:
        assert torch.equal(loaded.embed(SAMPLES, modality), encoder.embed(SAMPLES, modality))
    path = tmp_path / "dual_encoder.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ConfigError, match="format 99, and this version reads 1"):
        load_joint_encoder(tmp_path)
    path.write_text(json.dumps({**content, "embedding": {**content["embedding"], "size": 4}}))
    with pytest.raises(ConfigError, match=r"not the weights of dual_encoder.json"):
        load_joint_encoder(tmp_path)


def test_an_encoder_on_a_checkpoint_needs_it_no_more_once_it_is_saved(tmp_path: Path) -> None:
    source = tmp_path / "bert"
    _tokenizer().save_pretrained(source)
    BertModel(_bert()).save_pretrained(source)
    settings = SMALL.model_copy(update={"encoders": {**SMALL.encoders, Modality.TEXT: EncoderSettings(path=source)}})
    encoder = DualEncoder(settings, [Modality.TEXT, Modality.IMAGE])
    expected = encoder.embed(SAMPLES, Modality.TEXT)
    encoder.save(tmp_path / "joint")
    for file in source.iterdir():
        file.unlink()
    loaded = load_joint_encoder(tmp_path / "joint")
    assert torch.equal(loaded.embed(SAMPLES, Modality.TEXT), expected)
    assert loaded.key == encoder.key


# Checkpoints of other makers.


def _bert() -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 5)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=8
    )


TRANSFORMER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**TRANSFORMER, "vocab_size": len(WORDS), "max_position_embeddings": 8, "eos_token_id": 5, "pad_token_id": 0}
VISION = {**TRANSFORMER, "image_size": 16, "patch_size": 8}


def _clip(directory: Path) -> None:
    CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=4)).save_pretrained(directory)
    pictures: Any = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, _tokenizer()).save_pretrained(directory)


def _siglip(directory: Path) -> None:
    SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)).save_pretrained(
        directory
    )
    SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), _tokenizer()).save_pretrained(directory)


def _align(directory: Path) -> None:
    vision = {
        "image_size": 16,
        "width_coefficient": 0.2,
        "depth_coefficient": 0.2,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "hidden_dim": 16,
    }
    text = {**TEXT, "max_position_embeddings": 16}
    AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(directory)
    pictures = EfficientNetImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    AlignProcessor(pictures, _tokenizer()).save_pretrained(directory)


def _clap(directory: Path) -> None:
    audio = {
        "hidden_size": 8,
        "patch_embeds_hidden_size": 4,
        "num_mel_bins": 64,
        "spec_size": 64,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "enable_fusion": False,
    }
    text = {**TEXT, "max_position_embeddings": 16, "projection_hidden_act": "relu"}
    config = ClapConfig(text_config=text, audio_config={**audio, "projection_hidden_act": "relu"}, projection_dim=8)
    ClapModel(config).save_pretrained(directory)
    extractor = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=24000,
        frequency_max=12000,
        max_length_s=1,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    ClapProcessor(extractor, _tokenizer()).save_pretrained(directory)


@pytest.mark.parametrize(
    ("make", "medium"),
    [(_clip, Modality.IMAGE), (_siglip, Modality.IMAGE), (_align, Modality.IMAGE), (_clap, Modality.AUDIO)],
)
def test_checkpoints_of_dual_encoders_are_loaded_trained_and_saved(
    make: Callable[[Path], None], medium: Modality, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make(tmp_path / "source")
    encoder = load_joint_encoder(tmp_path / "source")
    assert isinstance(encoder, PretrainedDualEncoder)
    assert encoder.modalities == (Modality.TEXT, medium)
    outputs = encoder(encoder.batch(SAMPLES, encoder.modalities))
    assert outputs[medium.value].shape == outputs["text"].shape == (5, encoder.embedding_size)
    assert outputs["text"].norm(dim=1).detach() == pytest.approx(torch.ones(5), abs=1e-5)
    loss = (outputs["text"] * outputs[medium.value]).sum() * outputs["scale"]
    loss.backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    encoder.eval()
    encoder.save(tmp_path / "target")
    loaded = load_joint_encoder(tmp_path / "target")
    for modality in encoder.modalities:
        expected = encoder.embed(SAMPLES, modality).numpy()
        assert loaded.embed(SAMPLES, modality).numpy() == pytest.approx(expected, abs=1e-5)
        assert not np.allclose(load_joint_encoder(tmp_path / "source").embed(SAMPLES, modality).numpy(), expected)
    with torch.no_grad():
        scales = [each(encoder.batch(SAMPLES[:1], [Modality.TEXT]))["scale"].item() for each in (encoder, loaded)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-3)


def test_what_is_no_dual_encoder_is_refused(tmp_path: Path) -> None:
    BertModel(_bert()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="BertModel is no dual encoder, such as CLIP or CLAP"):
        load_joint_encoder(tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint that transformers loads"):
        load_joint_encoder(tmp_path / "nowhere")


# The index.


@pytest.mark.parametrize("backend", list(IndexBackend))
def test_an_index_gives_the_nearest_rows_best_first(
    encoder: DualEncoder, tmp_path: Path, backend: IndexBackend
) -> None:
    info = IndexInfo(encoder.key, 8, "image", "test")
    vectors = encoder.embed(SAMPLES, Modality.IMAGE)
    Index(info, [sample.id for sample in SAMPLES], vectors).save(tmp_path)
    index = Index.load(tmp_path)
    index.check(encoder, place="here")
    queries = encoder.embed(SAMPLES[:2], Modality.TEXT)
    cosines, places = index.search(queries, top=3, backend=backend)
    expected = queries @ vectors.T
    assert places.tolist() == expected.argsort(dim=1, descending=True)[:, :3].tolist()
    assert cosines.numpy() == pytest.approx(expected.sort(dim=1, descending=True).values[:, :3].numpy(), abs=1e-5)
    assert index.search(queries, top=99, backend=backend)[1].shape == (2, 5)


def test_an_index_of_another_encoder_or_of_other_dimensions_is_refused(encoder: DualEncoder, tmp_path: Path) -> None:
    ids, vectors = ["a"], torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    with pytest.raises(ConfigError, match="was made by the encoder other, and this one is"):
        Index(IndexInfo("other", 8, "image", "test"), ids, vectors).check(encoder, place="here")
    with pytest.raises(ConfigError, match=r"retrieve\.index=here: has 4 dimensions, and the encoder has 8"):
        Index(IndexInfo("other", 4, "image", "test"), ids, vectors[:, :4]).check(encoder, place="here")
    with pytest.raises(ValueError, match=r"queries \[1, 4\]: this index has 8 dimensions"):
        Index(IndexInfo("other", 8, "image", "test"), ids, vectors).search(vectors[:, :4], top=1)
    with pytest.raises(ValueError, match=r"vectors \[1, 4\]: an index of 1 rows by this encoder has \[1, 8\]"):
        Index(IndexInfo("other", 8, "image", "test"), ids, vectors[:, :4])
    with pytest.raises(ConfigError, match="no index here; make one with"):
        Index.load(tmp_path)


# The warm-up.


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.AUDIO])
def test_masked_modelling_learns_and_nothing_of_what_is_hidden_reaches_the_tower(
    encoder: DualEncoder, modality: Modality
) -> None:
    torch.manual_seed(0)
    settings = WarmUp(kind=WarmUpKind.MASKED, num_spans=10)
    masked = MaskedModelling(encoder, modality, settings)
    rows = encoder.batch(SAMPLES, [modality])[modality.value]
    hidden = hidden_places(5, masked.num_places, 0.5, seed=0)
    assert hidden.sum(1).tolist() == [masked.num_places // 2] * 5
    seen = masked.without(rows, hidden)
    # Hidden places hold nothing, others what they held.
    assert not (masked.without(seen, ~hidden)).any()
    assert torch.equal(seen + masked.without(rows, ~hidden), rows)
    before = masked(rows, hidden).sum()
    optimizer = torch.optim.AdamW([each for each in masked.parameters() if each.requires_grad], lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        masked(rows, hidden).sum().backward()
        optimizer.step()
    assert masked(rows, hidden).sum() < 0.8 * before


def test_views_are_the_same_of_the_same_seed_and_keep_the_silence_at_the_end(encoder: DualEncoder) -> None:
    for modality in (Modality.IMAGE, Modality.AUDIO, Modality.VIDEO):
        rows = encoder.batch(SAMPLES, [modality])[modality.value]
        views = altered(modality, rows, [1, 2, 3, 4, 5])
        assert views.shape == rows.shape and not torch.allclose(views, rows, atol=1e-3)
        assert torch.equal(views[3:], altered(modality, rows[3:], [4, 5]))
        assert not torch.equal(views, altered(modality, rows, [6, 7, 8, 9, 10]))
    sounds = encoder.batch(SAMPLES, [Modality.AUDIO])["audio"]
    quiet = torch.nonzero(altered(Modality.AUDIO, sounds, [1] * 5)[0]).max()
    assert quiet < sounds.shape[1] - 1
    texts = encoder.batch(SAMPLES, [Modality.TEXT])["text"]
    assert altered(Modality.TEXT, texts, [1] * 5) is texts
