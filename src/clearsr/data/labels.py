"""A teacher's pictures of the first samples of a run, on disk: made once, read again in every round.

Which samples these are follows from settings that every file names; files by other settings are refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clearsr.atomic import written_aside
from clearsr.errors import ClearSRError

IN_A_FILE = 32  # samples
_HEADER = "settings"  # of the file, as JSON


class Labels:
    """Pictures by the number of their sample, uint8 RGB 3×H×W."""

    def __init__(self, folder: Path, count: int, settings: Mapping[str, Any]) -> None:
        """`settings` are all that decides what the samples and their pictures are."""
        self.folder, self.count = folder, count
        self._settings = dict(settings)

    def missing(self) -> list[range]:
        """The samples of each file that is not there yet.

        Raises:
            ClearSRError: a file was made by other settings, or cannot be read.
        """
        starts = range(0, self.count, IN_A_FILE)
        every = [range(first, min(first + IN_A_FILE, self.count)) for first in starts]
        for numbers in every:
            if self.has(numbers):
                self._require_own(self._file(numbers[0]))
        return [numbers for numbers in every if not self.has(numbers)]

    def has(self, numbers: range) -> bool:
        """Whether the file of these samples is there."""
        return self._file(numbers[0]).is_file()

    def picture(self, number: int) -> torch.Tensor:
        """The picture of a sample.

        Raises:
            ClearSRError: its file is missing or damaged.
        """
        file = self._file(number)
        try:
            with safe_open(file, "pt") as pictures:
                found: torch.Tensor = pictures.get_slice("pictures")[number % IN_A_FILE]
        except (OSError, SafetensorError, IndexError) as error:
            raise ClearSRError(f"{file}: cannot be read ({error}); delete it, and it is made again") from None
        return found

    def write(self, numbers: range, pictures: torch.Tensor) -> None:
        """Keep the pictures of a file's samples, uint8 B×3×H×W.

        Raises:
            ClearSRError: the file cannot be written.
        """
        file = self._file(numbers[0])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_aside(file) as aside:
                # Under one name: safetensors puts several in an order that changes from process to process.
                save_file({"pictures": pictures.contiguous()}, aside, {_HEADER: json.dumps(self._settings)})
        except (OSError, SafetensorError) as error:
            raise ClearSRError(f"perceptual.teacher.labels: {file} cannot be written ({error})") from None

    def _file(self, number: int) -> Path:
        return self.folder / f"labels-{number // IN_A_FILE:05d}.safetensors"

    def _require_own(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as pictures:
                theirs = json.loads((pictures.metadata() or {})[_HEADER])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ClearSRError(f"{file}: cannot be read ({error}); delete it, and it is made again") from None
        names = sorted({*theirs, *self._settings})
        if other := [name for name in names if theirs.get(name) != self._settings.get(name)]:
            raise ClearSRError(
                f"{file}: was made with another {', '.join(other)}; choose another folder for "
                "perceptual.teacher.labels, or delete this one"
            )
