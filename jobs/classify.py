"""Classify: does fusing modalities beat the best single one, where each of them is degraded in some rows?

    train, validation, test.parquet (the built-in ones are made here)
      -> a Ray task a split: decode, preprocess -> arrays in the object store
      -> a Ray task an arm (a kind of fusion, or a single modality): AdamW, best epoch on validation, test
      -> checkpoints/classify/<arm>, summary.json, report.html

The driver holds no medium but those that the report shows. A class is an answer of the train split.
Left out on purpose: checkpoints within an arm, which takes less than a minute; and DeepSpeed, for models this small.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from actors.loop.metrics import ray_sinks
from jobs.command import main, record_stage
from pipeline.config import ConfigError, Recipe
from pipeline.config.fusion import FusionKind, FusionSettings, Modality
from pipeline.data.datasets import Datasets, RowRef
from pipeline.data.demo import paired
from pipeline.data.isolated import Decoder
from pipeline.data.schema import RowError
from pipeline.data.table import Quarantine
from pipeline.evaluation.fusion import ArmResult, TestRows, sections, summarise
from pipeline.evaluation.page import write_page
from pipeline.models.fusion import PRESENT, FusionModel, Preprocessor, Sample, sample_of
from pipeline.models.fusion.training import Labelled, fit, predict
from pipeline.records import Prompt, Quarantined
from pipeline.tracking import Tracker

STAGE = "classify"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Arm:
    """A model that is trained: its name, and its settings."""

    name: str
    settings: FusionSettings


@dataclass(frozen=True)
class Facts:
    """What the driver learns of a split: its rows without media, those refused, and how many were left out or cut."""

    rows: TestRows
    refused: tuple[Quarantined, ...]
    counts: dict[str, int]


Arrays = dict[str, NDArray[Any]]


def run(recipe: Recipe) -> dict[str, Any]:
    """Trains all arms, writes the summary and the report, and returns the summary."""
    started = time.monotonic()
    if recipe.data.path is None and not recipe.data.mixture:
        paired.build(recipe.data_path, settings=recipe.classify.built_in, seed=recipe.run.seed)
    classes = classes_of(recipe)
    prepare: Any = ray.remote(prepared).options(num_cpus=recipe.classify.cpus_per_arm, num_returns=2)
    splits = [prepare.remote(recipe, split, classes) for split in SPLITS]
    facts = {split: got(ref) for split, (_, ref) in zip(SPLITS, splits, strict=True)}
    check(recipe, facts)
    train: Any = ray.remote(trained).options(num_cpus=recipe.classify.cpus_per_arm)
    arrays = [ref for ref, _ in splits]
    arms = arms_of(recipe)
    results = [got(ref) for ref in [train.remote(recipe, arm, len(classes), *arrays) for arm in arms]]
    track(recipe, results)
    record_stage(recipe, STAGE, time.monotonic() - started)
    return publish(recipe, results, facts, classes)


def arms_of(recipe: Recipe) -> list[Arm]:
    """Every kind of fusion, and every modality alone: the same encoders, sizes and training."""
    settings = recipe.classify.model
    fused = [Arm(kind.value, settings.model_copy(update={"kind": kind})) for kind in recipe.classify.fusions]
    alone = {"kind": FusionKind.CONCAT, "modality_dropout": 0.0}
    single = [
        Arm(each.value, settings.model_copy(update={**alone, "modalities": (each,)})) for each in settings.modalities
    ]
    return [*fused, *single]


def classes_of(recipe: Recipe) -> tuple[str, ...]:
    """The answers of the train split, sorted.

    Raises:
        ConfigError: they are fewer than two, or another split has an answer that train has not.
    """
    answers = {
        split: {info.answer for info in Datasets(recipe.datasets, split).check("classify").infos()} - {None}
        for split in SPLITS
    }
    classes = answers["train"]
    if len(classes) < 2:
        raise ConfigError(
            f"data.path={recipe.data_path}: the answers of train are {sorted(map(str, classes))}; a "
            "classifier needs at least two classes"
        )
    for split in SPLITS[1:]:
        if not answers[split]:
            raise ConfigError(f"data.path={recipe.data_path}: no row of {split} has an answer, which is its class")
        if unknown := sorted(map(str, answers[split] - classes)):
            raise ConfigError(
                f"data.path={recipe.data_path}: the answer {unknown[0]!r} of {split} is none of the {len(classes)} "
                "classes that train has; add rows of it to train, or take those out"
            )
    return tuple(sorted(map(str, classes)))


def prepared(recipe: Recipe, split: str, classes: Sequence[str]) -> tuple[Arrays, Facts]:
    """A split as arrays for all modalities of the recipe, `labels` among them, and what the driver needs of it.

    Raises:
        ConfigError: a row's numbers are none.
    """
    settings = recipe.classify
    datasets = Datasets(recipe.datasets, split)
    ids = [info.id for info in datasets.infos()]
    keys = datasets.keys(ids)
    cells = datasets.cells(keys, ("columns", "sources"))
    further = {id: json.loads(cells[key].get("columns") or "{}") for id, key in zip(ids, keys, strict=True)}
    sources = {id: cells[key].get("sources") or [id] for id, key in zip(ids, keys, strict=True)}
    preprocessor = Preprocessor(settings.model)
    kept: list[tuple[Prompt, Sample]] = []
    refused: list[Quarantined] = []
    counts = Counter[str]()
    with Decoder(recipe.data.limits) as decoder:
        for row in datasets.read([RowRef(key) for key in keys]):
            if isinstance(row, Quarantined):
                refused.append(row)
                continue
            try:
                sample = sample_of(row, decoder=decoder.decode, columns=further[row.id], numbers=settings.numbers)
            except RowError as error:
                refused.append(error.quarantined(row.id))
                continue
            except ValueError as error:
                raise ConfigError(f"classify.numbers: {error}") from None
            reason = left_out(row, sample, settings.model)
            counts[reason] += 1
            if reason == "kept":
                kept.append((row, sample))
    if not kept:
        raise ConfigError(
            f"classify.model.modalities: no row of {split} has one: {dict(counts)}, refused {len(refused)}"
        )
    arrays = {name: each.numpy() for name, each in preprocessor.batch([sample for _, sample in kept]).items()}
    labels = np.array([classes.index(row.answer or "") for row, _ in kept], np.int64)
    rows = TestRows(
        ids=tuple(row.id for row, _ in kept),
        labels=labels,
        groups=tuple(str(further[row.id].get(settings.group, "")) for row, _ in kept),
        units=tuple(str(sources[row.id][0]) for row, _ in kept),
    )
    del counts["kept"]
    cut = {f"{name}_cut": number for name, number in preprocessor.cut.items()}
    return {**arrays, "labels": labels}, Facts(rows, tuple(refused), {**counts, **cut})


def left_out(row: Prompt, sample: Sample, settings: FusionSettings) -> str:
    """Why a row is left out; `kept` where it is not."""
    if row.answer is None:
        return "no_answer"
    return "kept" if sample.modalities & set(settings.modalities) else "no_modality"


def check(recipe: Recipe, facts: dict[str, Facts]) -> None:
    """Stops where too many rows were refused, and keeps a list of them."""
    for split, each in facts.items():
        quarantine = Quarantine()
        for row in each.refused:
            quarantine.add(row)
        if each.refused:
            quarantine.write(recipe.run.directory / f"quarantine_{STAGE}_{split}.parquet")
        quarantine.check(len(each.rows.ids) + len(each.refused), recipe.data.max_bad_fraction)


def trained(recipe: Recipe, arm: Arm, num_classes: int, train: Arrays, validation: Arrays, test: Arrays) -> ArmResult:
    """An arm from the first step to its test. Of a row that has none of its modalities it says the commonest class."""
    torch.set_num_threads(1)
    settings, started = recipe.classify, time.process_time()
    modalities = arm.settings.modalities
    learned, held_out, tested = (of_modalities(each, settings.model, modalities) for each in (train, validation, test))
    torch.manual_seed(recipe.run.seed)
    model = FusionModel(arm.settings, num_classes)
    model.standardise(learned.inputs)
    history = fit(
        model,
        learned,
        held_out,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=recipe.run.seed,
    )
    model.save(recipe.checkpoint(STAGE) / arm.name)
    usable = has_some(test, settings.model, modalities)
    output = predict(model, tested.inputs)
    predicted = np.full(len(usable), np.bincount(train["labels"]).argmax(), np.int64)
    predicted[usable] = output.logits.argmax(-1).numpy()
    weights = np.zeros((len(usable), len(modalities)), np.float32)
    weights[usable] = output.weights.numpy()
    return ArmResult(
        name=arm.name,
        modalities=tuple(each.value for each in modalities),
        losses=tuple(each.loss for each in history),
        validation_accuracies=tuple(each.validation_accuracy for each in history),
        predicted=predicted,
        weights=weights,
        without=without_each(model, tested),
        num_parameters=sum(each.numel() for each in model.parameters()),
        cpu_s=time.process_time() - started,
    )


def has_some(arrays: Arrays, settings: FusionSettings, modalities: Sequence[Modality]) -> NDArray[np.bool_]:
    """Which rows have one of the modalities, bool [N]."""
    places = [settings.modalities.index(each) for each in modalities]
    return np.logical_or.reduce(arrays[PRESENT][:, places], axis=1)


def of_modalities(arrays: Arrays, settings: FusionSettings, modalities: Sequence[Modality]) -> Labelled:
    """The rows that have one of the modalities, with these alone."""
    usable = has_some(arrays, settings, modalities)
    places = [settings.modalities.index(each) for each in modalities]
    inputs = {each.value: torch.from_numpy(arrays[each.value][usable]) for each in modalities}
    inputs[PRESENT] = torch.from_numpy(arrays[PRESENT][usable][:, places])
    return Labelled(inputs, torch.from_numpy(arrays["labels"][usable]))


def without_each(model: FusionModel, rows: Labelled) -> dict[str, float]:
    """Accuracy once a modality is taken away from all rows, of those that have another."""
    found: dict[str, float] = {}
    for place, modality in enumerate(model.modalities):
        present = rows.inputs[PRESENT].clone()
        present[:, place] = False
        left = Labelled({**rows.inputs, PRESENT: present}, rows.labels)[present.any(1)]
        if len(left):
            right = predict(model, left.inputs).logits.argmax(-1) == left.labels
            found[modality.value] = float(right.float().mean())
    return found


def got(ref: Any) -> Any:
    """What a task returned; an error that the user can mend comes as itself."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ConfigError):
            raise cause from None
        raise


def track(recipe: Recipe, arms: Sequence[ArmResult]) -> None:
    """Hands every epoch of every arm to the sinks."""
    num_epochs = recipe.classify.epochs
    with Tracker(recipe.run, STAGE, num_steps=num_epochs, extra_sinks=ray_sinks(recipe.run, STAGE)) as tracker:
        for epoch in range(num_epochs):
            accuracies = {f"accuracy/{arm.name}": arm.validation_accuracies[epoch] for arm in arms}
            tracker.log(epoch, {**accuracies, **{f"loss/{arm.name}": arm.losses[epoch] for arm in arms}})


def publish(
    recipe: Recipe, arms: Sequence[ArmResult], facts: dict[str, Facts], classes: Sequence[str]
) -> dict[str, Any]:
    """Writes `summary.json` and `report.html`, and prints what they come to."""
    rows = facts["test"].rows
    counts = Counter[str]()
    for each in facts.values():
        counts.update(each.counts)
        counts["refused"] += len(each.refused)
    task = recipe.classify.built_in.task.value if recipe.data.path is None else recipe.run.name
    summary: dict[str, Any] = {"task": task, "seed": recipe.run.seed, **summarise(arms, rows), "counts": dict(counts)}
    directory = recipe.run.directory
    (directory / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    shown = shown_prompts(recipe, rows)
    parts = sections(arms, rows, classes=classes, shown=shown, counts=counts)
    write_page(directory / "report.html", title=f"Fusion: {task}", sections=parts)
    for name, each in summary["fusion"].items():
        low, high = each["interval"]
        print(
            f"{name:<16} {each['fused']:.3f}  best single ({summary['best_single']}) {each['best_single']:.3f}  "
            f"difference {each['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    print(f"report: {directory / 'report.html'}", flush=True)
    return summary


def shown_prompts(recipe: Recipe, rows: TestRows) -> list[Prompt]:
    """The first rows of every group in turn, not chosen by outcome."""
    by_group: dict[str, list[str]] = {}
    for id, group in zip(rows.ids, rows.groups, strict=True):
        by_group.setdefault(group, []).append(id)
    longest = max(map(len, by_group.values()))
    turns = [ids[turn] for turn in range(longest) for ids in by_group.values() if turn < len(ids)]
    datasets = Datasets(recipe.datasets, "test")
    found = datasets.read([RowRef(key) for key in datasets.keys(turns[: recipe.classify.shown_rows])])
    return [each for each in found if isinstance(each, Prompt)]


if __name__ == "__main__":
    main(run, __doc__)
