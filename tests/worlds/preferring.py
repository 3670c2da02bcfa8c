"""Policies under a real `Engine` that learn from preferences: what the reference says of them, and what they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray

from actors.engine.engine import Engine
from actors.roles.encoder import PromptRef
from actors.training import preference
from actors.training.lessons import all_asked, lessons_of
from actors.training.opinions import Example
from actors.training.preference import Learner, lesson_size
from actors.training.references import reference_key
from actors.training.supervised import take_step
from pipeline.config import Dtype, load_recipe
from pipeline.data.datasets import RowKey
from pipeline.models.checkpoint import load_policy
from pipeline.models.parts import parameter_groups, set_parts
from pipeline.records import EncodedPrompt, Opinion, PromptInfo
from tests import worlds

Learned = tuple[list[dict[str, float]], dict[str, float], dict[str, float], dict[str, NDArray[Any]]]


def trained(
    checkpoint: str,
    opinions: Sequence[Opinion],
    prompts: Sequence[EncodedPrompt],
    overrides: Sequence[str],
    num_steps: int,
    late_reference: bool = False,
) -> Learned:
    """Steps on the same batch.

    What each gave of the whole of it; what the reference says, by key; what is measured in the end; and how far the
    weights moved, on rank 0.

    late_reference: asks the reference once more after the steps, and returns that.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    fetch: Any = lambda refs, live: [by_id[ref.id] for ref in refs]  # noqa: E731
    preference.fetch_encoded = fetch
    settings = load_recipe(None, [f"preference.{override}" for override in overrides]).preference
    world = worlds.here()
    torch.manual_seed(0)
    module = load_policy(Path(checkpoint), dtype=Dtype.FLOAT32, trust_remote_code=False)
    set_parts(module, settings.parts, field="preference.parts")
    groups = parameter_groups(module, settings.parts, learning_rate=settings.learning_rate)
    engine = Engine(module, world=world, settings=settings, dtype=Dtype.FLOAT32, groups=groups)
    learner = Learner(engine, 0, frozenset(), settings)
    batch = lessons_of([Example(_ref(by_id[each.prompt_id]), each) for each in opinions], settings.loss)
    begun = engine.gather()
    asked = list({reference_key(each): each for each in all_asked(batch)}.values())
    if settings.loss.needs_reference:
        learner.refer(asked)
    losses = learner.losses
    steps = [take_step(engine, batch, losses, size=lesson_size, total_of=learner.totals) for _ in range(num_steps)]
    measured = learner.measured(batch)
    if late_reference:
        learner.refer(asked)
    end = engine.gather()
    references = {key.hex(): value for key, value in learner.references.items()}
    return steps, references, measured, {name: end[name] - array for name, array in begun.items()}


def _ref(prompt: EncodedPrompt) -> PromptRef:
    info = PromptInfo(prompt.id, task="task", answer=None, demonstration=None, modalities=())
    ref = PromptRef(info, RowKey(0, 0), len(prompt.input_ids), stored=cast(Any, None))
    return replace(ref, content=prompt.id)
