"""How much fusing modalities is worth: each kind of fusion against the best single modality, on the same test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Estimate, paired, proportion
from pipeline.evaluation.page import MediaItem, Section, Table, curves
from pipeline.records import Prompt


@dataclass(frozen=True)
class ArmResult:
    """What one model came to.

    name: the kind of fusion, or the single modality. modalities: what it takes, in the order of `weights`.
    losses, validation_accuracies: one an epoch.
    predicted: int64 [N], the class of each test row. weights: float32 [N, M], those of the modalities.
    without: accuracy on the test rows once a modality is taken away, of those that have another.
    cpu_s: CPU seconds from the first step to the test.
    """

    name: str
    modalities: tuple[str, ...]
    losses: tuple[float, ...]
    validation_accuracies: tuple[float, ...]
    predicted: NDArray[np.int64]
    weights: NDArray[np.float32]
    without: Mapping[str, float]
    num_parameters: int
    cpu_s: float

    @property
    def validation_accuracy(self) -> float:
        """Of the epoch whose weights were kept."""
        return max(self.validation_accuracies)

    @property
    def is_fusion(self) -> bool:
        """Whether it takes several modalities."""
        return len(self.modalities) > 1


@dataclass(frozen=True)
class TestRows:
    """The rows that all arms are tested on: ids, labels int64 [N], groups, and units: rows of one unit are no
    independent trials, such as several of one patient."""

    __test__ = False  # no test case, whatever its name begins with

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    units: tuple[str, ...]

    def by_unit(self, values: NDArray[np.float64]) -> list[float]:
        """The mean of `values` [N] in each unit."""
        found: dict[str, list[float]] = {}
        for unit, value in zip(self.units, values.tolist(), strict=True):
            found.setdefault(unit, []).append(value)
        return [fmean(each) for each in found.values()]

    def correct(self, arm: ArmResult) -> NDArray[np.float64]:
        """1 where the arm's class is the row's, else 0: [N]."""
        return (arm.predicted == self.labels).astype(np.float64)

    def accuracy(self, arm: ArmResult) -> Estimate:
        """Of an arm, with a 95 % interval over units."""
        found = proportion(self.by_unit(self.correct(arm)), num_samples=len(self.ids))
        assert found is not None
        return found

    def by_group(self, arm: ArmResult) -> dict[str, float]:
        """Accuracy of an arm by group."""
        correct = self.correct(arm)
        groups = np.array(self.groups)
        return {str(name): float(correct[groups == name].mean()) for name in sorted(set(self.groups))}


def best_single(arms: Sequence[ArmResult]) -> ArmResult:
    """The single modality that is best on validation: test rows choose nothing.

    Raises:
        ValueError: there is none.
    """
    single = [arm for arm in arms if not arm.is_fusion]
    if not single:
        raise ValueError("no arm has a single modality: there is nothing to compare with")
    return max(single, key=lambda arm: arm.validation_accuracy)


def summarise(arms: Sequence[ArmResult], rows: TestRows) -> dict[str, Any]:
    """What `summary.json` says: each kind's accuracy beside the best single modality's, with the 95 % interval of their
    difference over the same units of the test split; and all arms by group."""
    single = best_single(arms)
    fusion: dict[str, Any] = {}
    for arm in arms:
        if arm.is_fusion:
            gain = paired(rows.by_unit(rows.correct(arm) - rows.correct(single)))
            assert gain is not None
            fusion[arm.name] = {
                "fused": float(rows.correct(arm).mean()),
                "best_single": float(rows.correct(single).mean()),
                "difference": gain.value,
                "interval": [gain.low, gain.high],
                "without": dict(arm.without),
                "mean_weights": dict(zip(arm.modalities, arm.weights.mean(0).astype(float).tolist(), strict=True)),
            }
    return {
        "fusion": fusion,
        "single": {arm.name: float(rows.correct(arm).mean()) for arm in arms if not arm.is_fusion},
        "best_single": single.name,
        "validation": {arm.name: arm.validation_accuracy for arm in arms},
        "by_group": {arm.name: rows.by_group(arm) for arm in arms},
        "num_test_rows": len(rows.ids),
        "num_test_units": len(set(rows.units)),
        "cpu_s": {arm.name: round(arm.cpu_s, 1) for arm in arms},
        "num_parameters": {arm.name: arm.num_parameters for arm in arms},
    }


def sections(
    arms: Sequence[ArmResult],
    rows: TestRows,
    *,
    classes: Sequence[str],
    shown: Sequence[Prompt],
    counts: Mapping[str, int],
) -> list[Section]:
    """The page: figures, curves, groups, and the decisions on the rows `shown`."""
    return [
        _figures(arms, rows, counts),
        Section(
            title="Learning",
            text="Accuracy on validation after each epoch. The weights of the best epoch are kept.",
            figures=tuple(
                curves(caption, {arm.name: [*enumerate(values(arm), 1)] for arm in arms}, unit=unit, along="epoch")
                for caption, unit, values in (
                    ("Accuracy on validation", "share", lambda arm: arm.validation_accuracies),
                    ("Loss in training", "nats", lambda arm: arm.losses),
                )
            ),
        ),
        _groups(arms, rows),
        _weights(arms, rows),
        _decisions([arm for arm in arms if arm.is_fusion], rows, classes, shown),
    ]


def _figures(arms: Sequence[ArmResult], rows: TestRows, counts: Mapping[str, int]) -> Section:
    summary, single = summarise(arms, rows), best_single(arms)
    table: list[tuple[str, ...]] = []
    for arm in arms:
        found = rows.accuracy(arm)
        low, high = summary["fusion"][arm.name]["interval"] if arm.is_fusion else (None, None)
        gain = "" if low is None else f"{summary['fusion'][arm.name]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        accuracy = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        table.append((arm.name, accuracy, gain, f"{arm.validation_accuracy:.3f}", f"{arm.num_parameters:,}"))
    lost = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "none"
    text = (
        f"Accuracy on {len(rows.ids)} test rows of {len(set(rows.units))} independent sources, with 95 % intervals. "
        f"The gain is over {single.name}, the single modality that is best on validation, on the same rows.\n\n"
        f"Rows that were left out, or cut: {lost}."
    )
    header = ("Model", "Accuracy on test", "Gain over the best single modality", "On validation", "Parameters")
    return Section(title="Fusion against single modalities", text=text, table=Table(header, tuple(table)))


def _groups(arms: Sequence[ArmResult], rows: TestRows) -> Section:
    names = sorted(set(rows.groups))
    counts = {name: rows.groups.count(name) for name in names}
    table = [(arm.name, *(f"{rows.by_group(arm)[name]:.3f}" for name in names)) for arm in arms]
    header = ("Model", *(f"{name or 'all'} ({counts[name]})" for name in names))
    return Section(
        title="By group",
        text="Accuracy by what was degraded, with the number of rows.",
        table=Table(header, tuple(table)),
    )


def _weights(arms: Sequence[ArmResult], rows: TestRows) -> Section:
    fused = [arm for arm in arms if arm.is_fusion]
    modalities = fused[0].modalities if fused else ()
    groups = np.array(rows.groups)
    table: list[tuple[str, ...]] = []
    for arm in fused:
        for name in sorted(set(rows.groups)):
            mean = arm.weights[groups == name].mean(0)
            table.append((arm.name, name or "all", *(f"{share:.2f}" for share in mean.tolist())))
        taken = [f"{arm.without[each]:.3f}" if each in arm.without else "" for each in modalities]
        table.append((arm.name, "accuracy without it", *taken))
    text = (
        "How much of the embedding is each modality's, by what was degraded: attention paid, gates, learned weights, "
        "or shares of norms, as the kind has it. Below: accuracy once the modality is taken away from all rows."
    )
    return Section(title="Weights of modalities", text=text, table=Table(("Model", "Rows", *modalities), tuple(table)))


def _decisions(fused: Sequence[ArmResult], rows: TestRows, classes: Sequence[str], shown: Sequence[Prompt]) -> Section:
    places = {id: place for place, id in enumerate(rows.ids)}
    table: list[tuple[str, ...]] = []
    media: list[MediaItem] = []
    for prompt in shown:
        place = places[prompt.id]
        media += [
            MediaItem(f"{prompt.id} {medium.kind.value}: {rows.groups[place]}", medium) for medium in prompt.media
        ]
        for arm in fused:
            shares = zip(arm.modalities, arm.weights[place].tolist(), strict=True)
            told = ", ".join(f"{name} {share:.2f}" for name, share in shares)
            answer = classes[int(arm.predicted[place])]
            table.append((prompt.id, rows.groups[place], classes[int(rows.labels[place])], arm.name, answer, told))
    header = ("Row", "Degraded", "Class", "Model", "Decision", "Weights")
    return Section(title="Decisions", table=Table(header, tuple(table)), media=tuple(media))
