"""What an encoder does on rows of a table: retrieval, and zero- and few-shot classification, as the summary says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.config.fusion import Modality
from pipeline.config.retrieve import FewShot, Retrieve
from pipeline.evaluation.intervals import Estimate
from pipeline.evaluation.retrieval import (
    Retrieval,
    accuracy,
    class_embeddings,
    few_shot,
    nearest_class,
    probed,
    ranks,
    summarised,
)
from pipeline.models.dual_encoder import JointEncoder
from pipeline.models.fusion.samples import Sample
from pipeline.records import Prompt

Found = tuple[Prompt, Sample]
NUM_EXAMPLES, NUM_SHOWN = 4, 4


@dataclass(frozen=True)
class Example:
    """A query and the rows that it found, best first. `rank`: of the right one."""

    modality: Modality
    query: Found
    answers: tuple[Found, ...]
    rank: int


@dataclass(frozen=True)
class RetrievalResults:
    """Over all kinds of queries and by kind; `ranks` int64 [N] by kind."""

    overall: Retrieval
    by_query: Mapping[Modality, Retrieval]
    ranks: Mapping[Modality, Tensor]
    target: Modality
    examples: tuple[Example, ...]

    def as_json(self) -> dict[str, Any]:
        """For the summary."""
        by_query = {modality.value: _retrieval_json(each) for modality, each in self.by_query.items()}
        return {**_retrieval_json(self.overall), "target": self.target.value, "by_query": by_query}


@dataclass(frozen=True)
class FewShotResults:
    """Accuracies: of class names alone, of some labelled rows a class by their number, of a probe on all of them."""

    zero_shot: Estimate
    by_shots: Mapping[int, Estimate]
    supervised_probe: Estimate
    num_labelled: int
    num_classes: int

    @property
    def named(self) -> dict[str, Estimate]:
        """By name."""
        by_shots = {str(shots): estimate for shots, estimate in self.by_shots.items()}
        return {"zero_shot": self.zero_shot, **by_shots, "supervised_probe": self.supervised_probe}

    def as_json(self) -> dict[str, Any]:
        """For the summary."""
        values = {name: estimate.value for name, estimate in self.named.items()}
        intervals = {name: [estimate.low, estimate.high] for name, estimate in self.named.items()}
        return {
            **values,
            "intervals": intervals,
            "num_labelled": self.num_labelled,
            "num_test": self.zero_shot.num_prompts,
        }


def _retrieval_json(found: Retrieval) -> dict[str, Any]:
    values = {f"recall@{k}": estimate for k, estimate in found.recall.items()} | {"mrr": found.mrr}
    return {
        **{name: estimate.value for name, estimate in values.items()},
        "median_rank": found.median_rank,
        "num_rows": found.num_rows,
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in values.items()},
    }


def retrieval_results(encoder: JointEncoder, rows: Sequence[Found], settings: Retrieve) -> RetrievalResults:
    """Searches for each row's target with each kind of its queries."""
    for modality in (settings.target, *settings.queries):
        _check_tower(encoder, modality, "retrieve.target or retrieve.queries")
    samples = [sample for _, sample in rows]
    targets = encoder.embed(samples, settings.target, batch_size=settings.batch_size)
    found: dict[Modality, Tensor] = {}
    examples: list[Example] = []
    for modality in settings.queries:
        queries = encoder.embed(samples, modality, batch_size=settings.batch_size)
        found[modality] = ranks(queries, targets)
        nearest = (queries @ targets.T).topk(min(NUM_SHOWN, len(rows)), dim=1).indices
        for place in range(min(NUM_EXAMPLES, len(rows))):
            answers = tuple(rows[each] for each in nearest[place].tolist())
            examples.append(Example(modality, rows[place], answers, int(found[modality][place])))
    overall = summarised(torch.stack(list(found.values())))
    by_query = {modality: summarised(each) for modality, each in found.items()}
    return RetrievalResults(overall, by_query, found, settings.target, tuple(examples))


def few_shot_results(
    encoder: JointEncoder, labelled: Sequence[Found], test: Sequence[Found], settings: Retrieve, *, seed: int
) -> FewShotResults:
    """Classifies the test rows zero-shot, few-shot and by a probe on all labelled rows, all in the same embedding.

    Raises:
        ConfigError: a tower is missing, or a class has too few labelled rows.
    """
    asked = settings.few_shot
    _check_tower(encoder, asked.modality, "retrieve.few_shot.modality")
    _check_tower(encoder, Modality.TEXT, "retrieve.few_shot.classes")
    known, labels = _labelled(encoder, labelled, asked, settings.batch_size)
    seen, truth = _labelled(encoder, test, asked, settings.batch_size)
    if not len(truth):
        raise ConfigError(
            f"retrieve.few_shot.classes={list(asked.classes)}: no row of the split {settings.split} has "
            f"{asked.modality} and one of them as its answer"
        )
    counts = labels.bincount(minlength=len(asked.classes))
    for shots in asked.shots:
        if int(counts.min()) < shots:
            name = asked.classes[int(counts.argmin())]
            raise ConfigError(
                f"retrieve.few_shot.shots={shots}: the class {name!r} has {int(counts.min())} rows in the split "
                f"{settings.train_split}; use at most so many"
            )
    prompts = [Sample(name, text=prompt.format(name)) for name in asked.classes for prompt in asked.prompts]
    said = encoder.embed(prompts, Modality.TEXT).view(len(asked.classes), len(asked.prompts), -1)
    num_classes = len(asked.classes)
    by_shots = {
        shots: accuracy(
            few_shot(
                known, labels, num_classes=num_classes, shots=shots, num_draws=asked.num_draws, seed=seed, test=seen
            ),
            truth,
        )
        for shots in asked.shots
    }
    return FewShotResults(
        zero_shot=accuracy(nearest_class(seen, class_embeddings(said)), truth),
        by_shots=by_shots,
        supervised_probe=accuracy(probed(known, labels, num_classes=num_classes, test=seen), truth),
        num_labelled=len(labels),
        num_classes=num_classes,
    )


def _labelled(
    encoder: JointEncoder, rows: Sequence[Found], settings: FewShot, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of the rows whose answer is a class."""
    kept = [(p, s) for p, s in rows if p.answer in settings.classes and settings.modality in s.modalities]
    embeddings = encoder.embed([sample for _, sample in kept], settings.modality, batch_size=batch_size)
    labels = [settings.classes.index(prompt.answer or "") for prompt, _ in kept]
    return embeddings, torch.tensor(labels, dtype=torch.int64)


def _check_tower(encoder: JointEncoder, modality: Modality, field: str) -> None:
    if not encoder.sees(modality):
        raise ConfigError(
            f"{field}: {modality} has no tower in this encoder, which has {', '.join(encoder.modalities)}"
        )
