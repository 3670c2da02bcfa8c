"""Export: a checkpoint with int8 weights for deployment, and what it loses by that.

    checkpoints/<checkpoint> -> LLM.int8() -> checkpoints/<checkpoint>_int8, for `from_pretrained`
    rows of evaluate.split -> encoder -> rollout with either's weights -> greedy answers -> export.json, the report

Left out on purpose: formats that need calibration, which are for a server of its own kind to make.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from actors.loop.crew import Crew, crew_of
from actors.loop.door import Door
from actors.roles.encoder import needs_of
from actors.roles.rollout import RolloutWorker
from jobs.command import main
from jobs.evaluate import completed, publish, result, samples_file
from pipeline.config import FROZEN, Recipe
from pipeline.data.datasets import Datasets
from pipeline.evaluation import exported
from pipeline.evaluation.results import Mode, ModelName, SampleResult, read_samples
from pipeline.models.quantisation import quantise


def run(recipe: Recipe, *, crew: Crew | None = None) -> Path:
    """Writes the checkpoint and `export.json`, brings the report up to date where there is one; returns the
    checkpoint's directory."""
    Datasets(recipe.datasets, recipe.evaluate.split).check("evaluate.split")
    name, model = recipe.export.checkpoint, recipe.model
    source, target = recipe.checkpoint(name), recipe.checkpoint(f"{name}_int8")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(f"export.checkpoint={name}: no checkpoint in {source}")
    written = quantise(source, target, dtype=model.dtype, trust_remote_code=model.trust_remote_code)
    with crew_of(recipe, crew) as workers:
        quality = workers.insist("export", partial(measured, recipe, workers, source, target))
    found = {"checkpoint": name, "split": recipe.evaluate.split, **asdict(written), "quality": quality}
    (recipe.run.directory / exported.NAME).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*exported.told(found), str(target)]), flush=True)
    if samples_file(recipe).is_file():
        publish(recipe, read_samples(samples_file(recipe)))
    return target


def measured(recipe: Recipe, workers: Crew, source: Path, target: Path) -> dict[str, Any]:
    """What is lost between two checkpoints, on the rows of `evaluate.split`."""
    roles = workers.roles({"encoder": source, "rollout": source})
    needs = needs_of(recipe, source, recipe.rlhf.policy.parts, FROZEN)
    door = Door(roles, recipe, recipe.evaluate.split, stage="export", needs=needs)
    prompts = door.admit([info.id for info in door.datasets.infos()])
    answers: list[list[SampleResult]] = []
    for path in (source, target):
        roles.rollout.publish(RolloutWorker.load, path)
        rollouts = completed(roles, recipe, prompts, Mode.GREEDY)
        answers.append(
            [
                result(prompt.info, rollout.completions[0], ModelName.RLHF, Mode.GREEDY)
                for prompt, rollout in zip(prompts, rollouts, strict=True)
            ]
        )
    return exported.loss_of_quality(*answers)


if __name__ == "__main__":
    main(run, __doc__)
