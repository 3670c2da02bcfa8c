"""Both tiny checkpoints, and a prompt of each of their modalities."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Dtype, MediaLimits
from pipeline.data.table import PromptTable
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor
from pipeline.records import MediaKind, Prompt


@pytest.fixture(params=["tiny_checkpoint", "tiny_vl_checkpoint"], ids=["omni", "vl"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def batch(checkpoint: Path, demo_data: Path) -> tuple[PromptBatch, CompletionBatch]:
    """A prompt of each modality of the checkpoint, with two completions each."""
    model, architecture = load_model(checkpoint, dtype=Dtype.FLOAT32, trust_remote_code=False)
    processor = PromptProcessor(
        path=checkpoint, model=model, limits=MediaLimits(), max_prompt_tokens=512, trust_remote_code=False
    )
    table = PromptTable(demo_data / "train.parquet")
    found: dict[MediaKind, Prompt] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        assert isinstance(prompt, Prompt)
        if len(prompt.media) == 1 and prompt.media[0].kind in architecture.modalities:
            found.setdefault(prompt.media[0].kind, prompt)
    prompts = [processor(prompt) for prompt in found.values()]
    completions = [[np.array([40, 50, 60]), np.array([70])] for _ in prompts]
    return collate_prompts(prompts, pad_id=0), collate_completions(completions, pad_id=0)
