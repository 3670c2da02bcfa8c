"""What was decided and what came of it: the record, its columns in the project's tables, and its checked arrays.

A log is a prompt table (`pipeline.data.schema`) with further columns: one row a decision, the state as messages and
media.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import ConfigError, MediaLimits
from pipeline.data.media import decode, encode_png, encode_video, encode_wav
from pipeline.data.schema import PROMPT_SCHEMA, described, from_row, split_content, to_row
from pipeline.data.table import write_prompts
from pipeline.models.fusion.samples import Sample, sample_of
from pipeline.records import MediaKind, Medium, Message, Prompt


@dataclass(frozen=True)
class LoggedDecision:
    """One decision of whoever decided before, for `context`."""

    context: Sample
    """What the decision saw."""
    action: int
    """Which of the K actions was taken, from 0."""
    propensity: float
    """Probability in (0, 1] with which the logging policy takes this action in this context."""
    position: int = 0
    """Place at which the item was shown, from 0."""
    reward: float = 0.0
    """What came of it, such as 1 for a click; what was not examined is not clicked."""
    group: str = ""
    """Whom it was decided for, as fairness tables group them. Not among what a model sees."""
    session: str = ""
    """Decisions of one session depend on each other; empty: it is the only one of its session."""
    step: int = 0
    """Number of the decision in its session, from 0."""


DECISION_SCHEMA = described(
    pa.schema(
        [
            *PROMPT_SCHEMA,
            ("numbers", pa.list_(pa.float64())),
            ("action", pa.int64()),
            ("propensity", pa.float64()),
            ("position", pa.int64()),
            ("reward", pa.float64()),
            ("group", pa.string()),
            ("session", pa.string()),
            ("step", pa.int64()),
        ]
    )
)

_COLUMNS = ("action", "propensity", "position", "reward", "group", "session", "step")


def write_decisions(path: Path, decisions: Iterable[LoggedDecision]) -> int:
    """Writes decisions, as they come, as one Parquet file; returns their number.

    Raises:
        ConfigError: a context's text holds a media tag, which would be taken for a medium's place.
    """
    return write_prompts(path, map(_row, decisions), schema=DECISION_SCHEMA)


def read_decisions(path: Path, *, limits: MediaLimits | None = None) -> list[LoggedDecision]:
    """What `write_decisions` wrote, or any prompt table with its columns; media are decoded within `limits`.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: a column of a decision is missing, or a cell of it is empty.
        RowError: the state of a row cannot be used.
    """
    file = pq.ParquetFile(path)
    missing = [name for name in ("action", "propensity", "reward") if name not in file.schema_arrow.names]
    if missing:
        raise ConfigError(f"{path}: column {missing[0]} is missing; a log needs action, propensity and reward")
    rows = (row for group in range(file.num_row_groups) for row in file.read_row_group(group).to_pylist())
    return [_decision(row, number, limits or MediaLimits()) for number, row in enumerate(rows)]


def _row(decision: LoggedDecision) -> dict[str, Any]:
    sample = decision.context
    if any(isinstance(part, MediaKind) for part in split_content(sample.text or "")):
        raise ConfigError(
            f"{sample.id}: text={sample.text!r} holds a media tag; leave it out: media have fields of own"
        )
    media = tuple(_media(sample))
    content = "".join(medium.kind.tag for medium in media) + (sample.text or "")
    prompt = Prompt(sample.id, "decision", (Message("user", content),), media, answer=None)
    numbers = None if sample.numbers is None else list(sample.numbers)
    return to_row(prompt, ()) | {"numbers": numbers} | {name: getattr(decision, name) for name in _COLUMNS}


def _media(sample: Sample) -> Iterator[Medium]:
    if sample.image is not None:
        yield Medium(MediaKind.IMAGE, encode_png(sample.image.pixels))
    if sample.audio is not None:
        yield Medium(MediaKind.AUDIO, encode_wav(sample.audio))
    if sample.video is not None:
        yield Medium(MediaKind.VIDEO, encode_video(sample.video.frames, sample.video.frames_per_second))


def _decision(row: Mapping[str, Any], number: int, limits: MediaLimits) -> LoggedDecision:
    for name in ("action", "propensity", "reward"):
        if row[name] is None:
            raise ConfigError(
                f"row {number} ({row['id']}): {name} is empty; log it with each decision, or drop the row"
            )
    sample = sample_of(from_row(row), decoder=lambda medium: decode(medium, limits))
    if row.get("numbers") is not None:
        sample = replace(sample, numbers=tuple(row["numbers"]))
    given = {name: row[name] for name in _COLUMNS if row.get(name) is not None}
    return LoggedDecision(context=sample, **given)


@dataclass(frozen=True)
class Log:
    """Checked columns of N decisions.

    actions, positions: int64 [N]; propensities: float64 [N] in (0, 1]; rewards: float64 [N], finite.
    groups, sessions: N names; a decision without a session has one of its own.
    """

    actions: NDArray[np.int64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]
    positions: NDArray[np.int64]
    groups: tuple[str, ...]
    sessions: tuple[str, ...]

    def rows(self, rows: NDArray[np.int64]) -> Log:
        """The log of these decisions, in this order."""
        return Log(
            actions=self.actions[rows],
            propensities=self.propensities[rows],
            rewards=self.rewards[rows],
            positions=self.positions[rows],
            groups=tuple(self.groups[row] for row in rows),
            sessions=tuple(self.sessions[row] for row in rows),
        )


def columns_of(decisions: Sequence[LoggedDecision], *, num_actions: int) -> Log:
    """The columns of decisions among `num_actions`, after each was checked.

    Raises:
        ConfigError: no decision at all, or one whose action is none of the K, whose propensity is not in (0, 1], whose
            reward is not finite or whose position is below 0; the message names row, field, value and cure.
    """
    if not decisions:
        raise ConfigError("decisions: none; a log needs at least one")
    for row, each in enumerate(decisions):
        check_decision(
            f"row {row} ({each.context.id})",
            action=each.action,
            propensity=each.propensity,
            reward=each.reward,
            position=each.position,
            num_actions=num_actions,
        )
    return Log(
        actions=np.array([each.action for each in decisions], np.int64),
        propensities=np.array([each.propensity for each in decisions], np.float64),
        rewards=np.array([each.reward for each in decisions], np.float64),
        positions=np.array([each.position for each in decisions], np.int64),
        groups=tuple(each.group for each in decisions),
        sessions=tuple(each.session or f"row {row}" for row, each in enumerate(decisions)),
    )


def check_decision(
    name: str, *, action: int, propensity: float, reward: float, position: int = 0, num_actions: int
) -> None:
    """Makes sure that an estimate can use a decision; `name` is what the error calls it.

    Raises:
        ConfigError: it cannot, see `columns_of`.
    """
    if not 0 <= action < num_actions:
        raise ConfigError(
            f"{name}: action={action} is none of the {num_actions} actions; they count from 0 to {num_actions - 1}"
        )
    if not (math.isfinite(propensity) and 0 < propensity <= 1):
        raise ConfigError(
            f"{name}: propensity={propensity:g}; must be in (0, 1]: the probability with which the logging policy "
            "takes the action it took. Log it at decision time; a policy that explores has no action of probability 0"
        )
    if not math.isfinite(reward):
        raise ConfigError(f"{name}: reward={reward:g}; must be finite: drop the row, or say what no answer is worth")
    if position < 0:
        raise ConfigError(f"{name}: position={position}; places count from 0, the first one shown")
