"""Policy -> rollout: the trained parameters with a version, through the object store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Weights:
    """Trained parameters by name, and the version they are.

    Frozen parameters do not travel: every copy loaded them from the same checkpoint.
    """

    version: int
    parameters: Mapping[str, NDArray[Any]]
