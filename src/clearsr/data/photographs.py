"""A set of photographs on disk, decoded on demand, with as many kept in memory as a budget allows.

An unreadable file is an error that names it: nothing is replaced in silence.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from clearsr.errors import ClearSRError
from clearsr.image import list_images, read_image


class Photographs:
    """Images by index, as uint8 RGB 3×H×W."""

    def __init__(self, inputs: Sequence[Path], cache_megabytes: int = 0) -> None:
        """`inputs` are files or folders (recursive).

        Raises:
            ClearSRError: an input is missing or holds no image.
        """
        self.files = [file for file, _ in list_images(inputs)]
        self._budget = cache_megabytes * 2**20
        self._cached_bytes = 0
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 RGB 3×H×W.

        Raises:
            ClearSRError: the file cannot be decoded.
        """
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        pixels = read_image(self.files[index]).color.mul(255).round().to(torch.uint8)
        self._cache[index] = pixels
        self._cached_bytes += pixels.numel()
        while self._cached_bytes > self._budget and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.numel()
        return pixels

    def require_size(self, side: int) -> None:
        """Check that every image is at least `side` pixels in both directions, from the file headers.

        Raises:
            ClearSRError: names the images that are smaller.
        """
        from PIL import Image

        small = []
        for file in self.files:
            with Image.open(file) as image:
                if min(image.size) < side:
                    small.append(f"{file.name} ({image.size[0]}x{image.size[1]})")
        if small:
            listed = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
            raise ClearSRError(f"data.crop_size: {side} is larger than {listed}; choose a smaller crop")
