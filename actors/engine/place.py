"""Where a rank of a world, or a worker of a pool, stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import Device

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """One rank's place in a role's world."""

    rank: int
    size: int
    address: str
    port: int
    device: Device
    timeout_s: float
    local_rank: int = 0
    """Index of this rank's GPU among those that its process sees; Ray shows an actor only its own."""

    @property
    def torch_device(self) -> torch.device:
        """Where this rank's tensors live."""
        import torch  # pools of workers that compute nothing do without

        return torch.device("cuda", self.local_rank) if self.device is Device.CUDA else torch.device("cpu")
