"""Completions of the loop, on their way to people.

    a step's groups -> pairs that differ -> spool (a file a step, on disk) -> store, with their media
                                              ^------ again, while the store cannot be reached
    the rewards of later steps <- what people said of single completions <- store, where `rlhf.rewards` has `human`

The loop waits for the spool's disk alone. An item has the same id however often it is delivered, and lies in the store
once.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from actors.loop.judge import NOTHING_SAID, Judged, Said
from actors.roles.encoder import PromptRef
from pipeline.config import Recipe, RewardName
from pipeline.data.datasets import Datasets, RowKey, RowRef
from pipeline.feedback.database import Database
from pipeline.feedback.overview import set_aside
from pipeline.feedback.records import Candidate, Item, Task
from pipeline.feedback.scores import late_scores
from pipeline.feedback.store import FeedbackStore
from pipeline.records import Completion, Prompt, Rollout

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
"""Seconds after which a store that could not be reached is tried again."""
_SEED = 0x0FFE


class Offered(NamedTuple):
    """A pair on its way: where its prompt lies, and what completes it."""

    row: RowKey
    candidates: list[Candidate]
    step: int


class Offers:
    """Takes each step's completions; a thread of its own brings them to the store."""

    def __init__(self, recipe: Recipe, split: str):
        self._recipe = recipe
        self._datasets = Datasets(recipe.datasets, split)
        self._database = Database(recipe.feedback_url)  # Here, so that a URL that is wrong ends the run at its start.
        self._spool = recipe.run.directory / "feedback" / "spool"
        self._spool.mkdir(parents=True, exist_ok=True)
        self._counts = {"delivered": 0, "refused": 0, "failed": 0}
        self._hears = RewardName.HUMAN in recipe.rlhf.rewards
        self._said, self._step = NOTHING_SAID, 0
        self._news = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feedback-offers")
        self._thread.start()

    def __enter__(self) -> Offers:
        return self

    def __exit__(self, *_: object) -> None:
        """Tries once more to deliver what waits; the rest stays in the spool, for the next run of this directory."""
        self._ends.set()
        self._news.set()
        self._thread.join()
        if waiting := self.num_waiting():
            logger.warning("feedback: %d steps' completions wait in %s for a store", waiting, self._spool)

    def take(self, step: int, batch: Judged) -> None:
        """Spools a share of a step's groups; taken again, a step changes nothing."""
        chance = np.random.default_rng([self._recipe.run.seed, _SEED, step])
        size = len(batch.rollouts[0].completions)
        lines: list[str] = []
        for group, (prompt, rollout) in enumerate(zip(batch.prompts, batch.rollouts, strict=True)):
            if chance.random() >= self._recipe.feedback.offered_share:
                continue
            if places := _pair(rollout, chance):
                pair = [_candidate(batch, group * size + place, rollout.completions[place]) for place in places]
                lines.append(_line(prompt, pair, step))
        if lines:
            path = self._spool / f"{step:08d}.jsonl"
            _write(path, "".join(lines))
            self._news.set()

    def said(self, step: int) -> Said:
        """What was said, as far as it is known here, of completions that are not too old for this step."""
        self._step = step
        self._news.set()
        return self._said

    def num_waiting(self) -> int:
        """Steps whose completions are not in the store yet."""
        return len(list(self._spool.glob("*.jsonl")))

    def metrics(self) -> dict[str, float]:
        """What became of the completions so far."""
        counts = {f"feedback/{name}": float(number) for name, number in self._counts.items()}
        return {**counts, "feedback/steps_waiting": float(self.num_waiting())}

    def _run(self) -> None:
        store: FeedbackStore | None = None
        while True:
            self._news.clear()  # Before the look: what comes after it is news again.
            is_last = self._ends.is_set()
            try:
                if store is None:
                    self._database.migrate()
                    store = FeedbackStore(self._database, self._recipe.feedback_media)
                for path in sorted(self._spool.glob("*.jsonl")):
                    self._deliver(store, path)
                    path.unlink()
                if self._hears:
                    self._said = self._heard(store)
            except Exception as error:  # Whatever it is: completions wait in the spool, counted, and the run goes on.
                self._counts["failed"] += 1
                logger.warning(
                    "feedback: nothing could be delivered, the run goes on: %s: %s", type(error).__name__, error
                )
                store = None
            if is_last:
                self._database.close()
                return
            self._news.wait(AGAIN_S if self.num_waiting() else None)

    def _heard(self, store: FeedbackStore) -> Said:
        settings = self._recipe.feedback
        aside = set_aside(list(store.judged(run=self._recipe.run.name)), settings)
        return late_scores(store, self._step - settings.max_score_age, run=self._recipe.run.name, aside=aside)

    def _deliver(self, store: FeedbackStore, path: Path) -> None:
        offered = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = self._datasets.read([RowRef(each.row) for each in offered])
        items: list[Item] = []
        for each, prompt in zip(offered, prompts, strict=True):
            try:
                items.append(self._item(store, each, prompt))
            except ValueError as error:
                self._counts["refused"] += 1
                logger.warning("feedback: a completion cannot be shown: %s", error)
        self._counts["delivered"] += store.offer(items)

    def _item(self, store: FeedbackStore, offered: Offered, prompt: Any) -> Item:
        if not isinstance(prompt, Prompt):
            raise ValueError(f"its prompt cannot be read: {prompt}")
        settings, chance = self._recipe.feedback, np.random.default_rng([self._recipe.run.seed, *offered.row])
        return Item(
            task=Task.PAIR,
            prompt_id=prompt.id,
            prompt_task=prompt.task,
            messages=prompt.messages,
            media=tuple(store.keep(medium.kind, medium.data) for medium in prompt.media),
            candidates=tuple(offered.candidates),
            run=self._recipe.run.name,
            step=offered.step,
            uncertainty=uncertainty(offered.candidates),
            num_raters=2 if chance.random() < settings.second_rater_share else 1,
        )


def uncertainty(candidates: Sequence[Candidate]) -> float:
    """How unsure the reward model is which of two is better: 4 p (1 - p), p by Bradley-Terry; 0 without scores.

    Where an ensemble gives the scores a spread, p is moderated: sigmoid(d / sqrt(1 + pi v / 8)), d the difference of
    the scores and v the sum of their variances (MacKay 1992, "The evidence framework applied to classification
    networks").
    """
    first, second = candidates
    if first.score is None or second.score is None:
        return 0.0
    variance = (first.score_std or 0.0) ** 2 + (second.score_std or 0.0) ** 2
    difference = (second.score - first.score) / (1 + np.pi * variance / 8) ** 0.5
    p = 1 / (1 + float(np.exp(np.clip(difference, -50, 50))))
    return 4 * p * (1 - p)


def _pair(rollout: Rollout, chance: np.random.Generator) -> tuple[int, int] | None:
    """Two completions whose texts differ, drawn at random; None where all are alike."""
    first, *others = chance.permutation(len(rollout.completions)).tolist()
    other = next((each for each in others if rollout.completions[each].text != rollout.completions[first].text), None)
    return None if other is None else (first, other)


def _candidate(batch: Judged, row: int, completion: Completion) -> Candidate:
    scores, spread = batch.parts.get(RewardName.LEARNED), batch.uncertainty
    return Candidate(
        text=completion.text,
        token_ids=tuple(completion.token_ids.tolist()),
        weights_version=completion.weights_version,
        score=None if scores is None else float(scores[row]),
        score_std=None if spread is None else float(spread[row]),
        reward_version=None if scores is None else batch.reward_version,
    )


def _line(prompt: PromptRef, pair: Sequence[Candidate], step: int) -> str:
    return json.dumps({"row": list(prompt.row), "candidates": [asdict(each) for each in pair], "step": step}) + "\n"


def _parsed(line: str) -> Offered:
    content = json.loads(line)
    return Offered(RowKey(*content["row"]), [*map(Candidate.of, content["candidates"])], content["step"])


def _write(path: Path, text: str) -> None:
    """On disk, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
