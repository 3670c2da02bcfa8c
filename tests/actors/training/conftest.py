"""What the trainings' tests learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Dtype, MediaLimits
from pipeline.data.table import PromptTable
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor
from pipeline.records import EncodedPrompt, Prompt


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path, demo_data: Path) -> list[EncodedPrompt]:
    """A prompt of each task of the demo: text, image, audio, video; with the features of frozen towers."""
    model, architecture = load_model(tiny_checkpoint, dtype=Dtype.FLOAT32, trust_remote_code=False)
    process = PromptProcessor(
        path=tiny_checkpoint, model=model, limits=MediaLimits(), max_prompt_tokens=512, trust_remote_code=False
    )
    table = PromptTable(demo_data / "train.parquet")
    found: dict[tuple[Any, ...], Prompt] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        assert isinstance(prompt, Prompt)
        found.setdefault(tuple(medium.kind for medium in prompt.media), prompt)
    encoded: list[EncodedPrompt] = []
    with torch.no_grad():
        for prompt in map(process, found.values()):
            media = tuple(
                architecture.encode(model, medium.kind, [medium.tensors])[0].float().numpy() for medium in prompt.media
            )
            encoded.append(EncodedPrompt(prompt.id, prompt.input_ids, prompt.position_ids, media))
    assert len(encoded) >= 4
    return encoded
