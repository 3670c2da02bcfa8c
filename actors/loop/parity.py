"""Before the first update: rollout, trainer and the checkpoint's own forward must agree on a mixed sample of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.loop.crew import Roles
from actors.loop.door import Door
from actors.loop.sampler import generate
from actors.roles.encoder import EncoderWorker, PromptRef
from actors.roles.policy import PolicyWorker
from actors.roles.rollout import RolloutWorker
from actors.roles.scoring import Group, score
from pipeline.config import ConfigError, Dtype, Recipe
from pipeline.parity import ComparedRow, ParityError, ParityReport, Sight, compare
from pipeline.records import MediaKind, PromptInfo, Rollout

PARITY_SEED = -3
"""A step that training never takes."""
SCANNED_ROWS = 2048
"""First rows of each table among which the sample is chosen."""
TOLERANCES = {Dtype.FLOAT32: 1e-4, Dtype.BFLOAT16: 0.02}
"""Mean absolute difference of a row's logprobs, in nats, that rounding explains.

In bfloat16 the tiny model's rows are at most 0.0044 apart on a CPU, 0.0034 on an H200 (`benchmarks.precision`).
Rounding errors of layers add up like a random walk: 36 layers in place of 3 would make that 0.015."""


def check(roles: Roles, recipe: Recipe, door: Door, *, stage: str, stock: bool) -> ParityReport:
    """Compares the copies and prints the table.

    Args:
        stage: when this is, for the print-out.
        stock: whether the checkpoint's own forward, on the raw row, is compared as well: while weights are its own.

    Raises:
        ParityError: they differ by more than rounding; the table names the rows, modalities and causes.
        ConfigError: there is nothing to compare on.
    """
    num_rows, infos = recipe.rlhf.parity.num_rows, door.datasets.infos(SCANNED_ROWS)
    usable = [info for info in infos if door.lacks(info) is None]
    prompts = door.admit([info.id for info in mixed_sample(usable, num_rows)])
    if not prompts:
        lack = next((lack for info in infos if (lack := door.lacks(info))), f"see {door.directory / 'quarantine'}")
        raise ConfigError(
            f"rlhf.parity.num_rows={num_rows}: none of the first {SCANNED_ROWS} rows of a table can be used: {lack}; "
            "0 goes without the comparison"
        )
    rollouts = _completions(roles, recipe, prompts)
    groups: list[Group] = [
        (prompt, [rollout.completions[0].token_ids]) for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    logprobs: dict[str, list[NDArray[np.float32] | None]] = {
        "rollout": [rollout.completions[0].behaviour_logprobs for rollout in rollouts]
    }
    temperature = recipe.rlhf.sampling.temperature
    scoring = score(roles.policy, PolicyWorker.logprobs, groups, temperature=temperature)
    logprobs["trainer"] = [rows[0] for rows in scoring.in_order(scoring.answer.result())]
    if stock:
        tasks = [[group] for group in groups]
        answer = roles.encoder.submit(EncoderWorker.stock_logprobs, tasks, door.split, temperature=temperature)
        logprobs["stock"] = [row for part in answer.result() for row in part]
    seen: dict[str, list[Sight]] = {
        "rollout": roles.rollout.submit(RolloutWorker.sights, [prompts]).result()[0],
        "trainer": roles.policy.on_all(PolicyWorker.sights, prompts).result()[0],
    }
    tolerance = recipe.rlhf.parity.tolerance or TOLERANCES[recipe.model.dtype]
    rows = [
        ComparedRow(prompt.id, prompt.info.modalities, _at(seen, index), _at(logprobs, index))
        for index, prompt in enumerate(prompts)
    ]
    report = compare(rows, tolerance=tolerance)
    if lacking := sum("stock" not in row.logprobs for row in rows) if stock else 0:
        print(f"{lacking} completions open a medium, at which the checkpoint's own forward would look", flush=True)
    print(f"parity of {', '.join(logprobs)} on {len(rows)} rows, {stage}:\n{report.table()}", flush=True)
    if report.differences:
        raise ParityError(f"{stage}: copies of the model disagree\n{report.table()}")
    return report


def mixed_sample(infos: Sequence[PromptInfo], num_rows: int) -> list[PromptInfo]:
    """The first rows of every mix of modalities, in turn, at most `num_rows`."""
    mixes: dict[tuple[MediaKind, ...], list[PromptInfo]] = {}
    for info in infos:
        mixes.setdefault(info.modalities, []).append(info)
    longest = max(map(len, mixes.values()), default=0)
    in_turn = [rows[place] for place in range(longest) for rows in mixes.values() if place < len(rows)]
    return in_turn[:num_rows]


def _completions(roles: Roles, recipe: Recipe, prompts: Sequence[PromptRef]) -> list[Rollout]:
    """One completion a prompt, of the whole distribution: what is left out of it the trainer cannot know."""
    whole = recipe.rlhf.sampling.whole
    parts = generate(roles, prompts, whole, group_size=1, seed=PARITY_SEED).result()
    return [rollout for part in parts for rollout in part]


def _at(columns: Mapping[str, Sequence[Any]], index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in columns.items() if column[index] is not None}
