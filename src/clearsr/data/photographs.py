"""A set of photographs, whole or in parts, as many kept decoded as a budget allows; their order in training.

An unreadable image is an error that names it: nothing is replaced in silence.
"""

import hashlib
import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from clearsr.config.training import Source
from clearsr.data.sources import ImageItem, KnownSizes, decode, list_items, pixel_size
from clearsr.errors import ClearSRError
from clearsr.image import ChooseWindow
from clearsr.seeds import make_generator


class Photographs:
    """Images by index, as uint8 RGB 3×H×W."""

    def __init__(self, inputs: Sequence[Path], cache_megabytes: int = 0, sizes: Path | None = None) -> None:
        """`inputs` are files, folders (recursive), `.txt` lists and `.tar` shards; the budget is for `crop`.

        In the file `sizes` is kept what headers say.

        Raises:
            ClearSRError: an input is missing or holds no image.
        """
        found: dict[tuple[str, int | None], ImageItem] = {}
        self.counts: list[int] = []  # of the images that each input adds to those before
        for given in inputs:
            before = len(found)
            for item in list_items([given]):
                found.setdefault((os.path.abspath(item.path), item.offset), item)
            self.counts.append(len(found) - before)
        self.items, self._sizes = list(found.values()), sizes
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

    def smaller_than(self, side: int, skip_unreadable: bool = False) -> dict[int, str]:
        """The images with less than `side` pixels in a direction, by their headers: index -> name and size.

        Args:
            skip_unreadable: pass over images whose header cannot be read; they are met again in training.

        Raises:
            ClearSRError: a header cannot be read.
        """
        small, sizes = {}, KnownSizes(self._sizes, self.items)
        try:
            for index, item in enumerate(self.items):
                try:
                    width, height = sizes.of(item)
                except ClearSRError:
                    if skip_unreadable:
                        continue
                    raise
                if min(width, height) < side:
                    small[index] = f"{item.label()} ({width}x{height})"
        finally:  # one header that cannot be read does not have all the others read again
            sizes.keep()
        return small

    def by_source(self, indices: Iterable[int]) -> list[int]:
        """How many of the images come from each input."""
        ends = list(accumulate(self.counts))
        found = Counter(bisect_right(ends, index) for index in indices)
        return [found[source] for source in range(len(self.counts))]

    def leave_out(self, indices: Collection[int]) -> None:
        """Forget these images."""
        left_out = set(indices)
        gone = self.by_source(left_out)
        self.items = [item for index, item in enumerate(self.items) if index not in left_out]
        self.counts = [count - less for count, less in zip(self.counts, gone, strict=True)]


class Epochs:
    """Which image each sample of a run is taken from: epoch by epoch, each in an order of its own.

    Without weights every image comes as often as its source has crops. With weights an epoch has as many
    samples, shared among the sources by weight; a source goes through all its crops before one comes again,
    from one epoch to the next.
    """

    def __init__(self, seed: int, sources: Sequence[Source], counts: Sequence[int]) -> None:
        """`counts` are the images of each source, one after the other.

        Raises:
            ClearSRError: a source with a weight has no images.
        """
        self._seed, self._orders = seed, dict[int, torch.Tensor]()
        starts = [0, *accumulate(counts)]
        self._crops = [
            torch.arange(start, start + count).repeat_interleave(source.crops)
            for start, count, source in zip(starts, counts, sources, strict=False)
        ]
        self.length = sum(map(len, self._crops))
        weights = [source.weight for source in sources if source.weight is not None]
        self._quotas: list[int] = []
        if weights:
            for source, count in zip(sources, counts, strict=True):
                if not count:
                    raise ClearSRError(
                        f"data.train: {source.path} has a weight and no image that the others lack"
                    )
            self._quotas = [max(1, round(self.length * weight / sum(weights))) for weight in weights]
            self.length = sum(self._quotas)

    def image(self, number: int, skipped: int = 0) -> int:
        """The image of sample `number`: the next of the epoch's order, `skipped` places on."""
        epoch, position = divmod(number, self.length)
        if epoch not in self._orders:
            kept = {near: order for near, order in self._orders.items() if abs(near - epoch) == 1}
            self._orders = kept | {epoch: self._order(epoch)}
        return int(self._orders[epoch][(position + skipped) % self.length])

    def _order(self, epoch: int) -> torch.Tensor:
        parts = self._crops
        if self._quotas:
            parts = [self._part(epoch, source) for source in range(len(parts))]
        shuffled = torch.randperm(self.length, generator=make_generator("order", self._seed, epoch))
        return torch.cat(parts)[shuffled]

    def _part(self, epoch: int, source: int) -> torch.Tensor:
        """A source's samples of an epoch: the next of its crops, in rounds of their own."""
        crops, quota = self._crops[source], self._quotas[source]
        first, taken = epoch * quota, list[torch.Tensor]()
        while len(taken) == 0 or sum(map(len, taken)) < quota:
            turn, begin = divmod(first + sum(map(len, taken)), len(crops))
            order = torch.randperm(len(crops), generator=make_generator("source", self._seed, source, turn))
            taken.append(crops[order[begin:]])
        return torch.cat(taken)[:quota]
