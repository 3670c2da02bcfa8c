"""Features of frozen encoders: the same as without a cache, read again, and refused where they are of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ConfigError
from pipeline.config.fusion import EncoderSettings, FusionSettings, Modality
from pipeline.decisions.features import cached_features, pooled
from pipeline.decisions.table import Decision, DecisionTable, table_of
from pipeline.models.fusion.model import FusionModel, to_inputs
from pipeline.models.fusion.samples import Preprocessor, Sample

SETTINGS = FusionSettings(
    modalities=(Modality.TEXT, Modality.NUMBERS),
    hidden_size=8,
    num_heads=2,
    encoders={each: EncoderSettings(width=8, num_heads=2, num_layers=1) for each in (Modality.TEXT, Modality.NUMBERS)},
)


def _model(seed: int = 0) -> FusionModel:
    torch.manual_seed(seed)
    return FusionModel(SETTINGS, 3).eval()


def _table() -> DecisionTable:
    samples = [Sample("a", text="a red ring"), Sample("b", numbers=(1.0,)), Sample("c", text="blue", numbers=(2.0,))]
    decisions = [Decision(each, np.zeros(3, np.float32)) for each in samples]
    return table_of(decisions, Preprocessor(SETTINGS), SETTINGS.modalities)


def test_a_model_says_the_same_of_cached_features(tmp_path: Path) -> None:
    model, table = _model(), _table()
    cached = cached_features(table, model, tmp_path / "features.safetensors")
    with torch.no_grad():
        raw, again = model(to_inputs(table.inputs)).logits, model(to_inputs(cached.inputs)).logits
    assert torch.allclose(raw, again, atol=1e-6)


def test_pooled_features_are_means_over_true_tokens() -> None:
    features = {
        "text_features": torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [5.0], [5.0]]]),
        "text_mask": torch.tensor([[True, True, False], [False, False, False]]),
        "present": torch.tensor([[True], [False]]),
    }
    found = pooled(features)
    assert found["text_features"].tolist() == [[[2.0]], [[0.0]]]
    assert found["text_mask"].tolist() == [[True], [False]]


def test_a_cache_is_read_again_and_one_of_other_encoders_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    first = cached_features(_table(), _model(), path)
    written = path.stat().st_mtime_ns
    again = cached_features(_table(), _model(), path)
    assert path.stat().st_mtime_ns == written
    assert all(np.array_equal(first.inputs[name], again.inputs[name]) for name in first.inputs)
    with pytest.raises(ConfigError, match=r"encoder_key=.*of other encoders; delete the file"):
        cached_features(_table(), _model(seed=1), path)
    with pytest.raises(ConfigError, match="of other encoders"):
        cached_features(_table(), _model(), path, pools=True)


def test_a_cache_of_other_rows_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    cached_features(_table(), _model(), path)
    assert cached_features(_table().rows([2, 0]), _model(), path).ids == ("c", "a")


@pytest.mark.usefixtures("local_ray")
def test_workers_of_ray_data_compute_the_same_in_the_same_order(tmp_path: Path) -> None:
    here = cached_features(_table(), _model(), tmp_path / "here.safetensors")
    there = cached_features(_table(), _model(), tmp_path / "there.safetensors", workers=1)
    for name in here.inputs:
        assert np.allclose(here.inputs[name], there.inputs[name], atol=1e-6), name
