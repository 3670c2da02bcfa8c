"""Preferences on their way to the reward model that learns them: held-out ones first, then a batch a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from actors.loop.door import Door, PairBatches
from actors.roles.encoder import PromptRef
from actors.training.supervised import Comparison
from pipeline.config import ConfigError, Recipe
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable
from pipeline.records import Preference

ENCODED_AHEAD = 2
"""Batches that the encoders are at while the next one is sent."""


def comparisons(
    recipe: Recipe, door: Door, table: PreferenceTable, drawn: deque[dict[str, float]]
) -> Iterator[dict[str, list[Comparison]]]:
    """What `Training.run` of `reward_model` reads, from the preferences of a table.

    drawn: takes what was refused so far, of each batch.

    Raises:
        ConfigError: the table has too few for a batch beside those that are held out.
    """
    settings = recipe.reward_model
    rows = HeldOut.of(table.prompt_ids(), fraction=settings.held_out_fraction, most=settings.max_held_out)
    num_held_out = len(rows.rows)
    if len(table) - num_held_out < settings.batch_size:
        raise ConfigError(
            f"{table.path}: {len(table)} preferences, of which {num_held_out} are held out, are too few for "
            f"reward_model.batch_size={settings.batch_size}; raise preferences.num_prompts"
        )
    print(f"{len(table)} preferences by {', '.join(table.raters())}; {num_held_out} are held out", flush=True)
    batches = PairBatches(door, recipe, table, size=settings.batch_size, held_out=rows)
    kept = held_out(door, table.read(rows.rows))
    message = {"held_out": kept}
    for step in range(settings.num_steps):
        batches.announce(min(1 + ENCODED_AHEAD, settings.num_steps - step))
        yield {**message, "items": [compared(*each) for each in batches.take()]}
        message = {}
        num_refused = batches.num_refused + num_held_out - len(kept)
        drawn.append({**door.metrics(), "counts/pairs_refused": float(num_refused)})


def held_out(door: Door, preferences: Sequence[Preference]) -> list[Comparison]:
    """The comparisons that are not learned.

    Raises:
        ConfigError: the door refused all their prompts.
    """
    prompts = {prompt.id: prompt for prompt in door.admit(list({item.prompt_id: None for item in preferences}))}
    found = [compared(item, prompts[item.prompt_id]) for item in preferences if item.prompt_id in prompts]
    if not found:
        raise ConfigError(f"the prompts of all {len(preferences)} held-out preferences were refused; see quarantine/")
    return found


def compared(preference: Preference, prompt: PromptRef) -> Comparison:
    """A comparison as it is learned."""
    ids = preference.chosen_ids, preference.rejected_ids
    return Comparison(prompt, *ids, margin=preference.margin, is_tie=preference.is_tie)
