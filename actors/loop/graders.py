"""Rewards from outside, as the driver asks for them: which groups go to whom, what came back, and what is told of it.

groups to whose task a part applies -> batches -> grader workers -> numbers [N] and counts by reason
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.fleet.answer import Answer
from actors.fleet.failures import KillsWorkers
from actors.fleet.pool import Pool
from actors.fleet.worker import Spent
from actors.roles.encoder import PromptRef
from actors.roles.grader import Asked, GraderWorker, OutsidePart
from pipeline.config import ConfigError, FunctionReward, Recipe
from pipeline.grading import Failure, Graded, RewardCompletion, failed
from pipeline.grading.child import Code
from pipeline.grading.records import TooManyFailures
from pipeline.records import Rollout

ROLE = "grader"


@dataclass(frozen=True)
class Grading:
    """A part that grader workers are at. rows: which of N completions each batch holds."""

    part: OutsidePart
    answer: Answer[Graded]
    rows: list[list[int]]
    num_rows: int


@dataclass(frozen=True)
class Found:
    """What came of a part.

    values: float32 [N], NaN where it does not apply or failed. named: its named parts, likewise.
    counts: by reason, and how often it was asked. applies: whether it was asked of each completion and said a number,
        or failed.
    """

    values: Tensor
    named: dict[str, Tensor]
    counts: Counter[str]
    applies: list[bool]


def answers(gradings: Mapping[str, Grading]) -> dict[str, Answer[Graded]]:
    """What is waited for, by the names under which the seconds of each part are shown."""
    return {f"{ROLE}_{name}": each.answer for name, each in gradings.items()}


class Graders:
    """The grader workers of a run, and what was told of them already."""

    def __init__(self, pool: Pool[GraderWorker]):
        self.pool = pool
        self._codes: dict[str, Code] = {}
        self._told: set[tuple[str, Failure]] = set()

    def check(self, recipe: Recipe) -> None:
        """Has every worker load every part, before the first step.

        Raises:
            ConfigError: a function cannot be imported, a judge cannot be loaded; the message is its traceback.
        """
        for part in self._parts(recipe):
            seats = list(range(len(self.pool)))
            for trouble in self.pool.submit_to(GraderWorker.load, seats, [part for _ in seats]).result():
                if trouble is not None:
                    raise ConfigError(f"rlhf.rewards.{part.name}: {trouble}")

    def ask(
        self, recipe: Recipe, prompts: Sequence[PromptRef], rollouts: Sequence[Rollout], split: str
    ) -> dict[str, Grading]:
        """Asks for all parts from outside, each of the groups to whose task it applies."""
        return {part.name: self._ask(recipe, part, prompts, rollouts, split) for part in self._parts(recipe)}

    def _ask(
        self,
        recipe: Recipe,
        part: OutsidePart,
        prompts: Sequence[PromptRef],
        rollouts: Sequence[Rollout],
        split: str,
    ) -> Grading:
        weight, size = recipe.rlhf.rewards[part.name], part.settings.batch_size
        batches: list[list[Asked]] = []
        rows: list[list[int]] = []
        first = 0
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            group = range(first, first + len(rollout.completions))
            first = group.stop
            if not weight.applies(prompt.info.task):
                continue
            if not rows or len(rows[-1]) + len(group) > size:
                batches.append([])
                rows.append([])
            completions = tuple(
                RewardCompletion(each.text, each.token_ids, each.finish_reason) for each in rollout.completions
            )
            batches[-1].append(Asked(prompt.info, prompt.row, completions))
            rows[-1].extend(group)
        answer = self.pool.submit(GraderWorker.grade, batches, part, split)
        calls = [_surviving(call, part, len(each)) for call, each in zip(answer.calls, rows, strict=True)]
        return Grading(part, Answer(answer.asked, calls), rows, first)

    def found(self, gradings: Mapping[str, Grading], results: Mapping[str, Sequence[Graded]]) -> dict[str, Found]:
        """What came of each part, from what the workers returned under the names of `answers`.

        Prints what a function printed, and the first failure of each reason.

        Raises:
            TooManyFailures: more of them than the recipe allows.
        """
        return {name: self._found(each, results[f"{ROLE}_{name}"]) for name, each in gradings.items()}

    def _found(self, grading: Grading, results: Sequence[Graded]) -> Found:
        part, graded = grading.part, Graded.joined(results)
        index = torch.tensor([row for rows in grading.rows for row in rows], dtype=torch.int64)

        def spread(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Tensor:
            spread = torch.full((grading.num_rows,), torch.nan)
            spread[index] = torch.from_numpy(values)
            return spread

        reasons = Counter(each for each in graded.failures if each is not None)
        self._tell(part, graded, reasons)
        values = spread(graded.values)
        applies = (~values.isnan()).tolist()
        for row, failure in zip(index.tolist(), graded.failures, strict=True):
            applies[row] |= failure is not None
        counts = Counter({f"reward_failed:{part.name}:{reason}": number for reason, number in reasons.items()})
        counts += Counter({f"reward_{what}:{part.name}": number for what, number in graded.counts.items()})
        named = {f"{part.name}.{name}": spread(graded.named[name]) for name in part.names if name in graded.named}
        missing = {f"{part.name}.{name}": torch.full((grading.num_rows,), torch.nan) for name in part.names}
        return Found(values, {**missing, **named}, counts, applies)

    def _tell(self, part: OutsidePart, graded: Graded, reasons: Mapping[Failure, int]) -> None:
        for line in graded.output.splitlines():
            print(f"[{part.name}] {line}", flush=True)
        num, most = len(graded.failures), part.settings.max_failed_fraction
        if (num_failed := sum(reasons.values())) > most * num:
            told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
            details = "\n".join(graded.details[reason] for reason in reasons if reason in graded.details)
            raise TooManyFailures(
                f"rlhf.rewards.{part.name} failed for {num_failed} of the {num} completions of this step ({told}), "
                f"max_failed_fraction is {most:g}:\n{details}"
            )
        for reason, number in reasons.items():
            if (part.name, reason) not in self._told:
                self._told.add((part.name, reason))
                detail = graded.details.get(reason, "")
                print(f"rlhf.rewards.{part.name} failed ({reason}) for {number} of {num}: {detail}", flush=True)

    def _parts(self, recipe: Recipe) -> list[OutsidePart]:
        outside = recipe.rlhf.outside_rewards
        return [OutsidePart(name, settings, self._code(name, settings)) for name, settings in outside.items()]

    def _code(self, name: str, settings: object) -> Code | None:
        """The function's text, read once: workers on other nodes need not have the file."""
        if not isinstance(settings, FunctionReward):
            return None
        if name not in self._codes:
            self._codes[name] = code_of(settings, f"rlhf.rewards.{name}")
        return self._codes[name]


def code_of(settings: FunctionReward, field: str) -> Code:
    """A function as it travels to the workers.

    Raises:
        ConfigError: there is no such file, or it is no UTF-8.
    """
    place, here = Path(settings.path.rpartition(":")[0]), Path.cwd()
    source, paths = None, [str(here)]
    if place.suffix == ".py":
        try:
            source = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{field}.function.path={settings.path}: {error}") from None
        beside = place.resolve().parent
        inside = [os.path.relpath(beside, here)] if beside.is_relative_to(here) else []
        paths = [str(beside), *inside, *paths]
    return Code(settings.path, source, tuple(paths), settings.adapter, settings.memory_mib, settings.options)


def _surviving(call: Future[tuple[Graded, Spent]], part: OutsidePart, num: int) -> Future[tuple[Graded, Spent]]:
    """The same call, to which a batch that kills one worker after the other is a failure like others."""
    shown: Future[tuple[Graded, Spent]] = Future()

    def done(call: Future[tuple[Graded, Spent]]) -> None:
        error = call.exception()
        if isinstance(error, KillsWorkers):
            shown.set_result((failed(num, Failure.KILLS_WORKER, str(error), part.names), Spent(0.0, 0.0)))
        elif error is not None:
            shown.set_exception(error)
        else:
            shown.set_result(call.result())

    call.add_done_callback(done)
    return shown
