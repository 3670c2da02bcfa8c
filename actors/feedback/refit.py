"""The reward model learns from people while the loop goes on.

    store -> judgements by people -> enough new ones? -> Ray Train x DeepSpeed, from the version that judges
                                                                    |
    the loop swaps it in between two steps <- versions <- right as often on held-out ones?

The loop and this know of each other by files alone: where one of them dies, the other goes on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.loop.comparisons import comparisons
from actors.loop.crew import Crew
from actors.loop.door import Door
from actors.roles.encoder import needs_of
from pipeline.config import ConfigError, Recipe
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable, write_preferences
from pipeline.evaluation.calibration import ScoredPair, measure
from pipeline.evaluation.ratings import ScoredRating, ratings_json
from pipeline.feedback.database import Database
from pipeline.feedback.preferences import HumanOpinion, foreseen, human_opinions, new_since, reason_to_refit
from pipeline.feedback.store import FeedbackStore
from pipeline.feedback.versions import RewardVersion, RewardVersions, Trigger

logger = logging.getLogger(__name__)
MOST_DOUBLINGS = 6
"""Of the wait between two looks, while they fail."""
HeldOutFigures = dict[str, Any]


class Refitter:
    """Looks into the store, and refits the reward model where there is reason. Its workers stay between two refits."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._versions = RewardVersions(recipe)
        self._since = time.time()
        self._fits = _of_refits(recipe)
        self._crew = Crew(self._fits, training="reward_model")

    def look(self, *, is_asked: bool = False) -> RewardVersion | None:
        """One look; the refit that came of it.

        is_asked: any comparisons are reason enough.

        Raises:
            ConfigError: there are too few for a step, and it was asked for.
        """
        settings = self._recipe.feedback
        with self._versions.alone():
            database = Database(self._recipe.feedback_url)
            try:
                database.migrate()
                store = FeedbackStore(database, self._recipe.feedback_media)
                opinions = list(human_opinions(store, settings, self._fits.reward_model.criteria))
            finally:
                database.close()
            last = next(reversed(self._versions.all()), None)
            since = self._since if last is None else max(self._since, last.fitted_at)
            why = reason_to_refit(opinions, last, settings.refit, since=since, now=time.time())
            if why is None and not is_asked:
                return None
            learned = self._learned(opinions)
            if learned is None:
                if is_asked:
                    raise ConfigError(
                        f"{len(opinions)} judgements by people are too few to hold some out and learn from others"
                    )
                return None
            return self._refit(*learned, last, why or Trigger.ASKED)

    def _learned(self, opinions: Sequence[HumanOpinion]) -> tuple[Recipe, list[HumanOpinion]] | None:
        """What is learned from or held out, and the recipe, its batch no larger than that; None where it is nothing.

        Of held-out prompts that is what people said alone: a refit is measured by nothing else.
        """
        settings = self._fits.reward_model
        said = [each.opinion.prompt_id for each in opinions if each.judged_at is not None]
        if not said:
            return None
        held_out = HeldOut.of(said, fraction=settings.held_out_fraction, most=settings.max_held_out)
        kept = [each for each in opinions if each.judged_at is not None or each.opinion.prompt_id not in held_out]
        num_learned = len(kept) - len(held_out.rows)
        if not num_learned:
            return None
        return _with(self._fits, batch_size=min(settings.batch_size, num_learned)), kept

    def _refit(
        self, recipe: Recipe, opinions: Sequence[HumanOpinion], last: RewardVersion | None, why: Trigger
    ) -> RewardVersion:
        versions = self._versions
        number = 1 if last is None else last.number + 1
        source = versions.current
        table = versions.directory / f"v{number:04d}.parquet"
        write_preferences(table, (each.opinion for each in opinions))
        learn = partial(self._learn, recipe, table, versions.path(source), versions.path(number))
        after, before, num_refused = self._crew.insist("refit", learn)
        version = RewardVersion(
            number=number,
            source=source,
            trigger=why,
            fitted_at=time.time(),
            until=max(each.judged_at for each in opinions if each.judged_at is not None),
            num_judgements=sum(each.judged_at is not None for each in opinions),
            num_refused=num_refused,
            held_out=after,
            held_out_before=before,
            is_accepted=is_as_good(after, before),
            fresh=foreseen(new_since(opinions, last)),
        )
        versions.add(version)
        return version

    def _learn(
        self, recipe: Recipe, table: Path, source: Path, target: Path
    ) -> tuple[HeldOutFigures, HeldOutFigures, int]:
        """Trains, and returns what held-out judgements say, after and before, and how many the door refused."""
        roles = self._crew.roles({"encoder": source})
        needs = needs_of(recipe, source, recipe.reward_model.parts, recipe.rlhf.policy.parts)
        door = Door(roles, recipe, recipe.rlhf.split, stage="refit", needs=needs)
        drawn: deque[dict[str, float]] = deque()
        found: dict[str, Any] = {}
        data = comparisons(recipe, door, PreferenceTable(table), drawn)
        for _, metrics in self._crew.training("reward_model").run(source=source, target=target, data=data):
            found |= metrics
        self.warm()
        after = figures(found["held_out"], found["held_out_ratings"])
        before = figures(found["held_out_before"], found["held_out_ratings_before"])
        return after, before, int(drawn[-1]["counts/pairs_refused"])

    def warm(self) -> None:
        """Starts the workers of the next refit."""
        self._crew.training("reward_model")

    def close(self) -> None:
        """Ends the workers."""
        self._crew.shutdown()


def figures(pairs: Sequence[ScoredPair], ratings: Sequence[ScoredRating]) -> HeldOutFigures:
    """How right a reward model is on what it never learned: pairs, and ratings by criterion, each one counting alike.

    `num` of them; the `accuracy` on those that are no tie and not in the middle of the scale (None where all are); the
    `brier` score. See `calibration.measure` and `ratings_json`.
    """
    found = [measure(pairs)] if pairs else []
    found += ratings_json(ratings).values()
    nums = [each["num_pairs"] if "num_pairs" in each else each["num_ratings"] for each in found]
    num_decided = sum(each["num_decided"] for each in found)
    num_right = sum((each["accuracy"] or 0.0) * each["num_decided"] for each in found)
    brier = sum(each["brier"] * num for each, num in zip(found, nums, strict=True)) / sum(nums)
    return {"num": sum(nums), "accuracy": num_right / num_decided if num_decided else None, "brier": brier}


def is_as_good(after: HeldOutFigures, before: HeldOutFigures) -> bool:
    """Whether a refit may judge, by `figures` of the same judgements: right as often as the one before.

    Where nothing but ties are held out, the smaller Brier score says so.
    """
    if after["accuracy"] is None or before["accuracy"] is None:
        return after["brier"] <= before["brier"]
    return after["accuracy"] >= before["accuracy"]


def _of_refits(recipe: Recipe) -> Recipe:
    """The recipe as refits take it, with a directory of their own for what they write."""
    settings = recipe.feedback.refit
    run = recipe.run.model_copy(update={"directory": recipe.run.directory / "feedback" / "refit"})
    data = recipe.data.model_copy(update={"path": recipe.data.path or str(recipe.data_path)})
    found = recipe.model_copy(update={"run": run, "data": data})
    return _with(
        found,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        held_out_fraction=settings.held_out_fraction,
    )


def _with(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"reward_model": recipe.reward_model.model_copy(update=settings)})


def started(recipe: Recipe) -> Any:
    """An actor that refits until it is killed. Where it dies it is started again."""
    remote: Any = ray.remote(_Looking)
    actor = remote.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(recipe)
    actor.run.remote()
    return actor


class _Looking:
    def __init__(self, recipe: Recipe):
        self._recipe = recipe

    def run(self) -> None:
        refitter, num_failed = None, 0
        while True:
            try:
                if refitter is None:
                    refitter = Refitter(self._recipe)
                    refitter.warm()
                refitter.look()
                num_failed = 0
            except Exception as error:  # Whatever it is: the reward model stays what it was, and the loop goes on.
                num_failed += 1
                versions = RewardVersions(self._recipe)
                with versions.alone():
                    versions.failed(error)
                logger.warning("feedback: no refit, the run goes on: %s: %s", type(error).__name__, error)
                if refitter is not None:
                    refitter.close()
                refitter = None
            # What fails again and again starts its processes less and less often.
            time.sleep(self._recipe.feedback.refit.poll_s * 2 ** min(num_failed, MOST_DOUBLINGS))
