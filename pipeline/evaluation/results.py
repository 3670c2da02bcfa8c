"""What an evaluation measured: one record a completion, on disk as JSONL. `summary.py` draws the numbers from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.config import RewardName
from pipeline.tracking import append_lines, read_lines

ALL_BLANKED = "all"


class ModelName(StrEnum):
    """The models that are compared, by the stage that wrote them."""

    SFT = "sft"
    RLHF = "rlhf"


class Mode(StrEnum):
    """How completions were chosen: drawn at the recipe's temperature, or the likeliest token each time."""

    SAMPLED = "sampled"
    GREEDY = "greedy"


@dataclass(frozen=True)
class SampleResult:
    """One completion of one prompt by one model, scored.

    modalities: kinds of media in the prompt, each once; empty for text alone.
    blanked: kinds whose media were blanked for this completion; empty where the prompt was shown whole.
    answer: the reference answer; None where nobody knows one. accepted: others that are as right.
    token_kl: policy minus reference logprob of each completion token, in nats; empty where it was not measured.
    rewards: by name: `exact_match` and `contains`, 0 or 1; `wer` (an error rate: lower is better); `bleu`, `rouge_l`
        and `distance` in [0, 1]. A name that does not apply, or whose scoring failed, is left out.
    learned_reward: the reward model's score, standardised as in training; None where there is none.
    swapped: the row whose media were shown in place of the prompt's own; None where its own were.
    demonstration: what a demonstrator answered; None where the row has no demonstration of its own.
    """

    prompt_id: str
    task: str
    modalities: tuple[str, ...]
    model: ModelName
    mode: Mode
    blanked: tuple[str, ...]
    answer: str | None
    text: str
    finish_reason: str
    num_tokens: int
    token_texts: tuple[str, ...]
    token_kl: tuple[float, ...]
    rewards: dict[str, float]
    learned_reward: float | None
    swapped: str | None = None
    demonstration: str | None = None
    accepted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token_kl and len(self.token_kl) != len(self.token_texts):
            raise ValueError(
                f"prompt {self.prompt_id}: {len(self.token_kl)} KL values for {len(self.token_texts)} token texts"
            )

    @property
    def true_reward(self) -> float | None:
        """Exact match with the reference answer; None where it could not be scored."""
        return self.reward(RewardName.EXACT_MATCH)

    def reward(self, name: str) -> float | None:
        """A reward by name; None where it does not apply or could not be given."""
        value = self.rewards.get(name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def is_shown(self) -> bool:
        """Whether the model saw the prompt as it is: nothing blanked, nothing swapped."""
        return not self.blanked and self.swapped is None


def blind_labels(sample: SampleResult) -> tuple[str, ...]:
    """What a blanked completion counts under: the kinds blanked, and `all` where they are all the prompt has.

    With one kind in the prompt, to blank it is to blank all: it counts under both.
    """
    kinds = set(sample.modalities if sample.blanked == (ALL_BLANKED,) else sample.blanked)
    everything = (ALL_BLANKED,) if kinds == set(sample.modalities) else ()
    together = ("+".join(sorted(kinds)),) if len(kinds) == 1 or not everything else ()
    return everything + together


def write_samples(path: Path, samples: Iterable[SampleResult]) -> None:
    """Writes completions as JSONL, in place of what the file held before."""
    path.unlink(missing_ok=True)
    append_lines(path, (asdict(sample) for sample in samples))


def read_samples(path: Path) -> list[SampleResult]:
    """Reads what `write_samples` wrote; a number that was not finite comes back as NaN.

    Raises:
        ValueError: a line is no sample.
    """
    return [_sample(row, path) for row in read_lines(path)]


def _sample(row: Mapping[str, Any], path: Path) -> SampleResult:
    names = {field.name for field in fields(SampleResult)}
    if set(row) != names:
        raise ValueError(f"{path}: not a sample, keys that differ: {sorted(set(row) ^ names)}: {json.dumps(row)[:200]}")
    typed: dict[str, Any] = {
        **row,
        **{name: tuple(row[name]) for name in ("modalities", "blanked", "token_texts", "accepted")},
        "model": ModelName(row["model"]),
        "mode": Mode(row["mode"]),
        "token_kl": tuple(math.nan if value is None else value for value in row["token_kl"]),
        "rewards": {name: math.nan if value is None else value for name, value in row["rewards"].items()},
    }
    return SampleResult(**typed)
