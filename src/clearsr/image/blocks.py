"""`write_blocks`: a picture that comes block by block as a file, written while it is made.

TIFF and PNG hold one row of blocks at a time. The other formats have encoders for whole pictures only: their
samples are collected, at one or two bytes each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clearsr.config.output import OutputConfig
from clearsr.image.data import ImageData, to_samples
from clearsr.image.metadata import exif_for_size
from clearsr.image.png import PngWriter
from clearsr.image.tiff import Tiles, write_tiff
from clearsr.image.writing import PNG, TIFF, Format, as_format_holds, check_output, encode, write_whole
from clearsr.tiling import Window

Blocks = Iterator[tuple[Window, ImageData]]


def is_streamed(path: Path) -> bool:
    """Whether a file of this name is written in pieces, without the whole picture in memory."""
    return check_output(path) in (TIFF, PNG)


def write_blocks(
    path: Path, size: tuple[int, int], side: int, blocks: Blocks, config: OutputConfig | None = None
) -> None:
    """Write a picture of which parts of side `side` come row by row; as `write_image` in all else.

    Args:
        path: the file to write; see `check_output`.
        size: height and width.
        side: of a block, a multiple of 16.
        blocks: where each block lies, and the block; every one brings the metadata of the whole.

    Raises:
        ClearSRError: as `write_image`.
    """
    config = config or OutputConfig()
    format = check_output(path, size)

    def write(file: BinaryIO) -> None:
        window, first = next(blocks)
        template, depth = as_format_holds(first, path, format, config)

        def converted() -> Iterator[tuple[Window, np.ndarray]]:
            yield window, to_samples(template, depth)
            for where, block in blocks:
                fitted, _ = as_format_holds(block, path, format, config)
                yield where, to_samples(fitted, depth)

        _write(file, (template, depth), size, side, converted(), format, config)

    write_whole(path, write)


def _write(
    file: BinaryIO,
    template: tuple[ImageData, int],
    size: tuple[int, int],
    side: int,
    samples: Iterator[tuple[Window, np.ndarray]],
    format: Format,
    config: OutputConfig,
) -> None:
    """Write samples; `template` has the metadata and the bits per sample."""
    image, depth = template
    channels = (1 if image.is_gray else 3) + (image.alpha is not None)
    shape, dtype = (*size, channels), np.dtype(np.uint8 if depth == 8 else np.uint16)
    exif = exif_for_size(image.metadata.exif, size[1], size[0])
    if format is TIFF:
        tiles = Tiles((part for _, part in samples), shape, dtype, side)
        write_tiff(file, tiles, image.metadata, exif, config.tiff_compression)
    elif format is PNG:
        block = None if exif is None else exif.tobytes()
        writer = PngWriter(file, shape, dtype, image.metadata, block, config.png_compression)
        rows = np.empty((side, size[1], channels), dtype)
        for window, part in samples:
            rows[: len(part), window.left : window.right] = part
            if window.right == size[1]:
                writer.write_rows(rows[: len(part)])
        writer.close()
    else:
        whole = np.empty(shape, dtype)
        for window, part in samples:
            whole[window.top : window.bottom, window.left : window.right] = part
        encode(file, image, whole, format, config)
