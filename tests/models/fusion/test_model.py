"""The fusion model: what it refuses, how it is kept, and features of its encoders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertModel

from pipeline.config import ConfigError
from pipeline.config.fusion import EncoderKind, EncoderSettings, FusionKind, FusionSettings, InputSizes, Modality
from pipeline.models.fusion import PRESENT, FusionModel, Inputs
from pipeline.models.fusion.cache import FeatureCache, WrongEncoder
from pipeline.models.fusion.encoders import NumbersEncoder
from pipeline.models.fusion.model import check_labels

SIZES = InputSizes(image_side=8, num_numbers=2)


def settings_of(*, freeze: bool = False, kind: FusionKind = FusionKind.GATED) -> FusionSettings:
    return FusionSettings(
        kind=kind,
        modalities=(Modality.IMAGE, Modality.NUMBERS),
        hidden_size=8,
        sizes=SIZES,
        encoders={
            Modality.IMAGE: EncoderSettings(kind=EncoderKind.RESNET, width=8, freeze=freeze),
            Modality.NUMBERS: EncoderSettings(width=8, freeze=freeze),
        },
    )


def batch() -> Inputs:
    torch.manual_seed(1)
    present = torch.tensor([[True, True], [False, True], [True, False]])
    return {"image": torch.rand(3, 3, 8, 8), "numbers": torch.randn(3, 2), PRESENT: present}


def test_a_row_without_any_modality_is_named() -> None:
    inputs = batch()
    inputs[PRESENT][1] = False

    with pytest.raises(ValueError, match=r"row 1 of 3 has no modality.*image, numbers; give it at least one"):
        FusionModel(settings_of(), 3)(inputs)


def test_a_modality_that_is_said_to_be_there_needs_a_tensor() -> None:
    inputs = batch()
    del inputs["numbers"]

    with pytest.raises(ValueError, match="row 0 has numbers, but there is no tensor"):
        FusionModel(settings_of(), 3)(inputs)


def test_presence_of_another_number_of_modalities_is_refused() -> None:
    with pytest.raises(ValueError, match=r"present is \[3, 3\].*give \[rows, 2\]"):
        FusionModel(settings_of(), 3)({**batch(), PRESENT: torch.ones(3, 3, dtype=torch.bool)})


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_of_the_classes_are_named(label: int) -> None:
    with pytest.raises(ValueError, match=f"row 2 has label {label}, and the model has 3 classes, 0 to 2"):
        check_labels(torch.tensor([0, 2, label]), 3)


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FusionModel(settings_of(), 3)
    model.standardise(batch())
    model.eval().save(tmp_path)

    loaded = FusionModel.load(tmp_path, num_classes=3).eval()

    assert loaded.settings == model.settings
    assert loaded.encoder_key == model.encoder_key
    assert torch.equal(loaded(batch()).logits, model(batch()).logits)


def test_a_head_of_another_number_of_classes_is_refused_on_loading(tmp_path: Path) -> None:
    FusionModel(settings_of(), 3).save(tmp_path)

    with pytest.raises(ConfigError, match="chooses among 3 classes, and 5 are asked for"):
        FusionModel.load(tmp_path, num_classes=5)


def test_a_directory_without_a_model_and_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fusion model there"):
        FusionModel.load(tmp_path)
    FusionModel(settings_of(), 3).save(tmp_path)
    file = tmp_path / "fusion.json"
    described = json.loads(file.read_text())

    file.write_text(json.dumps({**described, "num_classes": 4}))
    with pytest.raises(ConfigError, match="does not fit"):
        FusionModel.load(tmp_path)
    file.write_text(json.dumps({**described, "encoder_key": "another"}))
    with pytest.raises(ConfigError, match="not those that were saved"):
        FusionModel.load(tmp_path)


def test_a_saved_model_needs_the_checkpoints_of_its_encoders_no_more(tmp_path: Path) -> None:
    source, target = tmp_path / "bert", tmp_path / "model"
    save_text_encoder(source)
    settings = FusionSettings(
        modalities=(Modality.TEXT,),
        hidden_size=8,
        sizes=InputSizes(text_length=8),
        encoders={Modality.TEXT: EncoderSettings(path=source)},
    )
    inputs = {"text": torch.tensor([[2, 3, 4, 0, 0, 0, 0, 0]]), PRESENT: torch.tensor([[True]])}
    model = FusionModel(settings, 2).eval()
    model.save(target)
    for file in source.iterdir():
        file.unlink()

    loaded = FusionModel.load(target).eval()
    loaded.save(target)  # over itself

    assert torch.equal(FusionModel.load(target).eval()(inputs).logits, model(inputs).logits)


def save_text_encoder(directory: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertModel(BertConfig(vocab_size=12, max_position_embeddings=16, **sizes)).save_pretrained(directory)


def test_frozen_encoders_learn_nothing_and_stay_in_evaluation() -> None:
    model = FusionModel(settings_of(freeze=True), 3).train()
    before = {name: each.clone() for name, each in model.encoders.state_dict().items()}

    model(batch()).logits.sum().backward()

    assert model.frozen
    assert all(each.grad is None for each in model.encoders.parameters())
    assert model.head.weight.grad is not None
    # Running statistics of a ResNet would move in training.
    assert all(torch.equal(each, before[name]) for name, each in model.encoders.state_dict().items())


def test_batch_statistics_do_not_know_of_rows_without_a_picture() -> None:
    torch.manual_seed(0)
    model, inputs = FusionModel(settings_of(), 3).train(), batch()
    changed = {**inputs, "image": inputs["image"].clone()}
    changed["image"][1] = 50.0

    assert torch.equal(model(inputs).logits, model(changed).logits)


def test_numbers_are_standardised_by_rows_that_have_some() -> None:
    model = FusionModel(settings_of(), 3)
    numbers = torch.tensor([[1.0, 5.0], [3.0, 5.0], [999.0, 999.0]])

    model.standardise({**batch(), "numbers": numbers})

    encoder = model.encoder(Modality.NUMBERS)
    assert isinstance(encoder, NumbersEncoder)
    assert encoder.mean.tolist() == [2.0, 5.0]
    assert encoder.std.tolist() == [1.0, 1.0]


def test_the_key_of_encoders_is_that_of_their_weights_and_not_of_the_fusion() -> None:
    torch.manual_seed(0)
    model = FusionModel(settings_of(), 3)
    torch.manual_seed(0)
    other = FusionModel(settings_of(kind=FusionKind.SHARED), 7)

    assert model.encoder_key == other.encoder_key
    with torch.no_grad():
        next(other.encoders.parameters()).add_(1e-3)
    assert model.encoder_key != other.encoder_key


def test_kept_features_serve_the_encoders_that_made_them_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FusionModel(settings_of(freeze=True), 3).eval()
    FeatureCache(model.encoder_key, ("a", "b", "c"), model.features(batch())).save(tmp_path / "features.safetensors")
    cache = FeatureCache.load(tmp_path / "features.safetensors")

    found = model(cache.of(["c", "a"], encoder_key=model.encoder_key))

    torch.testing.assert_close(found.logits, model(batch()).logits[[2, 0]])
    with pytest.raises(WrongEncoder, match="made by encoders of key"):
        cache.of(["a"], encoder_key=FusionModel(settings_of(freeze=True), 3).encoder_key)
    with pytest.raises(KeyError, match="1 of 2 rows have no features here, first 'x'"):
        cache.of(["a", "x"], encoder_key=model.encoder_key)
    with pytest.raises(ValueError, match="2 ids and 3 rows"):
        FeatureCache("key", ("a", "b"), model.features(batch()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": ["image", "image"]}, "name each once"),
        ({"hidden_size": 30, "num_heads": 4}, "num_heads=4 does not divide hidden_size=30"),
        ({"encoders": {"text": {"kind": "vit"}}}, "encoders.text.kind=vit: text is encoded by bert"),
        ({"encoders": {"image": {"kind": "vit", "patch_side": 5}}}, "does not divide sizes.image_side=24"),
        ({"encoders": {"audio": {"kind": "mel_cnn", "path": "/x"}}}, "mel_cnn has no checkpoints"),
        ({"encoders": {"audio": {"width": 10}}}, "num_heads=4 does not divide width=10"),
        ({"encoders": {"smell": {}}}, "smell"),
    ],
)
def test_settings_that_cannot_be_say_why(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        FusionSettings.model_validate(values)
