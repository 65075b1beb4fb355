"""Where large grids lie: on the device while there is room, then in main memory, then on disk."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clearsr.pipeline.budget import free_bytes
from clearsr.pipeline.disk_tensor import DiskTensor
from clearsr.tiling import Grid

LATENTS_SHARE = 0.05  # of the free memory, that one tensor of latents may take before it goes to disk


class GridStore(NamedTuple):
    """Makes grids, each where there is room at the time.

    Attributes:
        device: where the work is done.
        max_memory: the budget of the run; None takes what is available.
        folder: of what goes to disk.
        beside: bytes on the device that the work on windows of the grids takes.
    """

    device: torch.device
    max_memory: int | None
    folder: Path
    beside: int = 0

    def latents(self, shape: Sequence[int]) -> Any:
        """Zeros B×C×H×W on the device if they are few, else on disk."""
        if 4 * math.prod(shape) <= LATENTS_SHARE * free_bytes(self.max_memory, self.device):
            return torch.zeros(*shape, device=self.device)
        return DiskTensor(shape, self.folder, self.device)

    def feature_map(self, shape: Sequence[int], dtype: torch.dtype) -> Grid:
        """B×C×H×W to be written."""
        size = math.prod(shape) * dtype.itemsize
        for place in dict.fromkeys((self.device, torch.device("cpu"))):
            beside = self.beside if place == self.device else 0
            if size + beside <= free_bytes(self.max_memory, place):
                return torch.empty(*shape, dtype=dtype, device=place, memory_format=torch.channels_last)
        return DiskTensor(shape, self.folder, self.device, dtype)
