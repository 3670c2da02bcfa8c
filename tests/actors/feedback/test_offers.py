"""Completions on their way from the loop to people, while the store is there and while it is not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from actors.feedback.offers import Offers, uncertainty
from actors.loop.judge import Judged
from actors.roles.encoder import PromptRef
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.data.datasets import Datasets
from pipeline.feedback.database import Database
from pipeline.feedback.records import Candidate, Item
from pipeline.feedback.store import FeedbackStore, item_of
from pipeline.feedback.tables import Items
from pipeline.records import Completion, FinishReason, MediaKind, Rollout


def completion(text: str) -> Completion:
    ids = np.array([len(text), 7], np.int64)
    return Completion(ids, np.zeros(2, np.float32), FinishReason.STOP, 3, text)


def groups(recipe: Recipe, *, num: int = 8) -> Judged:
    """Groups of two completions of the first rows, the last of which says the same twice."""
    datasets = Datasets(recipe.datasets, "train")
    infos = datasets.infos()
    infos = infos[:: len(infos) // num][:num]  # Of all tasks.
    keys = datasets.keys([info.id for info in infos])
    prompts = [PromptRef(info, key, 5, cast(Any, None)) for info, key in zip(infos, keys, strict=True)]
    texts = [("yes", "no")] * (num - 1) + [("yes", "yes")]
    rollouts = [
        Rollout(info.id, tuple(completion(text) for text in pair)) for info, pair in zip(infos, texts, strict=True)
    ]
    rewards = torch.arange(2.0 * num)
    return Judged(prompts, rollouts, {"learned": rewards}, rewards, None, Counter(), {})


@pytest.fixture
def recipe(tmp_path: Path, demo_data: Path) -> Recipe:
    return load_recipe(
        None,
        [
            f"run.directory={tmp_path}/run",
            f"data.path={demo_data}",
            "feedback.enabled=true",
            "feedback.offered_share=1",
            "feedback.second_rater_share=0.5",
        ],
    )


def items(recipe: Recipe) -> list[Item]:
    from sqlalchemy import select

    database = Database(recipe.feedback_url)
    with database.read() as connection:
        found = [item_of(row) for row in connection.execute(select(Items))]
    database.close()
    return found


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_pairs_that_differ_reach_the_store_with_their_media_once_however_often_a_step_is_repeated(
    recipe: Recipe,
) -> None:
    batch = groups(recipe)
    for _ in range(2):
        with Offers(recipe, "train") as offers:
            offers.take(4, batch)
            offers.take(4, batch)
        assert offers.num_waiting() == 0
    found = {item.prompt_id: item for item in items(recipe)}
    assert set(found) == {prompt.id for prompt in batch.prompts[:-1]}
    assert {item.num_raters for item in found.values()} == {1, 2}
    store = FeedbackStore(Database(recipe.feedback_url), recipe.feedback_media)
    kinds: set[MediaKind] = set()
    for prompt in batch.prompts[:-1]:
        item = found[prompt.id]
        assert {(each.text, each.token_ids, each.weights_version) for each in item.candidates} == {
            ("yes", (3, 7), 3),
            ("no", (2, 7), 3),
        }
        assert {medium.kind for medium in item.media} == set(prompt.info.modalities)
        assert (item.run, item.step) == (recipe.run.name, 4)
        # Each scored one apart: the better one is chosen with sigmoid(1) = .7311.
        assert item.uncertainty == pytest.approx(4 * 0.7311 * 0.2689, abs=1e-3)
        for medium in item.media:
            path, _ = store.medium(medium.key)
            assert path.stat().st_size > 0
            kinds.add(medium.kind)
    assert kinds == set(MediaKind)


def test_a_share_is_offered_and_which_groups_does_not_depend_on_the_attempt(recipe: Recipe, tmp_path: Path) -> None:
    few = recipe.model_copy(update={"feedback": recipe.feedback.model_copy(update={"offered_share": 0.5})})
    batch = groups(few, num=12)
    offered: list[set[str]] = []
    for name in ("one", "two"):
        own = few.model_copy(update={"run": few.run.model_copy(update={"directory": tmp_path / name})})
        with Offers(own, "train") as offers:
            offers.take(1, batch)
        offered.append({item.id for item in items(own)})
    assert offered[0] == offered[1] and 2 <= len(offered[0]) <= 9


def test_while_the_store_is_down_steps_wait_on_disk_and_are_delivered_when_it_comes_back(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.feedback.offers.AGAIN_S", 0.05)
    place = recipe.run.directory / "feedback"
    place.mkdir(parents=True)
    (place / "store.sqlite").mkdir()  # No database can be opened there.
    batch = groups(recipe)
    with Offers(recipe, "train") as offers:
        offers.take(0, batch)
        eventually(lambda: offers.metrics()["feedback/failed"] > 1)
        assert offers.metrics()["feedback/steps_waiting"] == 1
    # The next process of the run finds what waits.
    with Offers(recipe, "train") as offers:
        offers.take(1, batch)
        assert offers.num_waiting() == 2
        (place / "store.sqlite").rmdir()
        eventually(lambda: offers.num_waiting() == 0)
    assert Counter(item.step for item in items(recipe)) == {0: 7, 1: 7}


def test_a_medium_that_no_browser_shows_is_counted_and_keeps_nothing_else_back(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.feedback.media._STARTS", ())
    batch = groups(recipe)
    num_with_media = sum(bool(prompt.info.modalities) for prompt in batch.prompts[:-1])
    with Offers(recipe, "train") as offers:
        offers.take(0, batch)
    assert offers.metrics()["feedback/refused"] == num_with_media > 0
    assert len(items(recipe)) == 7 - num_with_media


def test_a_store_that_cannot_be_one_ends_the_run_at_its_start(recipe: Recipe) -> None:
    for url in ("mysql://host/name", "nonsense"):
        wrong = recipe.model_copy(update={"feedback": recipe.feedback.model_copy(update={"url": url})})
        with pytest.raises(ValueError, match=r"feedback\.url"):
            Offers(wrong, "train")
    with pytest.raises(ConfigError, match="absolute path"):
        load_recipe(None, ["feedback.url=sqlite:///store.sqlite"])


def test_a_spool_that_cannot_be_read_is_counted_and_keeps_the_run_going(recipe: Recipe) -> None:
    spool = recipe.run.directory / "feedback" / "spool"
    spool.mkdir(parents=True)
    (spool / "00000000.jsonl").write_text("no JSON")
    with Offers(recipe, "train") as offers:
        eventually(lambda: offers.metrics()["feedback/failed"] > 0)
    assert offers.num_waiting() == 1


def test_a_pair_is_uncertain_where_its_scores_are_close() -> None:
    def of(first: float | None, second: float | None) -> float:
        return uncertainty([Candidate("a", score=first), Candidate("b", score=second)])

    assert of(1.0, 1.0) == 1.0
    assert of(0.0, 1.0) == of(1.0, 0.0) == pytest.approx(0.7864, abs=1e-4)
    assert of(0.0, 1e6) == pytest.approx(0.0)
    assert of(None, 1.0) == 0.0


def test_a_pair_is_more_uncertain_where_an_ensemble_is_not_of_one_mind() -> None:
    # Variances 4 and 1: sigmoid(2 / sqrt(1 + 5 pi / 8)) = .7617.
    pair = [Candidate("a", score=0.0, score_std=2.0), Candidate("b", score=2.0, score_std=1.0)]
    assert uncertainty(pair) == pytest.approx(4 * 0.7617 * 0.2383, abs=1e-3)
    assert uncertainty(pair) > uncertainty([Candidate("a", score=0.0), Candidate("b", score=2.0)])
