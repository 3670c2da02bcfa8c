"""Do rollout and trainer see the same? Token ids, features, positions and logprobs of the same rows, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.models.batch import PromptBatch
from pipeline.records import EncodedPrompt, MediaKind, MediumTensors


class ParityError(RuntimeError):
    """Copies of the model disagree; the message is a table of rows, modalities and causes."""


@dataclass(frozen=True)
class Sight:
    """A prompt as a copy of the model runs it, padding left out.

    input_ids: int64 [L]; position_ids: int64 [R, L]; feature_lengths: tokens of each medium's features, in order.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    feature_lengths: tuple[int, ...]


@dataclass(frozen=True)
class ComparedRow:
    """A prompt and a completion, as the named copies saw the one and judged the other.

    sights: by copy; a copy that has none is compared by logprobs alone. logprobs: by copy, float32 [T].
    """

    prompt_id: str
    modalities: tuple[MediaKind, ...]
    sights: Mapping[str, Sight]
    logprobs: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Difference:
    """A row on which two copies disagree."""

    prompt_id: str
    modalities: tuple[MediaKind, ...]
    cause: str
    detail: str


@dataclass(frozen=True)
class ParityReport:
    """Mean and largest difference of logprobs by modality, in nats, and the rows beyond tolerance."""

    by_modality: dict[str, tuple[float, float]]
    differences: tuple[Difference, ...]

    def table(self) -> str:
        """The report, to be printed."""
        lines = [f"{'modality':<22}{'mean |d logprob|':>18}{'max':>12}"]
        lines += [f"{name:<22}{mean:>18.2e}{largest:>12.2e}" for name, (mean, largest) in self.by_modality.items()]
        if self.differences:
            lines += ["", f"{'row':<28}{'modality':<22}{'cause':<18}detail"]
            lines += [
                f"{each.prompt_id:<27} {_label(each.modalities):<22}{each.cause:<18}{each.detail}"
                for each in self.differences
            ]
        return "\n".join(lines)


def sights(prompts: Sequence[EncodedPrompt], batch: PromptBatch) -> list[Sight]:
    """What a model runs for each of `prompts`, read back from the batch that they became."""
    found: list[Sight] = []
    for row, prompt in enumerate(prompts):
        mask = batch.mask[row]
        lengths = tuple(item.num_tokens if isinstance(item, MediumTensors) else len(item) for item in prompt.media)
        positions = batch.position_ids[:, row, mask]
        found.append(Sight(batch.input_ids[row, mask].cpu().numpy(), positions.cpu().numpy(), lengths))
    return found


def compare(rows: Sequence[ComparedRow], *, tolerance: float) -> ParityReport:
    """Compares all copies of each row with its first.

    Args:
        tolerance: largest mean absolute difference of a row's logprobs, in nats.
    """
    differences: list[Difference] = []
    apart: dict[str, list[NDArray[np.float32]]] = {}
    for row in rows:
        first, *others = row.logprobs
        for other in others:
            gap = np.abs(row.logprobs[other] - row.logprobs[first])
            apart.setdefault(_label(row.modalities), []).append(gap)
            cause = _cause(row, first, other)
            # What is not a number is no agreement either.
            if cause is None and not float(gap.mean()) <= tolerance:
                cause = "logprobs", f"mean {gap.mean():.2e}, max {gap.max():.2e} over {len(gap)} tokens > {tolerance:g}"
            if cause is not None:
                where = f"{first} and {other}: {cause[1]}"
                differences.append(Difference(row.prompt_id, row.modalities, cause[0], where))
    by_modality = {
        label: (float(np.concatenate(gaps).mean()), float(np.concatenate(gaps).max()))
        for label, gaps in sorted(apart.items())
    }
    return ParityReport(by_modality, tuple(differences))


def _cause(row: ComparedRow, first: str, other: str) -> tuple[str, str] | None:
    """The first of the inputs in which two copies differ, and how; None where they are equal or unknown."""
    if first not in row.sights or other not in row.sights:
        return None
    one, two = row.sights[first], row.sights[other]
    if not np.array_equal(one.input_ids, two.input_ids):
        return "token ids", f"{len(one.input_ids)} and {len(two.input_ids)} tokens, unequal"
    if one.feature_lengths != two.feature_lengths:
        return "feature lengths", f"{list(one.feature_lengths)} and {list(two.feature_lengths)}"
    if one.position_ids.shape != two.position_ids.shape:
        return "positions", f"{len(one.position_ids)} and {len(two.position_ids)} axes"
    if not np.array_equal(one.position_ids, two.position_ids):
        place = int((one.position_ids != two.position_ids).any(0).argmax())
        return "positions", f"from token {place} on"
    return None


def _label(modalities: Sequence[MediaKind]) -> str:
    return "+".join(modalities) or "text"
