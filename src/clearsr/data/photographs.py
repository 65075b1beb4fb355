"""A set of photographs: whole ones, or parts of them with as many kept decoded as a budget allows.

An unreadable image is an error that names it: nothing is replaced in silence.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from clearsr.data.sources import decode, list_items, pixel_size
from clearsr.errors import ClearSRError
from clearsr.image import ChooseWindow


class Photographs:
    """Images by index, as uint8 RGB 3×H×W."""

    def __init__(self, inputs: Sequence[Path], cache_megabytes: int = 0) -> None:
        """`inputs` are files, folders (recursive), `.txt` lists and `.tar` shards; the budget is for `crop`.

        Raises:
            ClearSRError: an input is missing or holds no image.
        """
        self.items = list_items(inputs)
        self._room = cache_megabytes * 2**20
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 RGB 3×H×W.

        Raises:
            ClearSRError: it cannot be decoded.
        """
        return decode(self.items[index])

    def crop(self, index: int, choose: ChooseWindow) -> torch.Tensor:
        """The part of image `index` that `choose(height, width)` names, as uint8 RGB 3×h×w.

        Images that still fit into the budget are kept whole, and are not given up for later ones: an epoch
        visits every image once, so the one that was used last is the one that is needed last.

        Raises:
            ClearSRError: the image cannot be decoded whole, wherever the damage is; or by `choose`.
        """
        kept = self._kept.get(index)
        if kept is None:
            item = self.items[index]
            if not self._room or self._room < 3 * math.prod(pixel_size(item)):
                return decode(item, choose)
            kept = self._kept[index] = decode(item)
            self._room = max(0, self._room - kept.numel())
        return choose(kept.shape[1], kept.shape[2]).of(kept)

    def byte_count(self) -> int:
        """Bytes of all encoded images."""
        return sum(item.byte_count() for item in self.items)

    def fingerprint(self) -> str:
        """A hash of the names in their order, which decide what every sample of a run is."""
        names = "\n".join(item.name for item in self.items)
        return hashlib.blake2b(names.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def require_size(self, side: int, skip_unreadable: bool = False) -> None:
        """Check that every image is at least `side` pixels in both directions, from the headers.

        Args:
            skip_unreadable: pass over images whose header cannot be read; they are met again in training.

        Raises:
            ClearSRError: names the images that are smaller or unreadable.
        """
        small = []
        for item in self.items:
            try:
                width, height = pixel_size(item)
            except ClearSRError:
                if skip_unreadable:
                    continue
                raise
            if min(width, height) < side:
                small.append(f"{item.label()} ({width}x{height})")
        if small:
            listed = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
            raise ClearSRError(f"data.crop_size: {side} is larger than {listed}; choose a smaller crop")
