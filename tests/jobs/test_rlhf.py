"""The loop itself: real actors, real DeepSpeed worlds, the tiny omni model, all modalities in every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from jobs import rlhf
from pipeline.config import Recipe
from tests.jobs.conftest import MakeRecipe, curve

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path) -> Recipe:
    """A finished run with one worker a role."""
    make = make_recipe.__wrapped__(tmp_path_factory.mktemp("one"), tiny_checkpoint, demo_data)
    recipe = make()
    rlhf.run(recipe)
    return recipe


def test_a_run_learns_from_every_modality_and_leaves_a_checkpoint_that_loads(one_worker: Recipe) -> None:
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    rows = curve(one_worker)
    assert [row["step"] for row in rows] == [0, 1, 2]
    # Before the first update policy, reference and rollout hold the same weights.
    assert abs(rows[0]["kl/reference"]) < 1e-5
    assert abs(rows[0]["policy/ratio"] - 1) < 0.1
    assert rows[-1]["policy/grad_norm"] > 0 and rows[-1]["critic/grad_norm"] > 0
    target = one_worker.checkpoint("rlhf")
    AutoModelForMultimodalLM.from_pretrained(target)
    AutoProcessor.from_pretrained(target)
