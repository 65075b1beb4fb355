"""Pictures that are read part by part, so that a large one is never in memory as floating-point numbers.

A TIFF of the plain kind is decoded strip by strip or tile by tile as it is read; every other file is decoded
whole and kept as the bytes that it holds. Written by hand, for Pillow decodes pictures whole, and tifffile
gives strips and tiles but no windows of pixels with a bound on memory.
"""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tifffile
import torch
from PIL import Image, UnidentifiedImageError

from clearsr.errors import ClearSRError, one_line
from clearsr.image.data import ImageData, ImageMetadata, Raster, from_raster, stored_window, upright_size
from clearsr.image.declared import chromaticities_of
from clearsr.image.deep import (
    DNG_VERSION,
    MAX_CHANNELS,
    check_parts,
    check_size,
    info_tags,
    orientation_tag,
    silent_tifffile,
    with_alpha,
)
from clearsr.image.metadata import collect_metadata, info_of, safe_exif
from clearsr.image.tiff import check_unpacked
from clearsr.tiling import Window

_CACHE_BYTES = 96_000_000  # of decoded strips or tiles: a row of them is read several times
_LARGEST_TILE = 4096 * 4096  # in pixels, that a small picture may come in; its size is the file's word alone
_UNPACKED_BY_TIFFFILE = (1, 8, 32773, 32946)  # nothing, deflate, PackBits; without a further package
_BLACK_IS_ZERO, _RGB, _CONTIGUOUS = 1, 2, 1


class ImageSource(Protocol):
    """An upright picture of known size."""

    height: int
    width: int
    source: str

    def read(self, window: Window) -> ImageData:
        """A part, with the metadata of the whole."""
        ...

    def close(self) -> None:
        """Let go of the file, if it is open."""
        ...


class RasterSource:
    """A picture whose samples are in memory as the file holds them."""

    def __init__(self, raster: Raster, metadata: ImageMetadata, orientation: int, source: str) -> None:
        self._raster, self._orientation = raster, orientation
        self._metadata, self.source = metadata, source
        self.height, self.width = upright_size(raster.samples.shape[0], raster.samples.shape[1], orientation)

    def read(self, window: Window) -> ImageData:
        """A part, with the metadata of the whole."""
        top, left, bottom, right = stored_window(window, self.height, self.width, self._orientation)
        part = self._raster._replace(samples=self._raster.samples[top:bottom, left:right])
        return from_raster(part, self._metadata, self.source, self._orientation)

    def close(self) -> None:
        """Nothing is open."""


class DataSource:
    """A picture that is in memory already."""

    def __init__(self, image: ImageData) -> None:
        self._image, self.source = image, image.source
        self.height, self.width = image.height, image.width

    def read(self, window: Window) -> ImageData:
        """A part, with the metadata of the whole."""
        alpha = None if self._image.alpha is None else window.of(self._image.alpha)
        return dataclasses.replace(self._image, color=window.of(self._image.color), alpha=alpha)

    def close(self) -> None:
        """Nothing is open."""


_WRAP_MARGIN, WRAP_FADE = 128, 64  # pixels of the result: around it, and in which both sides are blended


class Wrapping(NamedTuple):
    """A picture whose sides meet is worked on with what lies beyond them, which is the other side.

    Attributes:
        size: height and width of the result.
        added: rows above and below, and columns left and right, that the input gets.
        margin: and what that is in the result.
    """

    size: tuple[int, int]
    added: tuple[int, int]
    margin: tuple[int, int]

    @classmethod
    def of(cls, input_size: tuple[int, int], size: tuple[int, int], axes: str) -> "Wrapping | None":
        """For a picture and its result; `axes` is x, y, xy or off. None if no sides meet."""
        added, margin = [0, 0], [0, 0]
        for axis, letter in enumerate("yx"):
            if letter in axes:
                length, target = input_size[axis], size[axis]
                step = length // math.gcd(length, target)  # so that the margin is in whole pixels there, too
                added[axis] = step * math.ceil(_WRAP_MARGIN * length / target / step)
                margin[axis] = added[axis] * target // length
        if not any(added):
            return None
        return cls(size, (added[0], added[1]), (margin[0], margin[1]))

    @property
    def extended(self) -> tuple[int, int]:
        """Height and width of the result with its margins."""
        return self.size[0] + 2 * self.margin[0], self.size[1] + 2 * self.margin[1]

    def faded(self, planes: torch.Tensor, axis: int) -> torch.Tensor:
        """...×H×W without the margins of an axis (0: rows, 1: columns), its end blended."""
        length, margin = self.size[axis], self.margin[axis]
        if not margin:
            return planes
        fade, dim = min(WRAP_FADE, length), planes.ndim - 2 + axis
        proper, before = planes.narrow(dim, margin, length), planes.narrow(dim, margin - fade, fade)
        end = self.blended(proper.narrow(dim, length - fade, fade), before, axis)
        return torch.cat([proper.narrow(dim, 0, length - fade), end], dim)

    def blended(self, end: torch.Tensor, before: torch.Tensor, axis: int, first: int = 0) -> torch.Tensor:
        """The last rows or columns, from the `first` that is blended on, more and more as those before it."""
        fade = min(WRAP_FADE, self.size[axis])
        share = torch.arange(first + 1, first + 1 + end.shape[end.ndim - 2 + axis]) / fade
        return torch.lerp(end, before, share[:, None] if axis == 0 else share)


class WrappedSource:
    """A picture that goes on beyond its sides as the other side does."""

    def __init__(self, source: ImageSource, added: tuple[int, int]) -> None:
        """`added` rows above and below, and columns left and right."""
        self._source, self._added, self.source = source, added, source.source
        self.height, self.width = source.height + 2 * added[0], source.width + 2 * added[1]

    def read(self, window: Window) -> ImageData:
        """A part, with the metadata of the whole."""
        rows = _runs(window.top - self._added[0], window.bottom - self._added[0], self._source.height)
        columns = list(_runs(window.left - self._added[1], window.right - self._added[1], self._source.width))
        parts = [
            [self._source.read(Window(top, left, bottom, right)) for left, right in columns]
            for top, bottom in rows
        ]
        color = torch.cat([torch.cat([part.color for part in row], 2) for row in parts], 1)
        alpha = None
        if parts[0][0].alpha is not None:
            alphas = [[part.alpha for part in row if part.alpha is not None] for row in parts]
            alpha = torch.cat([torch.cat(row, 2) for row in alphas], 1)
        return dataclasses.replace(parts[0][0], color=color, alpha=alpha)

    def close(self) -> None:
        """Close what is behind it."""
        self._source.close()


def _runs(first: int, last: int, length: int) -> Iterator[tuple[int, int]]:
    """Where cells `first` to `last` lie in an axis of `length` cells that is gone through again and again."""
    while first < last:
        start = first % length
        stop = min(length, start + last - first)
        yield start, stop
        first += stop - start


class TiffSource:
    """The first page of a TIFF: grey or RGB of 8 or 16 bits, upright, channels together. Made by `open`."""

    def __init__(self, file: tifffile.TiffFile, path: Path, source: str) -> None:
        self._file, self.source = file, source
        self._page: Any = file.pages[0]
        self.height, self.width = self._page.imagelength, self._page.imagewidth
        self._base = 3 if self._page.photometric == _RGB else 1
        # One block of memory for all that is kept: small arrays that live long, made between large ones that
        # do not, leave the heap full of holes (5 GB of them on the way through 1,000 megapixels).
        shape = (*_chunk_size(self._page), self._page.samplesperpixel)
        dtype, chunks = self._page.dtype.newbyteorder("="), len(self._page.dataoffsets)
        count = min(_CACHE_BYTES // (math.prod(shape) * dtype.itemsize), chunks)
        self._kept = np.empty((max(1, count), *shape), dtype)
        self._places: OrderedDict[int, int] = OrderedDict()  # in `_kept`, of chunks; what goes first is first
        self._metadata = self._read_metadata(path)

    @classmethod
    def open(cls, path: Path, source: str, max_pixels: int) -> "TiffSource | None":
        """None if the file is no TIFF, or of a kind that is better decoded whole.

        Raises:
            ClearSRError: too many pixels, or parts are missing.
        """
        with silent_tifffile():
            try:
                file = tifffile.TiffFile(path)
            except tifffile.TiffFileError:
                return None
            try:
                if _is_plain(file, source, max_pixels):
                    return cls(file, path, source)
            except BaseException:
                file.close()
                raise
            file.close()
            return None

    def read(self, window: Window) -> ImageData:
        """A part, with the metadata of the whole.

        Raises:
            ClearSRError: the file is damaged there.
        """
        height, width, channels = self._kept.shape[1:]
        samples = np.empty((*window.size, channels), self._kept.dtype)
        for row in range(window.top // height, -(-window.bottom // height)):
            for column in range(window.left // width, -(-window.right // width)):
                chunk = Window(row * height, column * width, (row + 1) * height, (column + 1) * width)
                part = chunk.shared(window)
                inside, to = part.seen_from(chunk), part.seen_from(window)
                samples[to.top : to.bottom, to.left : to.right] = self._chunk(row, column)[
                    inside.top : inside.bottom, inside.left : inside.right
                ]
        raster = with_alpha(samples, self._base, tuple(self._page.extrasamples), self.source)
        return from_raster(raster, self._metadata, self.source)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _chunk(self, row: int, column: int) -> np.ndarray:
        """h×w×C samples of a strip or tile; what lies beyond the picture is undefined."""
        index = row * -(-self.width // self._kept.shape[2]) + column
        if index in self._places:
            self._places.move_to_end(index)
            return self._kept[self._places[index]]
        chunk = self._decode(index)
        is_full = len(self._places) == len(self._kept)
        place = self._places.popitem(last=False)[1] if is_full else len(self._places)
        self._kept[place, : chunk.shape[0], : chunk.shape[1]] = chunk
        self._places[index] = place
        return self._kept[place]

    def _decode(self, index: int) -> np.ndarray:
        """h×w×C samples of a strip or tile, which at the border may be smaller than the others."""
        page = self._page
        try:
            with silent_tifffile():
                handle = self._file.filehandle
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
                check_unpacked(data, page.compression, self._kept[0].nbytes, self.source)
                values = page.decode(data, index, jpegtables=page.jpegtables)[0]
            chunk = np.asarray(values)[0]
            _, height, width, channels = self._kept.shape
            rows_left = self.height - index // -(-self.width // width) * height
            if chunk.shape not in ((height, width, channels), (min(height, rows_left), width, channels)):
                raise ValueError(f"a strip or tile has the shape {chunk.shape}")
            return chunk
        except ClearSRError:
            raise
        except Exception as error:  # decoders raise anything, as in `read_image`
            raise ClearSRError(
                f"{self.source}: is damaged or incomplete and cannot be read ({one_line(error)})"
            ) from error

    def _read_metadata(self, path: Path) -> ImageMetadata:
        """As `read_image` finds it: by Pillow, or by `tifffile` where Pillow does not know the layout."""
        is_gray, size = self._base == 1, (self.height, self.width)
        with path.open("rb") as file:
            try:
                image = Image.open(file, formats=["TIFF"])
            except UnidentifiedImageError:
                return collect_metadata(info_tags(self._page), Image.Exif(), is_gray, self.source, size)
            if image.size != (self.width, self.height):  # as where a tag is there twice
                first, last = f"{self.width}×{self.height}", f"{image.width}×{image.height}"
                raise ClearSRError(f"{self.source}: is damaged: {last} and {first} are both its size")
            exif = safe_exif(image, self.source)
            info = info_of(image) | chromaticities_of(image)
            return collect_metadata(info, exif, is_gray, self.source, size)


def _is_plain(file: tifffile.TiffFile, source: str, max_pixels: int) -> bool:
    """Whether a TIFF can be read part by part.

    Raises:
        ClearSRError: too many pixels, or parts are missing.
    """
    page: Any = file.pages[0]
    channels = 3 if page.photometric == _RGB else 1
    is_plain = (
        page.photometric in (_BLACK_IS_ZERO, _RGB)
        and page.planarconfig == _CONTIGUOUS
        and page.dtype in (np.uint8, np.uint16)
        and page.bitspersample in (8, 16)
        and page.ndim in (2, 3)
        and orientation_tag(page) == 1
        and len(file.pages) == 1
        and page.compression in _UNPACKED_BY_TIFFFILE
        and channels <= page.samplesperpixel <= MAX_CHANNELS
        and DNG_VERSION not in page.tags
        and min(_chunk_size(page)) > 0
        and math.prod(_chunk_size(page)) <= page.imagewidth * page.imagelength + _LARGEST_TILE
    )
    if is_plain:
        check_size(page.imagewidth, page.imagelength, source, max_pixels)
        height, width = _chunk_size(page)
        check_parts(page, -(-page.imagelength // height) * -(-page.imagewidth // width), source)
    return is_plain


def _chunk_size(page: Any) -> tuple[int, int]:
    """Height and width of a TIFF page's tiles or strips, which are what can be decoded alone."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth
