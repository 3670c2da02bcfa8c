"""Preference learning inside Ray Train's workers: first the reference, which the policy itself is until it learns.

completions to be scored -> log probabilities under the reference, once -> the driver, which keeps them on disk
lessons, a batch a step -> log probabilities -> the recipe's loss -> a step
lessons that were held out, at the end -> the same figures of what was never learned
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.engine.engine import Engine
from actors.roles.encoder import fetch_encoded
from actors.roles.scoring import Group, blank_media, group_size, own_towers
from actors.training.lessons import Lesson, LessonLosses
from actors.training.references import Asked, reference_key
from actors.training.supervised import Live, batches_of, begin, engine_of, export, report, train
from pipeline.config import PreferenceLearning, Recipe
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.parts import adapters_off
from pipeline.models.processing import load_processor
from pipeline.models.tokens import pad_id
from pipeline.packing import GroupSize, plan_passes


def train_preference(config: dict[str, Any]) -> None:
    """Ray Train's loop of preference learning."""
    recipe: Recipe = config["recipe"]
    settings: PreferenceLearning = config["settings"]
    if not begin(config):
        return
    source: Path = config["source"]
    trust = recipe.model.trust_remote_code
    policy = load_policy(source, dtype=recipe.model.dtype, trust_remote_code=trust)
    live = own_towers(recipe, settings.parts, policy.decoder.architecture)
    policy.decoder.blank_media = blank_media(recipe, source, policy.decoder.model, live)
    engine = engine_of(policy, config)
    learner = Learner(engine, pad_id(load_processor(source, trust_remote_code=trust).tokenizer), live, settings)
    batches = lessons_sent(config, learner)
    first = next(batches, None)
    if first is None:
        return
    batches = chain([first], batches)
    if train(config, engine, learner.losses, size=lesson_size, total_of=learner.totals, batches=batches):
        found = learner.measured(config["held_out"])
        if engine.world.rank == 0:
            report(config, (settings.num_steps, {f"held_out/{name}": value for name, value in found.items()}))
        export(config, engine)


def lessons_sent(config: dict[str, Any], learner: Learner) -> Iterator[Sequence[Lesson]]:
    """The batches of messages that have one. What the reference says is known or found before that."""
    for lessons in batches_of(config):
        learner.references.update(config["known"])
        found = learner.refer(config["wanted"])
        if learner.engine.world.rank == 0 and (found or not lessons):
            # Whoever sent a message for the reference alone waits for an answer to it; a batch is answered by its step.
            report(config, (-1 if lessons else 0, {"references": found}))
        if lessons:
            yield lessons


def lesson_size(lesson: Lesson) -> GroupSize:
    """What a lesson costs in a pass."""
    return GroupSize(lesson.asked[0].prompt.num_tokens, len(lesson.asked), max(len(each.ids) for each in lesson.asked))


@dataclass(frozen=True)
class Learner:
    """A rank's policy, and what the reference says of completions, by `reference_key`."""

    engine: Engine
    pad_id: int
    live: Live
    settings: PreferenceLearning
    references: dict[bytes, float] = field(default_factory=dict)

    @property
    def losses(self) -> LessonLosses:
        """What is minimised."""
        return LessonLosses(self.sums, self.settings, self.references)

    def totals(self, lessons: Sequence[Lesson]) -> Any:
        """The global normalisers of a step. All ranks must call it, with the same lessons."""
        return self.losses.with_baseline(lessons, self.scored)

    def sums(self, lessons: Sequence[Lesson]) -> Tensor:
        """Log probabilities [N] of all completions of some lessons, with gradients. All lessons have equally many."""
        return self._sums([each.asked for each in lessons])

    def refer(self, wanted: Sequence[Asked]) -> dict[bytes, float]:
        """What the reference says of completions, by key; it is remembered. All ranks must call it.

        Before the first step the policy is the reference, and with adapters alone it is whenever they are off.
        """
        if not wanted:
            return {}
        is_off = self.settings.learns_adapters_alone
        with adapters_off(self.engine.module) if is_off else nullcontext():
            found = dict(zip(map(reference_key, wanted), self.scored(wanted), strict=True))
        self.references.update(found)
        return found

    @torch.no_grad()
    def scored(self, asked: Sequence[Asked]) -> list[float]:
        """Log probabilities of completions, shared out over the ranks; each then knows all. All ranks must call it."""
        by_prompt: dict[str, list[int]] = {}
        for place, each in enumerate(asked):
            by_prompt.setdefault(each.prompt.id, []).append(place)
        places = list(by_prompt.values())
        groups = [[asked[place] for place in each] for each in places]
        engine = self.engine
        plan = plan_passes(
            [group_size(_group(each)) for each in groups],
            num_ranks=engine.world.size,
            budget=engine.settings.micro_batch_tokens,
        )
        found = dict.fromkeys(range(len(asked)), 0.0)
        for each in plan[engine.world.rank]:
            # Groups of one would run without a cache: in one pass where a rank with others runs two, so ZeRO hangs.
            rows = self._sums([groups[index] for index in each.groups], is_even=False).double().tolist()
            of = chain.from_iterable(places[index] for index in each.groups)
            found |= dict(zip(of, rows, strict=True)) if each.counts else {}
        summed = engine.sum_over_ranks({str(place): value for place, value in found.items()})
        return list(summed.values())

    def measured(self, lessons: Sequence[Lesson]) -> dict[str, float]:
        """What a step on these lessons would show, without one. All ranks must call it."""
        if not lessons:
            return {}
        totals = self.totals(lessons)
        sums = torch.tensor(self.scored([each for lesson in lessons for each in lesson.asked]))
        found = self.losses.of_sums(lessons, sums, totals)
        return {"num": float(len(lessons)), **{name: float(value) for name, value in found.items()}}

    def _sums(self, groups: Sequence[Sequence[Asked]], *, is_even: bool = True) -> Tensor:
        """Log probabilities [N] of what the model says in completions; those of a group have one prompt.

        is_even: whether every pass of every rank has groups of this size.
        """
        encoded = fetch_encoded([group[0].prompt for group in groups], self.live)
        prompts = collate_prompts(encoded, pad_id=self.pad_id)
        completions = collate_completions([_group(group)[1] for group in groups], pad_id=self.pad_id)
        if not is_even and completions.group_size == 1:
            completions = replace(completions, group_size=None)
        device = self.engine.device
        logprobs: Tensor = self.engine(prompts.to(device), completions.to(device), 1.0, False)[0]
        said = torch.ones(logprobs.shape, dtype=torch.bool)
        for row, asked in enumerate(chain.from_iterable(groups)):
            for start, end in asked.given:
                said[row, start:end] = False
        return logprobs.where(said.to(device), 0.0).sum(1)


def _group(asked: Sequence[Asked]) -> Group:
    return asked[0].prompt, [np.array(each.ids) for each in asked]
