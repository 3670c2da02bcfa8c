"""What came with the data for a reward model to learn: comparisons, and completions called good or bad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from pipeline.config import ConfigError, Recipe
from pipeline.data.datasets import Datasets, Source
from pipeline.data.preferences import Label, Pair, read_labels, read_pairs
from pipeline.data.schema import RowError
from pipeline.data.table import Quarantine
from pipeline.models.processing import PromptProcessor, processor_alone
from pipeline.records import OVERALL, Message, Opinion, Preference, RaterKind, Rating


def brought_opinions(recipe: Recipe, source: Path) -> Iterator[Opinion]:
    """The comparisons and labels that came with the data, in tokens of the model.

    Raises:
        ConfigError: there are labels alone, and they cannot be learned.
        TooManyBadRows: more than `data.max_bad_fraction` of them hold special tokens; they lie in the quarantine.
    """
    load = cache(partial(processor_alone, recipe, source))
    split, quarantine = recipe.preferences.split, Quarantine()

    num_rows = 0
    for num_rows, (prompt_id, said) in enumerate(_rows(Datasets(recipe.datasets, split).sources), start=1):
        try:
            opinion = _as_learned(prompt_id, said, load())
        except RowError as error:
            quarantine.add(error.quarantined(f"{prompt_id} (row {num_rows})"))
            continue
        yield opinion
    if len(quarantine):
        quarantine.write(recipe.run.directory / "quarantine" / f"preferences_{split}.parquet")
        quarantine.check(num_rows, recipe.data.max_bad_fraction)


def _as_learned(prompt_id: str, said: Pair | Label, processor: PromptProcessor) -> Opinion:
    """A comparison or a label as it is learned, in tokens."""
    if isinstance(said, Label):
        ids, _ = processor.conversation_ids(said.completion, field="completion")
        ratings = {OVERALL: float(said.is_good)}
        return Rating(prompt_id, ids, said.completion, ratings, said.dataset, RaterKind.DATASET)
    chosen_ids, chosen_given = processor.conversation_ids(said.chosen, said.chosen_then, field="chosen")
    rejected_ids, rejected_given = processor.conversation_ids(said.rejected, said.rejected_then, field="rejected")
    return Preference(
        prompt_id=prompt_id,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        chosen=_to_read(said.chosen, said.chosen_then),
        rejected=_to_read(said.rejected, said.rejected_then),
        chosen_given=chosen_given,
        rejected_given=rejected_given,
        rater=said.dataset,
        rater_kind=RaterKind.DATASET,
        margin=said.margin,
    )


def _to_read(answer: str, then: Sequence[Message]) -> str:
    return "\n\n".join([answer, *(f"{turn.role}: {turn.content}" for turn in then)])


def _rows(sources: Sequence[Source]) -> Iterator[tuple[str, Pair | Label]]:
    """Comparisons and labels of prepared tables, each with the id of its prompt.

    Labels of a table are left out where prompts of some are not in it: these are of bad completions, and good ones
    alone teach nothing.

    Raises:
        ConfigError: no labels but such, and no comparison.
    """
    num_given, left_out = 0, ""
    for each in sources:
        directory = each.dataset.path
        for pair in read_pairs(directory, each.split):
            num_given += 1
            yield each.prefix + pair.prompt_id, pair
        judged = list({label.prompt_id: None for label in read_labels(directory, each.split)})
        try:
            if judged:
                each.table.rows(judged)
        except KeyError as error:
            left_out = (
                f"{error.args[0]}: they are prompts of judged completions; so none of its judgements is learned. "
                "Prepare it with prepare.answers=optional, which keeps the prompts of bad completions"
            )
            print(left_out, flush=True)
            continue
        for label in read_labels(directory, each.split):
            num_given += 1
            yield each.prefix + label.prompt_id, label
    if left_out and not num_given:
        raise ConfigError(left_out)
