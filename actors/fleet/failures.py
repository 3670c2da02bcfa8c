"""What can go wrong with workers, and what their failures mean to who asked them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)


class Loss(StrEnum):
    """Of what kind a loss is, by which metrics count it."""

    DIED = "died"
    RAISED = "raised"
    HUNG = "hung"
    INPUTS = "inputs_lost"
    UNSAVED = "unsaved"


class Lost(RuntimeError):
    """Something that can be brought back: `role` names whose it was. The step can be repeated."""

    kind = Loss.DIED

    def __init__(self, role: str, detail: str, kind: Loss | None = None):
        super().__init__(role, detail, kind)
        self.role = role
        self.detail = detail.splitlines()[0]
        self.kind = kind or self.kind

    def __str__(self) -> str:
        return f"{self.role}: {self.detail}"


class WorldLost(Lost):
    """A rank of a world died, raised or hung: none of its ranks can go on, as they wait for each other."""


class InputsLost(Lost):
    """Prompts or features are no longer in the object store; who computed them has died. The workers are well."""

    kind = Loss.INPUTS


class StateLost(Lost):
    """What was published to a pool is no longer in the object store."""

    kind = Loss.INPUTS


class TrainingLost(Lost):
    """A rank of a training on Ray Train died, raised or hung: the stage begins again."""


class TooManyRecoveries(RuntimeError):
    """What was brought back keeps failing."""


class KillsWorkers(RuntimeError):
    """The same task was the last of several workers of a pool. `share` is what it was about, where that is known."""

    def __init__(self, message: str, share: Sequence[Any] = ()):
        super().__init__(message, share)
        self.share = share

    def __str__(self) -> str:
        return self.args[0]


class CannotSave(RuntimeError):
    """One checkpoint after the other could not be written."""


FEATURES = "features"
"""Whose a loss from the object store is."""
MISTAKES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    NotImplementedError,
    FileNotFoundError,
)
"""Errors that come again however often a call is repeated."""


def is_death(error: BaseException) -> bool:
    """Whether a worker's process is gone or out of reach: by itself, with its node, or ended for want of memory."""
    return isinstance(error, RayActorError | WorkerCrashedError | OutOfMemoryError | NodeDiedError)


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the worker, where that is what came of the call."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def inputs_are_lost(error: BaseException) -> bool:
    """Whether a call failed for what it was to read from the object store."""
    return isinstance(cause_of(error), ObjectLostError | InputsLost)


def unread(role: str, error: BaseException) -> InputsLost:
    """What such a failure of a role's call is to who asked."""
    cause = cause_of(error)
    return InputsLost(FEATURES, f"{role} cannot read them: {cause.detail if isinstance(cause, InputsLost) else cause}")
