"""Parity with real actors: equal copies pass on every mix of modalities, a spoiled one is found and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from actors.engine.weights import Weights
from actors.loop import parity
from actors.loop.crew import Roles, loop_needs, loop_paths
from actors.loop.door import Door
from actors.loop.step import sync_weights
from actors.roles.policy import PolicyWorker
from actors.roles.rollout import RolloutWorker
from pipeline.config import Recipe
from pipeline.models.processing import load_processor
from pipeline.parity import ParityError
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import small_recipe

pytestmark = pytest.mark.usefixtures("local_ray")

EMBEDDING = "decoder.model.model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Loop:
    """The roles of a loop before its first step."""

    recipe: Recipe
    roles: Roles
    door: Door

    def check(self, *, stock: bool) -> parity.ParityReport:
        return parity.check(self.roles, self.recipe, self.door, stage="in a test", stock=stock)


@pytest.fixture(scope="module")
def loop(
    workers: ReadyWorkers, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, demo_data: Path
) -> Loop:
    recipe = small_recipe(
        tmp_path_factory.mktemp("parity"),
        tiny_checkpoint,
        demo_data,
        "rlhf.algorithm={advantage: rloo, kl: {weight: 0}}",
        "rlhf.rewards={exact_match: 1.0}",
        "rlhf.parity.num_rows=10",
    )
    roles = workers.roles(recipe, loop_paths(recipe))
    return Loop(recipe, roles, Door(roles, recipe, "train", stage="test", needs=loop_needs(recipe)))


def test_rollout_trainer_and_the_checkpoints_own_forward_agree_on_every_mix(
    loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = loop.check(stock=True)
    told = capsys.readouterr().out
    assert told.startswith("parity of rollout, trainer, stock on 10 rows, in a test:\nmodality ")
    assert loaded.by_modality.keys() == {"text", "image", "audio", "video", "image+audio"}
    assert max(largest for _, largest in loaded.by_modality.values()) < 1e-4
    sync_weights(loop.roles, 0)
    assert loop.check(stock=True) == loaded


def test_spoiled_rollout_weights_are_found_and_the_rows_named_that_they_touch(loop: Loop) -> None:
    """The rollout copy gets another embedding of the token that opens a picture or a video."""
    good = loop.roles.policy.on_all(PolicyWorker.weights, 0).result()[0]
    tokenizer = load_processor(loop.recipe.checkpoint("sft")).tokenizer
    embedding = np.array(good.parameters[EMBEDDING])
    embedding[tokenizer.convert_tokens_to_ids("<|vision_bos|>")] += 1.0
    spoiled = Weights(good.version, {EMBEDDING: embedding})
    loop.roles.rollout.publish(RolloutWorker.update_weights, spoiled)
    try:
        with pytest.raises(ParityError) as caught:
            loop.check(stock=False)
    finally:
        loop.roles.rollout.publish(RolloutWorker.update_weights, good)
    message, *table = str(caught.value).splitlines()
    assert message == "in a test: copies of the model disagree"
    rows = [line.split() for line in table[table.index("") + 2 :]]
    sampled = parity.mixed_sample(loop.door.datasets.infos(), 10)
    seen = {info.id: "+".join(info.modalities) for info in sampled if {"image", "video"} & set(info.modalities)}
    assert {row[0]: row[1] for row in rows} == seen
    assert {(row[2], " ".join(row[3:6])) for row in rows} == {("logprobs", "rollout and trainer:")}
    assert loop.check(stock=False).differences == ()
