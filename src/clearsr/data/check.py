"""Looking a set of images over before training: decode each one, measure it, find those that are the same.

Two images are the same if their decoded pixels are, whatever their names, formats and metadata.
"""

import hashlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clearsr.data.sources import ImageItem, decode, other_files
from clearsr.errors import ClearSRError

OnImage = Callable[[int, int], None]  # images looked at, of how many


@dataclass
class DataReport:
    """What was found.

    Attributes:
        images: all that were named.
        bytes: of the encoded images.
        sizes: (width, height) of each readable image.
        unreadable: one line for each image that cannot be decoded whole, and for each shard, link or line of
            a list that leads to none.
        duplicates: groups of names of the same picture; the first of each is the one to keep.
        small: names of images with a side below the crop size that was asked about.
        other: files in the folders that are not looked at, counted by suffix.
    """

    images: int = 0
    bytes: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Of all readable images together."""
        return sum(width * height for width, height in self.sizes)

    def shorter_sides(self) -> tuple[int, int, int] | None:
        """Smallest, median and largest shorter side; None without a readable image."""
        sides = [min(size) for size in self.sizes]
        return (min(sides), int(statistics.median(sides)), max(sides)) if sides else None

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "images": self.images,
            "readable": len(self.sizes),
            "bytes": self.bytes,
            "pixels": self.pixels,
            "shorter_side": dict(zip(("min", "median", "max"), self.shorter_sides() or (), strict=False)),
            "unreadable": self.unreadable,
            "duplicates": self.duplicates,
            "small": self.small,
            "other_files": self.other,
        }


def check_images(
    items: list[ImageItem],
    crop: int | None = None,
    on_image: OnImage | None = None,
    keep: Callable[[ImageItem, torch.Tensor], None] | None = None,
) -> DataReport:
    """Decode every image and report on them.

    Args:
        crop: side that images are wanted to have at least.
        on_image: called after each image.
        keep: called with each image (uint8 3×H×W) that is readable, large enough and not seen before.
    """
    report = DataReport(images=len(items))
    groups: dict[str, list[str]] = {}
    for number, (item, pixels) in enumerate(_decoded(items, report), start=1):
        if pixels is not None:
            names = groups.setdefault(_digest(pixels), [])
            names.append(item.label())
            is_small = crop is not None and min(pixels.shape[1:]) < crop
            if is_small:
                report.small.append(item.label())
            elif len(names) == 1 and keep is not None:
                keep(item, pixels)
        if on_image is not None:
            on_image(number, len(items))
    report.duplicates = [names for names in groups.values() if len(names) > 1]
    return report


def add_listing(
    report: DataReport, inputs: Sequence[Path], items: list[ImageItem], problems: list[str]
) -> None:
    """Report what led to no image: `problems` of `list_items`, dead links, and files of other kinds."""
    report.unreadable += problems
    for path in other_files(inputs, items):
        if path.exists():
            suffix = path.suffix.lower() or "no suffix"
            report.other[suffix] = report.other.get(suffix, 0) + 1
        else:
            report.unreadable.append(f"{path}: is a link to something that is not there")


def _decoded(items: list[ImageItem], report: DataReport) -> Iterator[tuple[ImageItem, torch.Tensor | None]]:
    """Each image with its pixels, None where it cannot be read; sizes and failures go to the report."""
    for item in items:
        try:
            report.bytes += item.byte_count()
            pixels = decode(item)
        except (ClearSRError, OSError) as error:
            report.unreadable.append(str(error))
            yield item, None
            continue
        report.sizes.append((pixels.shape[2], pixels.shape[1]))
        yield item, pixels


def _digest(pixels: torch.Tensor) -> str:
    """SHA-256 of size and pixels."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()
