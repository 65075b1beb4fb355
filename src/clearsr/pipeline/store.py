"""Where what is as large as an image lies: on the device, in main memory, or in a file.

A `DiskTensor` is read and written window by window, by plain reads and writes and no memory map, so that a
process holds the window it works on and nothing else.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from clearsr.pipeline.budget import free_bytes
from clearsr.tiling import Grid


class DiskTensor:
    """B×C×H×W numbers, of which `[..., rows, columns]` is read and written; zero where nothing was written.

    The file has no name and is gone with the object, also when the process is killed.
    """

    def __init__(
        self, size: Sequence[int], folder: Path, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """A file in `folder`; what is read arrives on `device`.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        self.shape = torch.Size(size)
        self.device, self.dtype, self._folder = device, dtype, folder
        self._cell_bytes = math.prod(self.shape[:2]) * dtype.itemsize
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - open as long as the object is
            dir=folder, prefix=".clearsr-", suffix=".tmp", buffering=0
        )
        # It takes no room on the disk until it is written.
        self._file.truncate(math.prod(self.shape[2:]) * self._cell_bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, size: Sequence[int]) -> "DiskTensor":
        """Another one in the same folder."""
        return DiskTensor(size, self._folder, self.device, self.dtype)

    def holding(self, values: torch.Tensor) -> "DiskTensor":
        """B×C×H×W values of any size, laid aside in the same folder."""
        other = self.new_zeros(values.shape)
        other[..., :, :] = values
        return other

    def read(self) -> torch.Tensor:
        """All of it."""
        return self[..., :, :]

    def __getitem__(self, index: tuple[Any, slice, slice]) -> torch.Tensor:
        """B×C×h×w, a copy."""
        top, bottom, left, right = self._edges(index)
        values = np.empty((bottom - top, right - left, self._cell_bytes), np.uint8)
        for row, place in zip(self._lines(values), self._places(top, bottom, left, right), strict=True):
            self._file.seek(place)
            view = row.data
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise OSError("a temporary file lost its end")
                done += count
        numbers = torch.from_numpy(values).view(self.dtype).unflatten(-1, self.shape[:2])
        return numbers.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last).to(self.device)

    def __setitem__(self, index: tuple[Any, slice, slice], part: torch.Tensor) -> None:
        """Write B×C×h×w of any floating-point type, from any device."""
        top, bottom, left, right = self._edges(index)
        moved = part.detach().to(self.dtype).permute(2, 3, 0, 1).contiguous().cpu()
        if moved.shape != (bottom - top, right - left, *self.shape[:2]):
            raise ValueError(f"window {bottom - top}×{right - left} of {self.shape}, given {part.shape}")
        values = moved.reshape(-1).view(torch.uint8).view(*moved.shape[:2], -1).numpy()
        for row, place in zip(self._lines(values), self._places(top, bottom, left, right), strict=True):
            self._file.seek(place)
            view = row.data
            while len(view):
                view = view[self._file.write(view) :]

    def _edges(self, index: tuple[Any, slice, slice]) -> tuple[int, int, int, int]:
        _, rows, columns = index
        (top, bottom, _), (left, right, _) = rows.indices(self.shape[2]), columns.indices(self.shape[3])
        return top, bottom, left, right

    def _lines(self, values: np.ndarray) -> Sequence[np.ndarray]:
        """What lies in one stretch of the file: all of it where the window is as wide as the tensor."""
        return [values.reshape(-1)] if values.shape[1] == self.shape[3] else [v.reshape(-1) for v in values]

    def _places(self, top: int, bottom: int, left: int, right: int) -> Sequence[int]:
        """Where each of `_lines` starts in the file; cells lie row by row, each with all its channels."""
        width = self.shape[3]
        rows = [top] if right - left == width else range(top, bottom)
        return [(row * width + left) * self._cell_bytes for row in rows]


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
