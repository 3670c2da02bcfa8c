"""Grader workers: ask functions, servers and judges for rewards. They read rows themselves, so that no medium passes
through the driver.

    prompts by row + completions -> rows of the table -> function | server | judge -> numbers, and what failed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from actors.engine.place import Place
from actors.fleet.worker import Worker
from pipeline.config import (
    Dataset,
    Device,
    FunctionReward,
    Grader,
    JudgeReward,
    MediaForm,
    Recipe,
    Sending,
    ServerReward,
)
from pipeline.data.datasets import Datasets, RowKey, RowRef
from pipeline.data.isolated import Decoder
from pipeline.data.schema import KEPT, RowError, bare_prompt
from pipeline.grading.child import Code
from pipeline.grading.function import Function, FunctionFailed
from pipeline.grading.judge import Judge, Model
from pipeline.grading.openai import Address
from pipeline.grading.records import Failure, Graded, Question, RewardCompletion, RewardPrompt, failed
from pipeline.grading.server import Server
from pipeline.records import Prompt, PromptInfo, Quarantined

_COLUMNS = ("id", "task", "prompt", "answer", "accepted")
"""Of a row, without its media."""


@dataclass(frozen=True)
class OutsidePart:
    """A part of the reward, and who is asked for it. code: where that is a function."""

    name: str
    settings: FunctionReward | ServerReward | JudgeReward
    code: Code | None = None

    @property
    def media(self) -> MediaForm:
        """In what form it takes the media of prompts."""
        match self.settings:
            case FunctionReward():
                return self.settings.media
            case ServerReward():
                return MediaForm.NONE if self.settings.media is Sending.NONE else MediaForm.ENCODED
            case JudgeReward():
                return MediaForm.ENCODED if self.settings.media else MediaForm.NONE

    @property
    def names(self) -> tuple[str, ...]:
        """Of its named parts."""
        return () if isinstance(self.settings, JudgeReward) else tuple(self.settings.parts)


@dataclass(frozen=True)
class Asked:
    """A prompt by its row, and the completions of its group."""

    info: PromptInfo
    row: RowKey
    completions: tuple[RewardCompletion, ...]


class Source(Protocol):
    """Whoever gives rewards."""

    def load(self) -> None:
        """Makes sure that it can be asked, as far as that can be told beforehand.

        Raises:
            FunctionFailed: it cannot.
        """
        ...

    def grade(self, questions: Sequence[Question]) -> Graded:
        """Rewards of the completions of all questions, one after the other. Whatever fails is in the answer."""
        ...

    def close(self) -> None:
        """Ends what it holds."""
        ...


class GraderWorker(Worker):
    """Asks for rewards from outside, a part and some groups at a time."""

    imports_models = False

    settings: Grader

    def __init__(self, recipe: Recipe, settings: Grader):
        super().__init__(recipe, settings)
        self._datasets: dict[tuple[tuple[Dataset, ...], str], Datasets] = {}
        self._sources: dict[str, tuple[OutsidePart, Source]] = {}

    def warm_up(self, device: Device) -> None:
        """Nothing: a local judge imports what it needs when it is loaded."""

    def setup(self, place: Place, path: Path) -> None:
        """Forgets the parts of an earlier run; there is no checkpoint to load."""
        self._place = place
        for _, source in self._sources.values():
            source.close()
        self._sources.clear()

    def load(self, part: OutsidePart) -> str | None:
        """Makes sure that a part can be asked for; what is wrong, if it cannot."""
        try:
            self._source(part).load()
        except FunctionFailed as error:
            return str(error)
        return None

    def grade(self, asked: Sequence[Asked], part: OutsidePart, split: str) -> Graded:
        """Rewards of all completions, groups together."""
        questions = self._questions(asked, part, split)
        able = [each for each in questions if isinstance(each, Question)]
        found = self._source(part).grade(able) if able else Graded.joined([])
        rest, rows, parts = found, 0, list[Graded]()
        for each, group in zip(questions, asked, strict=True):
            if isinstance(each, Question):
                parts.append(rest.rows(rows, rows + len(each.completions)))
                rows += len(each.completions)
            else:
                detail = f"{each.row_id}: {each.reason}: {each.detail}"
                parts.append(failed(len(group.completions), Failure.UNREADABLE_ROW, detail, part.names))
        joined = Graded.joined(parts)
        return replace(joined, details={**joined.details, **found.details}, counts=found.counts, output=found.output)

    def _source(self, part: OutsidePart) -> Source:
        known, source = self._sources.get(part.name, (None, None))
        if source is None or known != part:
            if source is not None:
                source.close()
            source = self._made(part)
            self._sources[part.name] = part, source
        return source

    def _made(self, part: OutsidePart) -> Source:
        match part.settings:
            case FunctionReward():
                assert part.code is not None
                return Function(part.code, part.settings)
            case ServerReward():
                return Server(part.name, part.settings)
            case JudgeReward():
                return Judge(part.settings, self._model(part.settings))

    def _model(self, settings: JudgeReward) -> Model:
        if settings.checkpoint is None:
            return Address(settings)
        from pipeline.grading.local import Checkpoint  # with transformers, which nobody else here needs

        device = self._place.torch_device if self.settings.gpus_per_worker else torch.device("cpu")
        return Checkpoint(settings, self.recipe, device)

    def _questions(self, asked: Sequence[Asked], part: OutsidePart, split: str) -> list[Question | Quarantined]:
        datasets = self.recipe.datasets
        if (datasets, split) not in self._datasets:
            self._datasets[datasets, split] = Datasets(datasets, split)
        tables = self._datasets[datasets, split]
        rows, columns = [each.row for each in asked], self.recipe.data.columns
        if part.media is MediaForm.NONE:
            cells = tables.cells(rows, (*_COLUMNS, *columns, KEPT))
            prompts: list[Prompt | Quarantined] = [bare_prompt(cells[row]) for row in rows]
        else:
            cells = tables.cells(rows, (*columns, KEPT)) if columns else {row: {} for row in rows}
            prompts = tables.read([RowRef(row) for row in rows])
        return [
            prompt
            if isinstance(prompt, Quarantined)
            else self._question(each, prompt, _further(cells[each.row], columns), part.media)
            for each, prompt in zip(asked, prompts, strict=True)
        ]

    def _question(
        self, asked: Asked, prompt: Prompt, columns: dict[str, object], media: MediaForm
    ) -> Question | Quarantined:
        try:
            decoded = tuple(self._decoder.decode(each) for each in prompt.media) if media is MediaForm.DECODED else ()
        except RowError as error:
            return error.quarantined(asked.info.id)
        return Question(
            RewardPrompt(
                id=asked.info.id,
                task=prompt.task,
                messages=prompt.messages,
                answer=prompt.answer,
                accepted=prompt.accepted,
                columns=columns,
                media=decoded or prompt.media,
            ),
            asked.completions,
        )

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.recipe.data.limits)


def _further(cells: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Further columns of a row: those of the table itself, or those that were kept of its source; None without any."""
    kept = json.loads(cells.get(KEPT) or "{}")
    return {name: kept[name] if name in kept else cells.get(name) for name in columns}
