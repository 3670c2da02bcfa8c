"""What raters say on its way to the reward model that learns it: held-out rows first, then a batch a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from actors.loop.door import Door, PairBatches
from actors.roles.encoder import PromptRef, Showing
from actors.training.opinions import Example
from pipeline.config import ConfigError, PreferenceLearning, Recipe, RewardModel
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable
from pipeline.records import OVERALL, Opinion

ENCODED_AHEAD = 2
"""Batches that the encoders are at while the next one is sent."""


def comparisons(
    recipe: Recipe, door: Door, table: PreferenceTable, drawn: deque[dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """What `Training.run` of `reward_model` reads, from the rows of a table.

    drawn: takes what was refused so far, of each batch.

    Raises:
        ConfigError: the table has too few rows for a batch beside those that are held out, or rates what the model
            does not score.
    """
    settings = recipe.reward_model
    check_criteria(recipe, table)
    rows = divided(table, settings, stage="reward_model")
    batches = PairBatches(door, recipe, table, size=settings.batch_size, held_out=rows)
    kept = held_out(door, table.read(rows.rows))
    message = {"held_out": kept, "blanked": blanked(door, [each.prompt for each in kept])}
    for step in range(settings.num_steps):
        batches.announce(min(1 + ENCODED_AHEAD, settings.num_steps - step))
        yield {**message, "items": [Example(prompt, opinion) for opinion, prompt in batches.take()]}
        message = {}
        num_refused = batches.num_refused + len(rows.rows) - len(kept)
        drawn.append({**door.metrics(), "counts/pairs_refused": float(num_refused)})


def divided(table: PreferenceTable, settings: RewardModel | PreferenceLearning, *, stage: str) -> HeldOut:
    """Which rows of a table a stage holds out; prints how many.

    Raises:
        ConfigError: too few are left for a batch.
    """
    rows = check_enough(table, settings, stage=stage)
    print(f"{len(table)} preferences by {', '.join(table.raters())}; {len(rows.rows)} are held out", flush=True)
    return rows


def check_enough(table: PreferenceTable, settings: RewardModel | PreferenceLearning, *, stage: str) -> HeldOut:
    """Which rows of a table a stage holds out: models need not be loaded to see that too few are left.

    Raises:
        ConfigError: they are fewer than a batch.
    """
    rows = HeldOut.of(table.prompt_ids(), fraction=settings.held_out_fraction, most=settings.max_held_out)
    num_learned = len(table) - len(rows.rows)
    if num_learned < settings.batch_size:
        raise ConfigError(
            f"{stage}.batch_size={settings.batch_size}: {table.path} has {len(table)} preferences, of which "
            f"{len(rows.rows)} are held out; lower it to {max(1, num_learned)}, or bring more (where they were sampled "
            "here: remove the file, and raise preferences.num_prompts)"
        )
    return rows


def check_criteria(recipe: Recipe, table: PreferenceTable) -> None:
    """Makes sure that all that is rated has a score.

    Raises:
        ConfigError: a criterion has none.
    """
    criteria = recipe.reward_model.criteria
    if unknown := [name for name in table.criteria() if name not in (*criteria, OVERALL)]:
        raise ConfigError(
            f"{table.path}: completions are rated by {', '.join(unknown)}, and "
            f"reward_model.criteria={list(criteria)} has no such; name what is rated there, or {OVERALL} in the table"
        )


def held_out(door: Door, opinions: Sequence[Opinion]) -> list[Example]:
    """What is not learned, and standardises the scores.

    Raises:
        ConfigError: the door refused all its prompts, or there is one completion alone.
    """
    found = admitted(door, opinions)
    if sum(len(each.opinion.completions) for each in found) < 2:
        raise ConfigError(
            "one completion alone is held out, and its score has no spread to standardise by; raise "
            "reward_model.held_out_fraction"
        )
    return found


def admitted(door: Door, opinions: Sequence[Opinion]) -> list[Example]:
    """What is held out, each with its prompt.

    Raises:
        ConfigError: the door refused all the prompts.
    """
    prompts = {prompt.id: prompt for prompt in door.admit(list({item.prompt_id: None for item in opinions}))}
    found = [Example(prompts[item.prompt_id], item) for item in opinions if item.prompt_id in prompts]
    if not found:
        raise ConfigError(f"the prompts of all {len(opinions)} held-out preferences were refused; see quarantine/")
    return found


def blanked(door: Door, prompts: Sequence[PromptRef]) -> dict[str, PromptRef]:
    """Prompts that have media, by their ids, with all of these blanked; without those that do not go so."""
    shown = {each.row: Showing(blanked=frozenset(each.info.modalities)) for each in prompts if each.info.modalities}
    return {prompt.id: prompt for prompt in door.show(shown)} if shown else {}
