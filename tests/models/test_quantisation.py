"""A checkpoint in int8: smaller, near to what it was, and loaded like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import FROZEN, ConfigError, Dtype, Parts
from pipeline.models.checkpoint import HEAD_FILE, load_model, load_policy, tower_fingerprint
from pipeline.models.parts import set_parts
from pipeline.models.quantisation import is_quantised, quantise

OPTIONS: dict[str, Any] = {"dtype": Dtype.FLOAT32, "trust_remote_code": False}


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25)[None]).logits


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tiny_vl_checkpoint"])
def test_int8_weights_are_loaded_by_transformers_and_answer_nearly_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, checkpoint: str
) -> None:
    source, target = request.getfixturevalue(checkpoint), tmp_path / "there" / "int8"
    target.parent.mkdir()
    found = quantise(source, target, **OPTIONS)
    (before, architecture), (after, _) = (load_model(path, **OPTIONS) for path in (source, target))
    assert 0.3 < found.num_int8 / found.num_weights < 1
    # Three bytes less each, but for a scale a row.
    saved = found.source_bytes - found.target_bytes
    assert 2.7 * found.num_int8 < saved < 3 * found.num_int8
    assert tower_fingerprint(before, architecture) == tower_fingerprint(after, architecture)
    exact, rounded = _logits(before), _logits(after)
    error = (exact - rounded).abs().max()
    assert 0 < error < 0.15 * exact.std()
    kinds = {name: type(module).__name__ for name, module in after.named_modules() if isinstance(module, nn.Linear)}
    assert {"Linear8bitLt"} == {kind for name, kind in kinds.items() if "language_model" in name}
    assert kinds["lm_head"] == "Linear"
    assert is_quantised(after) and not is_quantised(before)
    policy = load_policy(target, **OPTIONS)
    set_parts(policy, FROZEN, field="rlhf.policy.parts")
    with pytest.raises(ConfigError, match=r"rlhf\.policy\.parts\.language_model\.mode=train: .* int8 weights"):
        set_parts(policy, Parts(), field="rlhf.policy.parts")


def test_what_has_no_vocabulary_head_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = tmp_path / "reward_model"
    shutil.copytree(tiny_checkpoint, source)
    (source / HEAD_FILE).touch()
    with pytest.raises(ConfigError, match=r"export\.checkpoint is a policy's"):
        quantise(source, tmp_path / "int8", **OPTIONS)
