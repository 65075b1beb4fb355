"""Pictures that are read part by part, so that a large one is never in memory as floating-point numbers.

A TIFF of the plain kind is decoded strip by strip or tile by tile as it is read; every other file is decoded
whole and kept as the bytes that it holds. Written by hand, for Pillow decodes pictures whole, and tifffile
gives strips and tiles but no windows of pixels with a bound on memory.
"""

import dataclasses
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
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
