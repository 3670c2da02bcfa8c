"""What a checkpoint loses by its export in 8 bits: the same prompts, answered greedily before and after.

jobs.export -> <run>/export.json -> a note of the report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.evaluation.intervals import paired
from pipeline.evaluation.results import SampleResult

NAME = "export.json"
MEASURES = ("contains", "exact_match")


def loss_of_quality(before: Sequence[SampleResult], after: Sequence[SampleResult]) -> dict[str, Any]:
    """What both answer to the same prompts, in the same order.

    Returns by measure `before`, `after` (means over the prompts that have an answer) and `difference`, the mean paired
    difference with its 95 % interval; `same`, the share of prompts answered in the very same tokens' text; and
    `num_prompts`.

    Raises:
        ValueError: the prompts differ.
    """
    if [each.prompt_id for each in before] != [each.prompt_id for each in after]:
        raise ValueError("before and after are answers to other prompts")
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one.answer is not None]
    found: dict[str, Any] = {"num_prompts": len(before)}
    if before:
        found["same"] = fmean(one.text == other.text for one, other in zip(before, after, strict=True))
    for name in MEASURES if pairs else ():
        difference = paired([other.rewards[name] - one.rewards[name] for one, other in pairs])
        assert difference is not None
        found[name] = {
            "before": fmean(one.rewards[name] for one, _ in pairs),
            "after": fmean(other.rewards[name] for _, other in pairs),
            "difference": asdict(difference),
        }
    return found


def read(run: Path) -> dict[str, Any]:
    """What `jobs.export` found in a run; empty where nothing was exported."""
    path = run / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def told(found: dict[str, Any]) -> list[str]:
    """The same for a reader, in a line; none where nothing was exported."""
    if not found:
        return []
    quality = found["quality"]
    changes = [
        f"{name.replace('_', ' ')} {each['before']:.3f} -> {each['after']:.3f} "
        f"({each['difference']['value']:+.3f}, 95 % interval {each['difference']['low']:+.3f} to "
        f"{each['difference']['high']:+.3f})"
        for name in MEASURES
        if (each := quality.get(name))
    ]
    same = f", {quality['same']:.1%} of the answers are the same" if "same" in quality else ""
    return [
        f"Exported in int8: `{found['checkpoint']}`, {found['num_int8'] / found['num_weights']:.0%} of its weights, "
        f"{found['source_bytes'] / 2**20:.2f} MiB -> {found['target_bytes'] / 2**20:.2f} MiB. Greedy answers to "
        f"{quality['num_prompts']} prompts of `{found['split']}`: {'; '.join(changes) or 'none has a reference'}{same}."
    ]
