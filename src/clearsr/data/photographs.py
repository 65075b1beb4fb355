"""A set of photographs, decoded on demand, with as many kept in memory as a budget allows.

An unreadable image is an error that names it: nothing is replaced in silence.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from clearsr.data.sources import decode, list_items, pixel_size
from clearsr.errors import ClearSRError


class Photographs:
    """Images by index, as uint8 RGB 3×H×W."""

    def __init__(self, inputs: Sequence[Path], cache_megabytes: int = 0) -> None:
        """`inputs` are files, folders (recursive), `.txt` lists and `.tar` shards.

        Raises:
            ClearSRError: an input is missing or holds no image.
        """
        self.items = list_items(inputs)
        self._budget = cache_megabytes * 2**20
        self._cached_bytes = 0
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 RGB 3×H×W.

        Raises:
            ClearSRError: it cannot be decoded.
        """
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        pixels = decode(self.items[index])
        self._cache[index] = pixels
        self._cached_bytes += pixels.numel()
        while self._cached_bytes > self._budget and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.numel()
        return pixels

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
