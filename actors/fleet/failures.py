"""What can go wrong with workers, and what their failures mean to who asked them."""

from __future__ import annotations

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError


class Lost(RuntimeError):
    """Something that can be brought back: `role` names whose it was. The step can be repeated."""

    def __init__(self, role: str, detail: str):
        super().__init__(role, detail)
        self.role = role
        self.detail = detail.splitlines()[0]

    def __str__(self) -> str:
        return f"{self.role}: {self.detail}"


class WorldLost(Lost):
    """A rank of a world died, raised or hung: none of its ranks can go on, as they wait for each other."""


class InputsLost(Lost):
    """Prompts or features are no longer in the object store; who computed them has died. The workers are well."""


class StateLost(Lost):
    """What was published to a pool is no longer in the object store."""


class TrainingLost(Lost):
    """A rank of a training on Ray Train died, raised or hung: the stage begins again."""


class TooManyRecoveries(RuntimeError):
    """What was brought back keeps failing."""


class KillsWorkers(RuntimeError):
    """The same task was the last of several workers of a pool."""


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
    """Whether a worker's process is gone, or cannot be reached."""
    return isinstance(error, RayActorError | WorkerCrashedError)


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the worker, where that is what came of the call."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return error


def inputs_are_lost(error: BaseException) -> bool:
    """Whether a call failed for what it was to read from the object store."""
    return isinstance(cause_of(error), ObjectLostError | InputsLost)
