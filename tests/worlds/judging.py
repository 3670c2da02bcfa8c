"""Reward models under a real `Engine`: what they learn of mixed opinions on prompts of mixed modalities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from actors.engine.engine import Engine
from actors.roles.encoder import PromptRef
from actors.training import reward_model
from actors.training.opinions import Example, OpinionLosses, Totals
from actors.training.reward_model import example_size, raw_scores
from actors.training.supervised import take_step
from pipeline.config import Dtype, Trained
from pipeline.data.datasets import RowKey
from pipeline.models.checkpoint import load_reward_model
from pipeline.records import EncodedPrompt, Opinion, PromptInfo
from tests import worlds

CRITERIA = ("helpful", "grounded")


def trained(
    checkpoint: str, opinions: Sequence[Opinion], prompts: Sequence[EncodedPrompt], stage: int, num_steps: int
) -> tuple[list[dict[str, float]], dict[str, NDArray[Any]]]:
    """Steps on the same batch: what each gave of the whole of it, and how far that moved the weights, on rank 0."""
    by_id = {prompt.id: prompt for prompt in prompts}
    fetch: Any = lambda refs, live: [by_id[ref.id] for ref in refs]  # noqa: E731
    reward_model.fetch_encoded = fetch
    world = worlds.here()
    torch.manual_seed(0)
    module = load_reward_model(
        Path(checkpoint), dtype=Dtype.FLOAT32, trust_remote_code=False, criteria=CRITERIA, num_members=2
    )
    # Towers stay as they are: the prompts hold features.
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not module.decoder.architecture.is_tower(name.removeprefix("decoder.model.")))
    settings = Trained(zero_stage=stage, learning_rate=1e-3, micro_batch_tokens=120)
    engine = Engine(module, world=world, settings=settings, dtype=Dtype.FLOAT32)
    scores = partial(raw_scores, engine, 0, frozenset())
    losses = OpinionLosses(scores, CRITERIA, module.weights, margin_weight=1.0, seed=3)
    batch = [Example(_ref(by_id[each.prompt_id]), each) for each in opinions]
    begun = engine.gather()
    steps = [take_step(engine, batch, losses, size=example_size, total_of=Totals.of) for _ in range(num_steps)]
    end = engine.gather()
    return steps, {name: end[name] - array for name, array in begun.items()}


def _ref(prompt: EncodedPrompt) -> PromptRef:
    info = PromptInfo(prompt.id, task="task", answer=None, demonstration=None, modalities=())
    return PromptRef(info, RowKey(0, 0), len(prompt.input_ids), stored=cast(Any, None))


def difference(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """How far two moves of weights differ, as a share of the first."""
    assert one.keys() == other.keys()
    apart, moved = (
        sum(float(np.square(each).sum()) for each in part)
        for part in (
            [one[name] - other[name] for name in one],
            one.values(),
        )
    )
    return (apart / moved) ** 0.5
