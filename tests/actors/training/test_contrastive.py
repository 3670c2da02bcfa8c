"""Contrastive learning over several ranks is that of one rank on the same batch, in real gloo worlds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config.fusion import Modality
from pipeline.config.pretrain import Pretrain
from tests import worlds
from tests.worlds import contrasting

TINY = {"width": 16, "num_layers": 1, "num_heads": 2}
SETTINGS: dict[str, Any] = {
    "pairs": [["text", "image"], ["audio", "image"]],
    "learning_rate": 3e-3,
    "max_grad_norm": 0.5,
    "batch_size": 8,
    "embedding": {
        "size": 8,
        "head_width": 16,
        "num_heads": 2,
        "encoders": {"text": TINY, "image": {**TINY, "kind": "vit"}, "audio": {"width": 16}},
        "sizes": {"text_length": 10, "image_side": 16, "sampling_rate": 8000, "audio_s": 0.3},
    },
}


def test_gradients_of_gathered_rows_come_back_from_all_ranks() -> None:
    # Row r has weight r + 1 in losses of the factors 1 and 2: its gradient is 3 (r + 1).
    assert worlds.run(contrasting.gradient_of_gathered, 2) == [[0.0, 1.0, 3.0], [0.0, 1.0, 6.0]]


@pytest.mark.parametrize(("loss", "zero_stage"), [("info_nce", 0), ("sigmoid", 0), ("info_nce", 3)])
def test_two_workers_learn_what_one_learns_of_the_same_batch(loss: str, zero_stage: int) -> None:
    settings = Pretrain.model_validate({**SETTINGS, "loss": loss, "zero_stage": zero_stage})
    ((alone, shown),) = worlds.run(contrasting.learned, 1, settings, 3)
    for found, also in worlds.run(contrasting.learned, 2, settings, 3):
        for name, expected in alone.items():
            assert found[name] == pytest.approx(expected, abs=1e-3), name
        for one, two in zip(shown, also, strict=True):
            assert two == pytest.approx(one, rel=2e-3, abs=1e-3)
    assert shown[-1]["loss"] != shown[0]["loss"]
    ((untrained, _),) = worlds.run(contrasting.learned, 1, settings, 0)
    assert max(float(np.abs(alone[name] - each).max()) for name, each in untrained.items()) > 3e-3


@pytest.mark.parametrize("kind", ["masked", "views"])
def test_two_workers_warm_up_as_one_does_and_leave_other_towers_alone(kind: str) -> None:
    settings = Pretrain.model_validate({**SETTINGS, "warm_up": {"kind": kind, "num_spans": 5}})
    ((alone, shown),) = worlds.run(contrasting.warmed, 1, settings, 3)
    for found, also in worlds.run(contrasting.warmed, 2, settings, 3):
        for name, expected in alone.items():
            assert found[name] == pytest.approx(expected, abs=1e-3), name
        for one, two in zip(shown, also, strict=True):
            assert two == pytest.approx(one, rel=2e-3, abs=1e-3)
    ((untrained, _),) = worlds.run(contrasting.warmed, 1, settings, 0)
    moved = {name for name, each in untrained.items() if np.abs(alone[name] - each).max() > 3e-3}
    assert moved == {Modality.IMAGE.value, Modality.AUDIO.value}
