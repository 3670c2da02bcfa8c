"""How often judges agree with people, before they teach: on held-out preferences, which the reward model never learns.

held-out rows of preferences.parquet -> grader workers -> <run>/judges.json -> the report
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.loop.graders import Graders
from actors.roles.grader import Asked, GraderWorker, OutsidePart
from pipeline.config import JudgeReward, Recipe
from pipeline.data.datasets import Datasets
from pipeline.data.held_out import HeldOut
from pipeline.data.table import PreferenceTable
from pipeline.evaluation.intervals import wilson
from pipeline.grading import Graded, RewardCompletion
from pipeline.records import FinishReason, Preference, PromptInfo, RaterKind

NAME = "judges.json"


def measure(graders: Graders, recipe: Recipe) -> None:
    """Has each judge compare the two completions of held-out preferences; writes what came of it.

    A run without preferences has nothing to compare with, and says so.
    """
    judges = {name: each for name, each in recipe.rlhf.outside_rewards.items() if isinstance(each, JudgeReward)}
    judges = {name: each for name, each in judges.items() if each.agreement_pairs}
    if not judges:
        return
    path = recipe.run.directory / "preferences.parquet"
    if not path.is_file():
        print(f"{', '.join(judges)}: no preferences in {path}, so that nobody knows whether people agree", flush=True)
        return
    pairs = held_out(recipe, path)
    found = {name: _agreement(graders, recipe, OutsidePart(name, each), pairs) for name, each in judges.items()}
    (recipe.run.directory / NAME).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for line in told(found):
        print(line, flush=True)


def held_out(recipe: Recipe, path: Path) -> list[Preference]:
    """The pairs that are held out and are no ties, those of people first."""
    table, settings = PreferenceTable(path), recipe.reward_model
    rows = HeldOut.of(table.prompt_ids(), fraction=settings.held_out_fraction, most=settings.max_held_out).rows
    pairs = [each for each in table.read(rows) if isinstance(each, Preference) and not each.is_tie]
    return sorted(pairs, key=lambda pair: pair.rater_kind is not RaterKind.HUMAN)


def _agreement(graders: Graders, recipe: Recipe, part: OutsidePart, pairs: Sequence[Preference]) -> dict[str, Any]:
    settings = part.settings
    assert isinstance(settings, JudgeReward)
    started = time.monotonic()
    kinds: list[RaterKind] = []
    results: list[Graded] = []
    chosen = pairs[: settings.agreement_pairs]
    for split, own in _by_split(recipe, chosen):
        size = max(1, settings.batch_size // 2)
        asked = [each for _, each in own]
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        results += graders.pool.submit(GraderWorker.grade, batches, part, split).result()
        kinds += [pair.rater_kind for pair, _ in own]
    graded = Graded.joined(results)
    better, worse = graded.values[0::2], graded.values[1::2]
    agrees = np.where(np.isnan(better - worse), math.nan, (np.sign(better - worse) + 1) / 2)
    return {
        "raters": {kind.value: _of_kind(agrees, kinds, kind) for kind in dict.fromkeys(kinds)},
        "not_found": len(chosen) - len(kinds),
        "calls": graded.counts["calls"],
        "prompt_tokens": graded.counts["prompt_tokens"],
        "completion_tokens": graded.counts["completion_tokens"],
        "seconds": round(time.monotonic() - started, 1),
    }


def _by_split(recipe: Recipe, pairs: Sequence[Preference]) -> Iterator[tuple[str, list[tuple[Preference, Asked]]]]:
    """Pairs with what is asked of them, by the split in which their prompts are."""
    left = [*pairs]
    for split in dict.fromkeys((recipe.preferences.split, recipe.rlhf.split)):
        tables, found = Datasets(recipe.datasets, split), list[tuple[Preference, Asked]]()
        for pair in left:
            try:
                (row,) = tables.keys([pair.prompt_id])
            except KeyError:
                continue
            both = _completion(pair.chosen, pair.chosen_ids), _completion(pair.rejected, pair.rejected_ids)
            found.append((pair, Asked(PromptInfo(pair.prompt_id, "", None, None, ()), row, both)))
        left = [pair for pair in left if all(pair is not each for each, _ in found)]
        yield split, found


def _completion(text: str, ids: Sequence[int]) -> RewardCompletion:
    return RewardCompletion(text, np.array(ids, np.int64), FinishReason.STOP)


def _of_kind(agrees: np.ndarray[Any, np.dtype[Any]], kinds: Sequence[RaterKind], kind: RaterKind) -> dict[str, Any]:
    own = agrees[[each is kind for each in kinds]]
    known = own[~np.isnan(own)]
    share = float(known.mean()) if len(known) else None
    interval = None if share is None else list(wilson(share, len(known)))
    return {"num_pairs": len(known), "num_failed": len(own) - len(known), "agreement": share, "interval": interval}


def told(judges: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of judges, for people to read. A pair that a judge holds to be equal is half an agreement."""
    for name, found in judges.items():
        cost = (
            f"{found['prompt_tokens']} + {found['completion_tokens']} tokens and {found['seconds']:g} s for "
            f"{found['calls']} calls"
        )
        for kind, each in found["raters"].items():
            if each["agreement"] is None:
                yield f"The judge {name} gave no verdict on {each['num_failed']} held-out preferences ({kind}); {cost}."
                continue
            low, high = each["interval"]
            share, pairs = f"{100 * each['agreement']:.0f} % ({100 * low:.0f} to {100 * high:.0f})", each["num_pairs"]
            yield (
                f"The judge {name} agrees with {share} of {pairs} held-out preferences ({kind}), and gave no verdict "
                f"on {each['num_failed']}; {cost}."
            )


def read(directory: Path) -> dict[str, Any]:
    """What `measure` wrote for the run in a directory; empty where it did not."""
    path = directory / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
