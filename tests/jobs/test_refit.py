"""People's judgements reach the reward model, and with it the loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import save_file
from sqlalchemy import select
from transformers import AutoConfig

from actors.feedback import refit
from actors.feedback.refit import Refitter, is_as_good
from benchmarks.feedback_load import processes
from jobs import rlhf
from pipeline.config import ConfigError, Recipe
from pipeline.data.datasets import Datasets
from pipeline.data.table import PreferenceTable
from pipeline.feedback.database import Database
from pipeline.feedback.records import Candidate, Item, Judged, Judgement, JudgementKind, Task
from pipeline.feedback.store import FeedbackStore, item_of
from pipeline.feedback.tables import Items
from pipeline.feedback.versions import RewardVersions, Trigger
from pipeline.models.checkpoint import HEAD_FILE
from pipeline.tracking import read_metrics
from tests.jobs.ready import ReadyWorkers
from tests.jobs.small import MakeRecipe

pytestmark = pytest.mark.usefixtures("local_ray")

REFIT = "feedback.refit={after_judgements: 12, num_steps: 8, batch_size: 8, held_out_fraction: 0.3, poll_s: 0.2}"
FEEDBACK = ("feedback.enabled=true", "feedback.offered_share=1", "rlhf.rewards={learned: 1.0}", REFIT)
GOOD, BAD = Candidate("good", (11, 12), 0), Candidate("bad", (13, 14), 0)


@pytest.fixture
def judging(make_recipe: MakeRecipe) -> MakeRecipe:
    """Makes small recipes whose reward model has a head: one of chance."""

    def make(*overrides: str) -> Recipe:
        recipe = make_recipe(*FEEDBACK, *overrides)
        path = recipe.checkpoint("reward_model")
        width = int(AutoConfig.from_pretrained(path).get_text_config().hidden_size)
        weight = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * width**-0.5
        head = {"head.linear.weight": weight, "head.linear.bias": torch.zeros(1)}
        save_file({**head, "mean": torch.zeros(()), "scale": torch.ones(())}, path / HEAD_FILE)
        return recipe

    return make


def judged_by_people(recipe: Recipe, *, run: str = "demo") -> int:
    """Has somebody say of two completions of every training prompt that the second is the better one."""
    store = FeedbackStore(Database(recipe.feedback_url), recipe.feedback_media)
    store.database.migrate()
    found: list[Judged] = []
    for info in Datasets(recipe.datasets, "train").infos():
        item = Item(Task.PAIR, info.id, info.task, (), (), (BAD, GOOD), run=run, step=0)
        said = Judgement(f"{run}-{info.id}", item.id, "ada", JudgementKind.PAIR, {"chosen": 1}, time.time())
        found.append(Judged(item, (said,)))
    num = store.bring(found)
    store.database.close()
    return num


def logged(recipe: Recipe, name: str) -> Sequence[Any]:
    return [row.get(name) for row in read_metrics(recipe.run.directory / "metrics")["rlhf"]]


def test_what_people_say_reaches_the_loops_reward_and_can_be_taken_back(
    judging: MakeRecipe, workers: ReadyWorkers
) -> None:
    recipe = judging("feedback.refit.enabled=false", "rlhf.num_steps=2")
    refitter, versions = Refitter(recipe), RewardVersions(recipe)
    try:
        assert refitter.look() is None
        with pytest.raises(ConfigError, match="0 judgements by people are too few"):
            refitter.look(is_asked=True)
        num = judged_by_people(recipe)
        version = refitter.look()
        assert version is not None and version == versions.all()[0]
        assert (version.number, version.source, version.trigger) == (1, 0, Trigger.COUNT)
        assert version.num_judgements == num and version.is_accepted and versions.current == 1
        assert version.held_out["accuracy"] == 1.0 >= version.held_out_before["accuracy"]
        assert version.held_out["brier"] < version.held_out_before["brier"]
        learned = PreferenceTable(versions.directory / "v0001.parquet")
        assert len(learned) == num and learned.raters() == ["ada"]
        assert refitter.look() is None
        # From the version that judges, and on all that was said, from then on.
        judged_by_people(recipe, run="other")
        again = refitter.look()
        assert again is not None and (again.number, again.source) == (2, 1)
        assert again.held_out_before["brier"] == pytest.approx(version.held_out["brier"], abs=1e-4)
    finally:
        refitter.close()

    versions.roll_back(1)
    rlhf.run(recipe, crew=workers.crew(recipe))
    assert logged(recipe, "reward/version") == [1, 1]
    versions.roll_back(0)
    longer = judging("feedback.refit.enabled=false", "rlhf.num_steps=4")
    rlhf.run(longer, resume=True, crew=workers.crew(longer))
    assert logged(recipe, "reward/version") == [1, 1, 0, 0]
    database = Database(recipe.feedback_url)
    with database.read() as connection:
        offered = [item_of(row) for row in connection.execute(select(Items).where(Items.run == recipe.run.name))]
    database.close()
    scored = [(item.step, each) for item in offered for each in item.candidates if each.score is not None]
    versions_of = {(step, each.reward_version) for step, each in scored}
    assert versions_of == {(0, 1), (1, 1), (2, 0), (3, 0)}


def test_a_refit_whose_processes_are_killed_is_made_all_the_same(judging: MakeRecipe) -> None:
    recipe = judging()
    num = judged_by_people(recipe)
    versions = RewardVersions(recipe)
    actor = refit.started(recipe)
    try:
        killed: set[int] = set()
        until = time.monotonic() + 240
        while not versions.all():
            assert time.monotonic() < until
            # As soon as it trains: the process that refits, and the workers that it had.
            if not killed and (learning := processes("RayTrainWorker")):
                killed = {*learning, *processes("_Looking")}
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        assert killed and versions.all()[0].num_judgements == num and versions.current == 1
    finally:
        ray.kill(actor)
    store = FeedbackStore(Database(recipe.feedback_url), recipe.feedback_media)
    assert sum(len(each.judgements) for each in store.judged()) == num
    store.database.close()


def test_a_refit_judges_where_it_is_right_as_often_and_otherwise_by_its_brier_score() -> None:
    def measured(accuracy: float | None, brier: float = 0.2) -> dict[str, Any]:
        return {"accuracy": accuracy, "brier": brier}

    assert is_as_good(measured(0.8), measured(0.7)) and is_as_good(measured(0.7, 0.3), measured(0.7, 0.1))
    assert not is_as_good(measured(0.6, 0.1), measured(0.7, 0.3))
    assert is_as_good(measured(None, 0.1), measured(None, 0.2))
    assert not is_as_good(measured(None, 0.3), measured(None, 0.2))
