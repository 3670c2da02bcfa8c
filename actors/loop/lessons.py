"""What raters say on its way to the policy that learns from it: the reference's part first, then a batch a step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.loop.comparisons import ENCODED_AHEAD, admitted, divided
from actors.loop.door import Door, PairBatches
from actors.training.lessons import Lesson, all_asked, lessons_of
from actors.training.opinions import Example
from actors.training.references import Asked, ReferenceLogprobs, reference_key
from pipeline.config import ConfigError, PreferenceLoss, Recipe
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable


def lessons(
    recipe: Recipe,
    door: Door,
    table: PreferenceTable,
    references: ReferenceLogprobs | None,
    drawn: deque[dict[str, float]],
) -> Iterator[dict[str, Any]]:
    """What `Training.run` of `preference` reads, from the rows of a table.

    Where all of a policy learns it is the reference only before its first step: then all completions go to it once
    before the first lesson. Where adapters alone learn, the reference is asked along with each batch.

    references: what is known of the reference; None where the loss has none. drawn: takes what was refused so far, of
        each batch.

    Raises:
        ConfigError: the table has too few rows for a batch beside those that are held out, or none that this loss can
            learn.
        ValueError: a batch is another one than it was when the reference was asked.
    """
    settings = recipe.preference
    rows = divided(table, settings, stage="preference")
    examples = admitted(door, table.read(rows.rows))
    kept = lessons_of(examples, settings.loss)
    if not kept:
        print(f"warning: nothing that is held out can be measured with preference.loss={settings.loss}", flush=True)
    asking = _Asking(references)
    yield {"items": [], "held_out": kept, **asking.about(kept)}
    is_asked_before = references is not None and not settings.learns_adapters_alone
    if is_asked_before:
        reading = _Reading(door, recipe, table, rows)
        # Who is paired with whom for the baseline depends on the batch; else every row is known after one epoch.
        num_batches = math.ceil(reading.num_rows / settings.batch_size)
        num_asked = settings.num_steps if settings.loss.needs_baseline else min(settings.num_steps, num_batches)
        for step in range(num_asked):
            yield {"items": [], **asking.about(reading.take(num_asked - step))}
        print(f"the reference is asked about {asking.num_wanted} completions, {asking.num_known} are known", flush=True)
    reading = _Reading(door, recipe, table, rows)
    for step in range(settings.num_steps):
        batch = reading.take(settings.num_steps - step)
        about = asking.about(batch)
        if about["wanted"] and is_asked_before:
            raise ValueError(
                f"batch {step} is another one than it was when the reference was asked, which the policy is no more; "
                "was a row refused that was good before? Start the stage again"
            )
        yield {"items": batch, **about}
        num_refused = reading.num_refused + len(rows.rows) - len(examples)
        drawn.append(
            {
                **door.metrics(),
                "counts/pairs_refused": float(num_refused),
                "counts/opinions_without_lesson": float(reading.num_silent),
            }
        )


@dataclass
class _Asking:
    """What the workers are told of the reference: what is known and they were not told yet, and what is not known."""

    references: ReferenceLogprobs | None
    num_known: int = 0
    num_wanted: int = 0
    _told: set[bytes] = field(default_factory=set)

    def about(self, batch: Sequence[Lesson]) -> dict[str, Any]:
        """Of a batch `wanted`, what the workers must find out, and `known`, what they need not."""
        wanted: list[Asked] = []
        known: dict[bytes, float] = {}
        for asked in [] if self.references is None else all_asked(batch):
            key = reference_key(asked)
            if key in self._told:
                continue
            self._told.add(key)
            if self.references and key in self.references:
                known[key] = self.references[key]
                self.num_known += 1
            else:
                wanted.append(asked)
                self.num_wanted += 1
        return {"wanted": wanted, "known": known}


class _Reading:
    """Batches of lessons. Rows that teach nothing with this loss are counted, and batches of such alone passed over."""

    def __init__(self, door: Door, recipe: Recipe, table: PreferenceTable, rows: HeldOut):
        self._loss: PreferenceLoss = recipe.preference.loss
        self._table = table
        self._batches = PairBatches(door, recipe, table, size=recipe.preference.batch_size, held_out=rows)
        self.num_rows = self._batches.num_rows
        self.num_silent = 0
        self._num_taught = 0

    @property
    def num_refused(self) -> int:
        return self._batches.num_refused

    def take(self, remaining: int) -> list[Lesson]:
        """The lessons of the next batch that has some; `remaining` batches will be taken, this one too."""
        while True:
            self._batches.announce(min(1 + ENCODED_AHEAD, remaining))
            examples = [Example(prompt, opinion) for opinion, prompt in self._batches.take()]
            found = lessons_of(examples, self._loss)
            self._num_taught += len(found)
            self.num_silent += sum(not lessons_of([each], self._loss) for each in examples)
            if found:
                return found
            if not self._num_taught and self.num_silent >= self.num_rows:
                needed, cure = (
                    ("calls completions good or bad, or compares two", "dpo with rankings")
                    if self._loss.is_unpaired
                    else ("prefers one of two completions", "kto")
                )
                raise ConfigError(
                    f"{self._table.path}: no row {needed}, which preference.loss={self._loss} learns from; use {cure}"
                )
